#!/usr/bin/env bash
# Fuzz the readers of model images, and what comes over a board's serial line, on this machine: each target in
# tests/fuzz/, or those named, for FUZZ_SECONDS (600).
#
#     scripts/fuzz.sh [TARGET...]
#
# What is found new stays in build/fuzz/TARGET/; an input that crashes is written there as crash-….
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-600}
includes=$(find "$PWD/device_runtime/micro" -name '*.h' -exec dirname {} \; | sort -u | sed 's/^/-I/')
sources=$(find "$PWD/device_runtime/micro" -name '*.c' -not -path '*/ports/*' -not -name main.c -not -name boot.c)
flags="-std=c99 -g -O1 -ffp-contract=off -fno-sanitize-recover=all $includes"
[ $# -gt 0 ] || set -- $(find tests/fuzz -name '*.c' -not -name replay.c -exec basename {} .c \; | sort)
rm -rf build/fuzz/objects && mkdir -p build/fuzz/objects
# shellcheck disable=SC2086  # lists of words
(cd build/fuzz/objects && clang $flags -fsanitize=fuzzer-no-link,address,undefined -c $sources)
for target; do
    mkdir -p "build/fuzz/$target"
    # shellcheck disable=SC2086  # lists of words
    clang $flags -fsanitize=fuzzer,address,undefined "tests/fuzz/$target.c" build/fuzz/objects/*.o -lm \
        -o "build/fuzz/$target.bin"
    echo "fuzzing $target for $seconds s" >&2
    "build/fuzz/$target.bin" -max_total_time="$seconds" -max_len=65536 -artifact_prefix="build/fuzz/$target/" \
        "build/fuzz/$target" "tests/fuzz/corpus/$target"
done
