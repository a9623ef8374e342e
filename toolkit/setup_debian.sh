#!/bin/sh
# Installs the Debian packages named on the command line that are missing, where that is allowed. Never fails:
# what needs them is skipped, and says so.
missing=""
for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo -n"; else
    echo "setup: these Debian packages are missing and need root:$missing; tests that use them are skipped" >&2
    exit 0
fi
echo "setup: installing the Debian packages$missing" >&2
# shellcheck disable=SC2086  # the list is words
$as_root apt-get update -qq >/dev/null 2>&1
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    echo "setup: apt-get could not install$missing; tests that use them are skipped" >&2
exit 0
