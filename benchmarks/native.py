"""The C engine beside the other ways to run a model on this machine, in one interleaved run.

    python benchmarks/native.py MICRO_BUNDLE PI_BUNDLE [--int4 MICRO_BUNDLE]

Each round starts a fresh process for each way: it takes in a short prompt, decodes, and reports tokens a second of its
own processor time and the peak of its own memory. Medians over the rounds are printed, with the ratios that matter:
decode against the pi bundle, and memory against LiteRT's Interpreter, which runs the same micro graph. One thread
everywhere. At the end, what the engine and TFLite Micro take on a board besides the kv_cache.
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
WAYS = {"native": "micro", "litert": "micro", "compiled": "pi", "int4": "int4"}  # name -> argument with its bundle


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
    open_s = time.perf_counter() - started_s
    opened_s = time.process_time()  # other processes do not count
    logits = runner.prefill([100 + i for i in range(PROMPT)])
    decode_s = time.process_time()
    for _ in range(new):
        logits = runner.decode(int(logits.argmax()))
    finished_s = time.process_time()
    return {
        "open_s": open_s,
        "prefill_tok_s": PROMPT / (decode_s - opened_s),
        "decode_tok_s": new / (finished_s - decode_s),
        **memory_kib(),
    }


def on_a_board(bundle: Path) -> str:
    """RAM besides the kv_cache, where pointers have four bytes: the C engine's arena, and TFLite Micro's."""
    from device_runtime.bundle.folder import Bundle
    from device_runtime.bundle.manifest import IMAGE
    from device_runtime.machine.memory import at_pointer_size
    from device_runtime.micro.library import CEngine

    manifest = Bundle.open(bundle).manifest
    if manifest.arena is None:
        return "TFLite Micro does not run this bundle"
    measured = at_pointer_size(manifest.arena, manifest.counts["micro"], 4)
    ours, theirs = CEngine(bundle / IMAGE).needs.arena_bytes, measured.total_bytes - measured.kv_cache_bytes
    return f"RAM besides the kv_cache, engine {ours:,} bytes : TFLite Micro {theirs:,}  {ours / theirs:.3f}"


def main() -> None:
    """Rounds of fresh processes, one way after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("micro", type=Path)
    parser.add_argument("pi", type=Path)
    parser.add_argument("--int4", type=Path, help="the same model with int4 weights, which runs in the C engine only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        bundle = getattr(args, WAYS[args.one])
        print(json.dumps(measure(bundle, "native" if args.one == "int4" else args.one, args.new)))
        return
    results: dict[str, list[dict[str, float]]] = {way: [] for way, bundle in WAYS.items() if getattr(args, bundle)}
    for _ in range(args.rounds):
        for way in results:
            command = [sys.executable, __file__, str(args.micro), str(args.pi), "--new", str(args.new), "--one", way]
            command += ["--int4", str(args.int4)] if args.int4 else []
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
    native, litert, pi = medians["native"], medians["litert"], medians["compiled"]
    print(f"decode, native : pi           {native['decode_tok_s'] / pi['decode_tok_s']:.2f}")
    print(f"decode, native : Interpreter  {native['decode_tok_s'] / litert['decode_tok_s']:.2f}")
    if args.int4:
        print(f"decode, int4 : int8           {medians['int4']['decode_tok_s'] / native['decode_tok_s']:.2f}")
    print(f"peak memory, native : Interpreter  {native['peak_kib'] / litert['peak_kib']:.2f}")
    print(f"of it in no file, native : Interpreter  {native['anonymous_kib'] / litert['anonymous_kib']:.2f}")
    print(on_a_board(args.micro))


if __name__ == "__main__":
    main()
