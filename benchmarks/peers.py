"""stonechat beside llama.cpp on this machine, in one interleaved run: `make peers`.

    python benchmarks/peers.py CHECKPOINT.gguf [--runs 5] [--threads 1,2] [--json]

Both get the same model (llama.cpp as Q8_0, stonechat as a `pi` bundle), the same 64 prompt tokens, and make 128
tokens greedily, with room for 256 positions. Every measurement is a process of its own; the two take turns, so that
the machine's moods reach both, and what counts is the ratio. llama-cpp-python is built from source for this very
CPU in an environment of its own, which takes several minutes the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
VENV = ROOT / ".venv-peers"
PROMPT, NEW = 64, 128
CONTEXT = 256
# figure -> (label, unit, True if more is better)
FIGURES = {
    "decode_tokens_per_s": ("decode", "tok/s", True),
    "prefill_tokens_per_s": ("prefill", "tok/s", True),
    "peak_rss_mb": ("peak memory", "MB", False),
    "ttft_ms": ("start to first token", "ms", False),
}


def main() -> None:
    """Set up, measure, print."""
    parser = argparse.ArgumentParser(description="stonechat beside llama.cpp on this machine")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    peer, q8 = set_up_llama_cpp(args.checkpoint)
    bundle = convert(args.checkpoint)
    results = {}
    for threads in map(int, args.threads.split(",")):
        contestants = {
            "stonechat": [sys.executable, "-m", "toolkit.bench", str(bundle), str(PROMPT), str(NEW), str(threads), ""],
            "llama.cpp Q8_0": [*peer, str(q8), str(PROMPT), str(NEW), str(threads), str(CONTEXT)],
        }
        results[threads] = measure(contestants, args.runs)
        if not args.json:
            print_table(threads, results[threads], args.runs)
    if args.json:
        print(json.dumps(results, indent=1))


def set_up_llama_cpp(checkpoint: Path) -> tuple[list[str], Path]:
    """Build llama-cpp-python, and the Q8_0 file, unless they are there; returns the worker's command and the file."""
    python = VENV / "bin" / "python"
    if not (VENV / "ready").exists():
        print("building llama-cpp-python for this CPU; this takes several minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        environment = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        command = [python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"]
        subprocess.run(command, env=environment, check=True)
        (VENV / "ready").touch()
    worker = [str(python), str(ROOT / "benchmarks" / "llama_cpp_worker.py")]
    q8 = BUILD / f"{checkpoint.stem}.Q8_0.gguf"
    if not q8.exists():
        BUILD.mkdir(exist_ok=True)
        subprocess.run([*worker, "quantize", checkpoint, q8], check=True, stderr=subprocess.DEVNULL)
    return worker, q8


def convert(checkpoint: Path) -> Path:
    """A bundle with the context of the race."""
    bundle = BUILD / f"peers-{CONTEXT}"
    if not (bundle / "manifest.json").exists():
        command = [sys.executable, "-m", "toolkit", "convert", checkpoint, "--profile", "pi"]
        subprocess.run([*command, "--context", str(CONTEXT), "-o", bundle], check=True, cwd=ROOT, stdout=sys.stderr)
    return bundle


def measure(contestants: dict[str, list[str]], runs: int) -> dict[str, list[dict[str, float]]]:
    """`runs` runs of each, in turns, after one of each that warms the caches."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for i in range(runs + 1):
        for name, command in contestants.items():
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode != 0:
                sys.exit(f"{name} failed: {done.stderr.strip()[-500:]}")
            if i > 0:
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def print_table(threads: int, results: dict[str, list[dict[str, Any]]], runs: int) -> None:
    """Medians with spread, and the median of the ratios run by run."""
    ours, theirs = results.values()
    print(f"\n{threads} thread{'s' * (threads > 1)}, {PROMPT} prompt tokens, {NEW} new, medians of {runs} (min to max)")
    names = list(results)
    print(f"{'':22}{names[0]:>26}{names[1]:>26}{'ratio':>8}")
    for figure, (label, unit, _) in FIGURES.items():
        cells = []
        for runs_of_one in results.values():
            values = [run[figure] for run in runs_of_one]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        ratio = statistics.median(a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True))
        print(f"{f'{label}, {unit}':<22}{cells[0]:>26}{cells[1]:>26}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
