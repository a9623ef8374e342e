"""How long runs of a `pi` graph take by the tokens that they take in: `python benchmarks/runs.py BUNDLE [--runs 20]`.

Processor time, one thread, at position 100, the logits after each token: the least and the median of the runs, and the
median against that of one token. It decides how many tokens a run should have (device_runtime/machine/kernels.py), and
whether guesses pay with int4 weights.
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
    args = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from device_runtime.bundle.folder import Bundle
    from device_runtime.engine.backends import open_backend

    backend = open_backend(Bundle.open(args.bundle), None, 1)
    tokens = [i * 37 % 300 + 1 for i in range(POSITION)]
    backend.prefill(tokens)
    times: dict[int, list[float]] = {count: [] for count in TOKENS}
    for run in range(args.runs + 1):  # the first one makes buffers
        for count in TOKENS:
            backend.rewind(POSITION)
            started_s = time.process_time()
            backend.decode_several(tokens[:count])
            if run:
                times[count].append((time.process_time() - started_s) * 1e3)
    one = statistics.median(times[1])
    print(f"{'tokens':>8}{'least, ms':>12}{'median, ms':>12}{'of one token':>14}")
    for count, found in times.items():
        median = statistics.median(found)
        print(f"{count:>8}{min(found):>12.1f}{median:>12.1f}{median / one:>14.2f}")
    backend.close()


if __name__ == "__main__":
    main()
