"""The C engine beside the other ways to run a model on this machine, in one interleaved run.

    python benchmarks/native.py MICRO_BUNDLE PI_BUNDLE

Each round starts a fresh process for each way: it takes in a short prompt, decodes, and reports tokens a second and the
peak of its own memory. Medians over the rounds are printed, with the ratios that matter: decode against the pi bundle,
and memory against LiteRT's Interpreter, which runs the same micro graph. One thread everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = 16  # tokens
WAYS = {"native": "micro", "litert": "micro", "compiled": "pi"}


def memory_kib() -> dict[str, int]:
    """Of this process: the peak, and what of its memory now lies in no file."""
    status = Path("/proc/self/status").read_text()
    return {
        name: int(re.search(rf"{key}:\s+(\d+)", status)[1])  # type: ignore[index]
        for name, key in (("peak_kib", "VmHWM"), ("anonymous_kib", "RssAnon"))
    }


def measure(bundle: Path, backend: str, new: int) -> dict[str, float]:
    """In this process."""
    from device_runtime.bundle.folder import Bundle
    from device_runtime.engine.backends import open_backend

    started_s = time.perf_counter()
    runner = open_backend(Bundle.open(bundle), backend, threads=1)
    opened_s = time.perf_counter()
    logits = runner.prefill([100 + i for i in range(PROMPT)])
    decode_s = time.perf_counter()
    for _ in range(new):
        logits = runner.decode(int(logits.argmax()))
    finished_s = time.perf_counter()
    return {
        "open_s": opened_s - started_s,
        "prefill_tok_s": PROMPT / (decode_s - opened_s),
        "decode_tok_s": new / (finished_s - decode_s),
        **memory_kib(),
    }


def main() -> None:
    """Rounds of fresh processes, one way after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("micro", type=Path)
    parser.add_argument("pi", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.pi if WAYS[args.one] == "pi" else args.micro, args.one, args.new)))
        return
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, str(args.micro), str(args.pi), "--new", str(args.new), "--one", way]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            results[way].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in results.items()
    }
    for way, found in medians.items():
        print(
            f"{way:9} decode {found['decode_tok_s']:6.1f} tok/s   prefill {found['prefill_tok_s']:6.1f} tok/s   "
            f"open {found['open_s']:5.2f} s   peak {found['peak_kib'] / 1024:6.1f} MiB   "
            f"anonymous {found['anonymous_kib'] / 1024:6.1f} MiB"
        )
    native, litert, pi = (medians[way] for way in WAYS)
    print(f"decode, native : pi           {native['decode_tok_s'] / pi['decode_tok_s']:.2f}")
    print(f"decode, native : Interpreter  {native['decode_tok_s'] / litert['decode_tok_s']:.2f}")
    print(f"peak memory, native : Interpreter  {native['peak_kib'] / litert['peak_kib']:.2f}")


if __name__ == "__main__":
    main()
