"""Does a step's cost follow the tokens in use, or the capacity?

    python benchmarks/windows.py CHECKPOINT [--rounds 7]

Converts the checkpoint with a capacity of 256 and of 4,096 positions and measures decode on one thread around
position 200, in turns. With growing windows the two should be alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Backend, open_backend

BUILD = Path(__file__).resolve().parents[1] / "build"
POSITION, STEPS = 200, 40


def main() -> None:
    """Convert if needed, measure, print."""
    parser = argparse.ArgumentParser(description="decode speed at position 200, by capacity")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    backends = {capacity: open_backend(bundle(args.checkpoint, capacity), threads=1) for capacity in (256, 4096)}
    for backend in backends.values():
        backend.prefill([i * 37 % 10_000 + 1 for i in range(POSITION - backend.position)])
    rates: dict[int, list[float]] = {capacity: [] for capacity in backends}
    for _ in range(args.rounds):
        for capacity, backend in backends.items():
            rates[capacity].append(decode_rate(backend))
    for capacity, values in rates.items():
        print(
            f"capacity {capacity:>5}  {statistics.median(values):6.1f} tok/s ({min(values):.1f} to {max(values):.1f})"
        )
    ratio = statistics.median(large / small for small, large in zip(rates[256], rates[4096], strict=True))
    print(f"ratio           {ratio:6.2f}  (4,096 over 256, at positions {POSITION} to {POSITION + STEPS}, one thread)")


def bundle(checkpoint: Path, capacity: int) -> Bundle:
    """A bundle with this context; weights are only rounded, which changes no speed."""
    folder = BUILD / f"capacity-{capacity}"
    if (folder / "manifest.json").exists():
        return Bundle.open(folder)
    return convert(open_checkpoint(checkpoint), folder, Options("pi", context=capacity, fast=True))


def decode_rate(backend: Backend) -> float:
    """Tokens a second from position `POSITION` on."""
    backend.rewind(POSITION)
    started_s = time.perf_counter()
    for token in range(STEPS):
        backend.decode(token + 1)
    return STEPS / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main()
