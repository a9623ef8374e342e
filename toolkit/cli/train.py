"""`stonechat train`: a task file in, a bundle for that one job out."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json, require_extra, whole_number

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train a small model for one task, and convert it to a bundle"
_THREADS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat train`."""
    parser.add_argument("task", metavar="TASK", type=Path, help="a task.yaml, or a folder with one")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="where the bundle goes")
    parser.add_argument("--seed", metavar="N", type=whole_number(0), default=0, help="the same seed, the same bundle")
    parser.add_argument("--steps", metavar="N", type=whole_number(1), default=4000, help="(default: 4000)")
    parser.add_argument("--batch", metavar="N", type=whole_number(1), default=128, help="cases a step (default: 128)")
    parser.add_argument("--cases", metavar="N", type=whole_number(100), help="generated cases (default: the task's)")
    parser.add_argument(
        "--profile",
        choices=["micro", "pi"],
        default="micro",
        help="micro: any board (default); pi: 64-bit Linux boards",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=whole_number(1, 256),
        default=_THREADS,
        help=f"CPU threads; sums differ in their last bits with it (default: {_THREADS})",
    )
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="stop when the weights are trained: another machine can go on from the folder DIR.training",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train."""
    import json
    import os
    import time

    os.environ["NPROC"] = str(args.threads)  # what JAX takes its number of threads from, whatever the machine has
    # A GPU adds in the order in which results come, unless this is set; and takes most of its memory at once.
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from device_runtime.tasks.file import load

    task = load(args.task)
    try:
        from toolkit.train.pipeline import train
        from toolkit.train.report import write_report
        from toolkit.train.weights import Settings, train_weights, work_folder
    except ImportError as error:
        raise require_extra("train", error) from None
    from toolkit.progress import ProgressBar

    settings = Settings(args.seed, args.steps, args.batch, args.cases, args.profile)
    started_s = time.monotonic()
    with ProgressBar() as bar:
        if args.weights_only:
            train_weights(task, work_folder(args.output), settings, bar.update)
            print(f"{work_folder(args.output)}: trained; `stonechat train` without --weights-only goes on from there")
            return 0
        bundle = train(task, args.output, settings, bar.update)
    page = write_report(bundle, task)
    seconds = time.monotonic() - started_s
    purpose = bundle.manifest.purpose or {}
    test = purpose["report"]["test"]
    if args.json:
        result = {"bundle": str(args.output), "report": str(page), "seconds": round(seconds, 1), "test": test}
        print(json.dumps(result, ensure_ascii=False))
        return 0
    size = sum(entry.size_bytes for entry in bundle.manifest.files.values())
    print(f"{args.output}: {task.name}, {size / 1e6:.2f} MB, {seconds / 60:.1f} min; see {page}")
    for name, entry in test["fields"].items():
        print(f"{name:<16} {entry['accuracy']:7.1%}  ({entry['low']:.1%} to {entry['high']:.1%} of {entry['count']})")
    print(f"{'well-formed':<16} {test['well_formed']:7.1%}")
    return 0
