"""How long runs of a `pi` graph take by the tokens that they take in.

    python benchmarks/runs.py BUNDLE [--runs 20] [--tokens 1 5 34 56] [--rows 5]

Processor time, one thread, at position 100, the logits after each token or the last `--rows`: the least and the median
of the runs, and the median against that of the first number of tokens, one. It decides how many tokens a run should
have (device_runtime/machine/kernels.py), whether guesses pay with int4 weights, and how likely they should be. The last
line is a run for one token that the kv_cache does not keep.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

TOKENS = (1, 2, 3, 4, 5, 6, 8, 16, 32, 64)
POSITION = 100


def main() -> None:
    """Measure the sizes in turn, and print a table."""
    parser = argparse.ArgumentParser(description="runs of a graph by their tokens")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--rows", type=int, default=64, help="after so many of the last tokens logits are read")
    args = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from device_runtime.bundle.folder import Bundle
    from device_runtime.engine.backends import open_backend

    backend = open_backend(Bundle.open(args.bundle), None, 1)
    tokens = [i * 37 % 300 + 1 for i in range(POSITION)]
    backend.prefill(tokens)
    works = {str(count): (count, range(max(0, count - args.rows), count)) for count in args.tokens} | {
        "look": (1, None)
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for run in range(args.runs + 1):  # the first one makes buffers
        for name, (count, rows) in works.items():
            backend.rewind(POSITION)
            started_s = time.process_time()
            if rows is None:
                backend.look_ahead(tokens[:count], POSITION)
            else:
                backend.decode_several(tokens[:count], rows)
            if run:
                times[name].append((time.process_time() - started_s) * 1e3)
    one = statistics.median(times[str(args.tokens[0])])
    print(f"{'tokens':>8}{'least, ms':>12}{'median, ms':>12}{'of one token':>14}")
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name:>8}{min(found):>12.1f}{median:>12.1f}{median / one:>14.2f}")
    backend.close()


if __name__ == "__main__":
    main()
