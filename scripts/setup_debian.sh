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
$as_root apt-get update -qq >/dev/null 2>&1
install() {  # waits for another apt that is at work, as after a boot; says why it failed
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
        --no-install-recommends "$@" 2>&1 >/dev/null | grep '^E:' >&2
    dpkg -s "$@" >/dev/null 2>&1
}
# shellcheck disable=SC2086  # the list is words
install $missing && exit 0
for package in $missing; do  # one that there is not must not cost the others
    install "$package" || echo "setup: apt-get could not install $package; tests that use it are skipped" >&2
done
exit 0
