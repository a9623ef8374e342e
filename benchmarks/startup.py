"""Where the time from process start to the first token goes: `python benchmarks/startup.py BUNDLE [--runs 5]`.

Each run is a process of its own, after one that warms the caches. Medians, in milliseconds: when a step begins, how
long it takes by the clock, and of the processor in its own thread, which is the one to read on a busy machine. Steps of
the thread `graph` overlap with those of `main`: what a start takes is the end of the last step, not the sum.

    python benchmarks/startup.py BUNDLE --against TREE

runs `stonechat bench` of this tree and of another one (a git worktree) in turns, and prints both starts and their
ratio.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROMPT = 64  # tokens
Step = tuple[str, str, float, float, float]  # thread, name, begins, takes, of the processor


def main() -> None:
    """Measure and print, or be one of the measured processes, which load nothing that an answer does not need."""
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(steps_of_this_process(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    import argparse

    parser = argparse.ArgumentParser(description="from process start to the first token, step by step")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--against", metavar="TREE", type=Path, help="another checkout of stonechat")
    args = parser.parse_args()
    if args.against:
        compare([ROOT, args.against.resolve()], args.bundle.resolve(), args.runs, args.threads)
    else:
        print_steps(args.bundle.resolve(), args.runs, args.threads)


def print_steps(bundle: Path, runs: int, threads: int) -> None:
    """The table of one tree."""
    import statistics
    import subprocess

    from bytecode import with_bytecode

    command = [sys.executable, __file__, "--once", str(bundle), str(threads)]
    found: list[list[Step]] = []
    for i in range(runs + 1):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=with_bytecode())
        if i > 0:
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'thread':<8}{'':<26}{'begins, ms':>12}{'takes, ms':>24}{'processor, ms':>16}")
    names = [(thread, name) for thread, name, *_ in found[0]]
    table = [{(thread, name): figures for thread, name, *figures in run} for run in found]
    for thread, name in names:
        begins, takes, processor = ([run[thread, name][i] for run in table] for i in range(3))
        spread = f"({min(takes):.0f} to {max(takes):.0f})"
        middle = [statistics.median(values) for values in (begins, takes, processor)]
        print(f"{thread:<8}{name:<26}{middle[0]:12.0f}{middle[1]:9.0f}{spread:>15}{middle[2]:16.0f}")
    ends = statistics.median(max(begins + takes for begins, takes, _ in run.values()) for run in table)
    of_all = statistics.median(sum(figures[2] for figures in run.values()) for run in table)
    print(f"{'':<8}{'first token after':<26}{ends:12.0f}{'':24}{of_all:16.0f}")


def steps_of_this_process(path: Path, threads: int) -> list[Step]:
    """What happened here, in the order in which it ended."""
    began_s = time.perf_counter() - since_start_ms() / 1e3
    steps: list[Step] = []
    last: dict[str, tuple[float, float]] = {"main": (0.0, 0.0)}

    def now() -> tuple[float, float]:
        return (time.perf_counter() - began_s) * 1e3, time.thread_time() * 1e3

    def thread() -> str:
        return "main" if threading.current_thread() is threading.main_thread() else threading.current_thread().name

    def done(step: str) -> None:
        before, after = last.get(thread(), (0.0, 0.0)), now()
        steps.append((thread(), step, before[0], after[0] - before[0], after[1] - before[1]))
        last[thread()] = after

    def watched(function: Callable[..., Any], step: str) -> Callable[..., Any]:
        """The same function, which is a step of a thread that begins with it if it has none yet."""

        def call(*arguments: Any, **options: Any) -> Any:
            last.setdefault(thread(), now())
            result = function(*arguments, **options)
            done(step)
            return result

        return call

    def watch(owner: Any, name: str, step: str) -> None:
        """Where a module or class calls it by this name, it is a step."""
        setattr(owner, name, watched(getattr(owner, name), step))

    done("interpreter")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as machine.numpy_without_threads, of which this is a part
    from device_runtime.engine import opening
    from device_runtime.engine.backends import compiled_model, litert

    done("modules of the opening")
    watch(opening, "open_bundle", "bundle")
    watch(opening, "begin_opening", "LiteRT's library")
    watch(litert.CompiledModel, "__init__", "graph")
    watch(compiled_model, "populate_mapped_file", "pages of the weights")
    names = vars(opening)
    read = names["tokenizer_of"]

    def tokenizer_of(bundle: Any) -> Any:
        done("numpy, other modules")
        tokenizer = read(bundle)
        done("tokenizer")
        return tokenizer

    names["tokenizer_of"] = tokenizer_of
    joined = compiled_model.GraphOpening.finish

    def finish(self: Any, prepare: Any) -> Any:
        done("modules of the backend")
        self._thread.join()
        done("waits for the graph")
        return joined(self, prepare)

    compiled_model.GraphOpening.finish = finish  # type: ignore[method-assign]
    model = opening.open_language_model(path, threads=threads)
    done("buffers")
    model.measure([i * 37 % (model.manifest.graph.vocabulary - 1) + 1 for i in range(PROMPT)], 1)
    done(f"{PROMPT} tokens")
    model.close()
    return steps


def compare(trees: list[Path], bundle: Path, runs: int, threads: int) -> None:
    """Starts of two trees in turns."""
    import statistics
    import subprocess

    from bytecode import with_bytecode

    command = [sys.executable, "-m", "toolkit.bench", str(bundle), str(PROMPT), "2", str(threads), ""]
    found: dict[Path, list[float]] = {tree: [] for tree in trees}
    for i in range(runs + 1):
        for tree in trees:
            environment = with_bytecode() | {"PYTHONPYCACHEPREFIX": str(tree / "build" / "bytecode")}
            done = subprocess.run(command, capture_output=True, text=True, cwd=tree, check=True, env=environment)
            if i > 0:
                found[tree].append(json.loads(done.stdout.splitlines()[-1])["ttft_ms"])
    for tree, starts in found.items():
        print(f"{statistics.median(starts):7.0f} ms ({min(starts):.0f} to {max(starts):.0f})  {tree.name}")
    ratios = [here / there for here, there in zip(*found.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def since_start_ms() -> float:
    """Since this process began (proc(5), field 22 of stat)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")) * 1e3


if __name__ == "__main__":
    main()
