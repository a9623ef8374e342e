"""Where the time from process start to the first token goes: `python benchmarks/startup.py BUNDLE [--runs 5]`.

Each run is a process of its own, after one that warms the caches. Medians, in milliseconds since the step before: of
the clock, and of the processor in all threads, which is the one to read on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bytecode import with_bytecode

ROOT = Path(__file__).resolve().parents[1]
PROMPT = 64  # tokens


def main() -> None:
    """Measure and print, or be one of the measured processes."""
    parser = argparse.ArgumentParser(description="from process start to the first token, step by step")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(steps_of_this_process(args.bundle, args.threads)))
        return
    command = [sys.executable, __file__, str(args.bundle), "--threads", str(args.threads), "--once"]
    runs: list[dict[str, tuple[float, float]]] = []
    for i in range(args.runs + 1):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=with_bytecode())
        if i > 0:
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    totals = [statistics.median(sum(step[kind] for step in run.values()) for run in runs) for kind in (0, 1)]
    print(f"{'':<20}{'clock, ms':>12}{'share':>28}{'processor, ms':>16}{'share':>8}")
    for step in runs[0]:
        clock, cpu = ([run[step][kind] for run in runs] for kind in (0, 1))
        middle, middle_cpu = statistics.median(clock), statistics.median(cpu)
        spread = f"({min(clock):.0f} to {max(clock):.0f})"
        shares = f"{middle / totals[0]:8.0%}", f"{middle_cpu / totals[1]:8.0%}"
        print(f"{step:<20}{middle:12.0f}{spread:>20}{shares[0]}{middle_cpu:16.0f}{shares[1]}")
    print(f"{'all':<20}{totals[0]:12.0f}{'':28}{totals[1]:16.0f}")


def steps_of_this_process(path: Path, threads: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of each step: of the clock, and of the processor."""
    steps: dict[str, tuple[float, float]] = {}
    last = since_start_ms(), time.process_time() * 1e3
    steps["interpreter"] = last

    def done(step: str) -> None:
        nonlocal last
        now = since_start_ms(), time.process_time() * 1e3
        steps[step], last = (now[0] - last[0], now[1] - last[1]), now

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as machine.numpy_without_threads, of which this is a part
    import numpy  # noqa: F401  # what it costs is the question

    done("numpy")
    from device_runtime.engine.backends import open_backend
    from device_runtime.engine.language_model import LanguageModel
    from device_runtime.engine.prompts import tokenizer_of
    from device_runtime.update.slots import open_bundle

    done("our modules")
    bundle = open_bundle(path)
    done("bundle")
    tokenizer = tokenizer_of(bundle)
    done("tokenizer")
    from device_runtime.engine.backends.litert_library import load_without_gpu

    load_without_gpu()
    from ai_edge_litert import compiled_model  # noqa: F401

    done("LiteRT")
    backend = open_backend(bundle, None, threads)
    done("graph")
    model = LanguageModel(bundle, backend, tokenizer)
    model.measure([i * 37 % (model.manifest.graph.vocabulary - 1) + 1 for i in range(PROMPT)], 1)
    done(f"{PROMPT} tokens")
    model.close()
    return steps


def since_start_ms() -> float:
    """Since this process began (proc(5), field 22 of stat)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")) * 1e3


if __name__ == "__main__":
    main()
