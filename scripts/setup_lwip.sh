#!/bin/sh
# Fetches the sources of lwIP (Debian's source package, BSD-3-Clause) into build/lwip, for firmware that is on MQTT by
# itself. apt's own lists and settings stay as they are. Never fails: what needs it is skipped, and says so.
cd "$(dirname "$0")/.." || exit 0
[ -f build/lwip/src/apps/mqtt/mqtt.c ] && exit 0
command -v apt-get >/dev/null || { echo "setup: lwIP comes with apt; tests that use it are skipped" >&2; exit 0; }
mkdir -p build
work=$(mktemp -d build/lwip-XXXXXX) || exit 0
trap 'rm -rf "$work"' EXIT
here=$PWD/$work
mkdir -p "$here/lists/partial"
# the same archives as for packages, as far as they say which they are; their sources are beside them
{ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed -n 's/^deb /deb-src /p'
} > "$here/sources.list"
cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed 's/^Types:.*/Types: deb-src/' > "$here/lwip.sources"
mkdir "$here/parts" && mv "$here/lwip.sources" "$here/parts/"
options="-o Dir::Etc::SourceList=$here/sources.list -o Dir::Etc::SourceParts=$here/parts -o Dir::State::Lists=$here/lists"
echo "setup: fetching the sources of lwIP" >&2
# shellcheck disable=SC2086  # the options are words
if apt-get $options update -qq >/dev/null 2>&1 && (cd "$work" && apt-get $options source --download-only -qq lwip >/dev/null 2>&1); then
    tar -xf "$work"/lwip_*.orig.tar.* -C "$work" && rm -rf build/lwip && mv "$work"/lwip-*/ build/lwip
fi
[ -f build/lwip/src/apps/mqtt/mqtt.c ] || echo "setup: the sources of lwIP could not be fetched; tests that use them are skipped" >&2
exit 0
