"""stonechat beside llama.cpp on this machine, in one interleaved run: `make peers`.

    python benchmarks/peers.py CHECKPOINT.gguf [--runs 5] [--threads 1,2] [--json]

All get the same model (llama.cpp as Q8_0 and Q4_0, stonechat as `pi` bundles of int8 and int4), the same 64 prompt
tokens, and make 128 tokens greedily, with room for 256 positions. Every measurement is a process of its own; they take
turns, so that the machine's moods reach all, and what counts is the ratio. llama-cpp-python is built from source for
this very CPU in an environment of its own, which takes several minutes the first time.
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

from bytecode import with_bytecode

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
    peer, files = set_up_llama_cpp(args.checkpoint)
    bundles = {weights: convert(args.checkpoint, weights) for weights in ("int8", "int4")}
    results = {}
    for threads in map(int, args.threads.split(",")):
        ours = [sys.executable, "-m", "toolkit.bench"]
        work = [str(PROMPT), str(NEW), str(threads)]
        contestants = {f"stonechat {name}": [*ours, str(path), *work, ""] for name, path in bundles.items()}
        contestants |= {f"llama.cpp {name}": [*peer, str(path), *work, str(CONTEXT)] for name, path in files.items()}
        results[threads] = measure(contestants, args.runs)
        if not args.json:
            print_table(threads, results[threads], args.runs)
    if args.json:
        print(json.dumps(results, indent=1))


def set_up_llama_cpp(checkpoint: Path) -> tuple[list[str], dict[str, Path]]:
    """Build llama-cpp-python, and its files, unless they are there; returns the worker's command, and files by type."""
    python = str(VENV / "bin" / "python")
    if not (VENV / "ready").exists():
        print("building llama-cpp-python for this CPU; this takes several minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        environment = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        command = [python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"]
        subprocess.run(command, env=environment, check=True)
        (VENV / "ready").touch()
    worker = [python, str(ROOT / "benchmarks" / "llama_cpp_worker.py")]
    files = {}
    for name in ("Q8_0", "Q4_0"):
        files[name] = BUILD / f"{checkpoint.stem}.{name}.gguf"
        if not files[name].exists():
            BUILD.mkdir(exist_ok=True)
            command = [*worker, "quantize", str(checkpoint), str(files[name]), name]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return worker, files


def convert(checkpoint: Path, weights: str) -> Path:
    """A bundle with the context of the race."""
    bundle = BUILD / f"peers-{CONTEXT}-{weights}"
    if not (bundle / "manifest.json").exists():
        command = [sys.executable, "-m", "toolkit", "convert", str(checkpoint), "--profile", "pi"]
        command += ["--weights", weights]
        subprocess.run([*command, "--context", str(CONTEXT), "-o", bundle], check=True, cwd=ROOT, stdout=sys.stderr)
    return bundle


def measure(contestants: dict[str, list[str]], runs: int) -> dict[str, list[dict[str, float]]]:
    """`runs` runs of each, in turns, after one of each that warms the caches."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    environment = with_bytecode()
    for i in range(runs + 1):
        for name, command in contestants.items():
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
            if done.returncode != 0:
                sys.exit(f"{name} failed: {done.stderr.strip()[-500:]}")
            if i > 0:
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def print_table(threads: int, results: dict[str, list[dict[str, Any]]], runs: int) -> None:
    """Medians with spread, and for each of ours the median of its ratios to each of theirs, run by run."""
    print(f"\n{threads} thread{'s' * (threads > 1)}, {PROMPT} prompt tokens, {NEW} new, medians of {runs} (min to max)")
    print(f"{'':24}" + "".join(f"{name:>26}" for name in results))
    for figure, (label, unit, _) in FIGURES.items():
        cells = []
        for runs_of_one in results.values():
            values = [run[figure] for run in runs_of_one]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"{f'{label}, {unit}':<24}" + "".join(f"{cell:>26}" for cell in cells))
    ours = [name for name in results if name.startswith("stonechat")]
    theirs = [name for name in results if name not in ours]
    for one in ours:
        for other in theirs:
            ratios = []
            for figure, (label, _, _) in FIGURES.items():
                pairs = zip(results[one], results[other], strict=True)
                each = [a[figure] / b[figure] for a, b in pairs]
                ratios.append(f"{label} {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")
            print(f"{one} / {other}: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
