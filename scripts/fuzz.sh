#!/usr/bin/env bash
# Fuzz the readers of model images, and what comes over a board's serial line, on this machine: each target in tests/fuzz/ for FUZZ_SECONDS (600).
# What is found new stays in build/fuzz/TARGET/; an input that crashes is written there as crash-….
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-600}
includes=$(find device_runtime/micro -name '*.h' -exec dirname {} \; | sort -u | sed 's/^/-I/')
sources=$(find device_runtime/micro -name '*.c' -not -path '*/ports/*' -not -name main.c -not -name boot.c)
for file in tests/fuzz/*.c; do
    target=$(basename "$file" .c)
    [ "$target" = replay ] && continue
    mkdir -p "build/fuzz/$target"
    # shellcheck disable=SC2086  # lists of words
    clang -std=c99 -g -O1 -ffp-contract=off -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        $includes "$file" $sources -lm -o "build/fuzz/$target.bin"
    echo "fuzzing $target for $seconds s" >&2
    "build/fuzz/$target.bin" -max_total_time="$seconds" -max_len=65536 -artifact_prefix="build/fuzz/$target/" \
        "build/fuzz/$target" "tests/fuzz/corpus/$target"
done
