"""`stonechat train`: a task file in, a bundle for that one job out."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json, require_extra, share, whole_number

if TYPE_CHECKING:
    from device_runtime.bundle.folder import Bundle
    from device_runtime.tasks.file import Task
    from toolkit.progress import ProgressBar

__all__ = ["HELP", "add_arguments", "run"]

_TIMED = 50  # inputs that say what an answer costs here

HELP = "train a small model for one task, and convert it to a bundle"
_THREADS = 2
_STEPS, _BATCH = 4000, 128
_FEWEST = 100  # generated cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat train`."""
    parser.add_argument(
        "tasks",
        metavar="TASK",
        type=Path,
        nargs="+",
        help="a task.yaml, or a folder with one; tune takes several",
    )
    parser.add_argument(
        "--kind",
        choices=["tiny", "classify", "tune", "distil"],
        help="tune: a checkpoint's upper layers, or a sentence encoder (with --from); distil: the task's kind, from "
        "the distributions of the teacher that its `distil` names; the others are networks made for the task "
        "(default: the task's)",
    )
    parser.add_argument(
        "--from",
        metavar="CHECKPOINT",
        type=Path,
        dest="checkpoint",
        help="what tune begins with: GGUF or folder of a model that writes, or a sentence encoder's folder",
    )
    parser.add_argument(
        "--further",
        metavar="BUNDLE",
        type=Path,
        help="of tune: go on from the weights that the training of this bundle ended with (its BUNDLE.training), with "
        "other cases, such as those of another --seed",
    )
    parser.add_argument(
        "--keep",
        metavar="X",
        type=share,
        help="of --further and an encoder: the share of the earlier weights in those of the new bundle, such as 0.5, "
        "which forgets less of what it had learnt (default: 0)",
    )
    parser.add_argument("--baseline", metavar="BUNDLE", type=Path, help="an untrained general model, for the report")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="where the bundle goes")
    parser.add_argument("--seed", metavar="N", type=whole_number(0), default=0, help="the same seed, the same bundle")
    parser.add_argument("--steps", metavar="N", type=whole_number(1), help="(default: 4000)")
    parser.add_argument("--batch", metavar="N", type=whole_number(1), help="cases a step (default: 128; tune: 16)")
    parser.add_argument(
        "--cases",
        metavar="[TASK=]N",
        type=_cases,
        action="append",
        default=[],
        help="generated cases (default: the task's; tune: 500, of an encoder 12,000 at most); of several tasks, TASK=N "
        "is for one of them",
    )
    parser.add_argument(
        "--epochs", metavar="N", type=whole_number(1), help="of tune: times each case (default: 6; of an encoder 1)"
    )
    parser.add_argument(
        "--rate",
        metavar="X",
        type=share,
        help="of tune: learning rate at its highest (default: 0.001; rank 0: 0.0001; of an encoder 0.0002)",
    )
    parser.add_argument(
        "--layers",
        metavar="N",
        type=whole_number(1),
        help="of tune: upper layers (default: a third; of an encoder all)",
    )
    parser.add_argument(
        "--rank", metavar="N", type=whole_number(0), help="of tune: of its factors (default: 16); 0: all weights"
    )
    parser.add_argument(
        "--profile",
        choices=["micro", "pi"],
        help="micro: any board (default, but for tune); pi: 64-bit Linux boards",
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
    parser.add_argument(
        "--afresh",
        action="store_true",
        help="throw away what an earlier training left in DIR.training, also an unfinished one of other settings",
    )
    add_json(parser)


def _cases(text: str) -> tuple[str | None, int]:
    name, equals, number = text.rpartition("=")
    return (name if equals else None), whole_number(1)(number)


def run(args: argparse.Namespace) -> int:
    """Train."""
    import os
    import time

    os.environ["NPROC"] = str(args.threads)  # what JAX takes its number of threads from, whatever the machine has
    # A GPU adds in the order in which results come, unless this is set; and takes most of its memory at once.
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from device_runtime.tasks.file import load, with_kind

    tasks = [with_kind(load(p), args.kind) if args.kind in ("tiny", "classify") else load(p) for p in args.tasks]
    _check(args, tasks)
    started_s = time.monotonic()
    try:
        from toolkit.bench import cost_of_an_answer
        from toolkit.cli.output import print_json, say, show
        from toolkit.examples.sources import all_examples
        from toolkit.progress import ProgressBar
        from toolkit.train.report import write_report

        with ProgressBar() as bar:
            bundle = _tuned(args, tasks, bar) if args.kind == "tune" else _trained(args, tasks[0], bar)
    except KeyboardInterrupt:
        if Path(f"{args.output}.training").is_dir():  # not interrupted before there is anything
            say(f"\nstonechat: the same command goes on from {args.output}.training")
        raise
    except ImportError as error:
        raise require_extra("train", error) from None
    if bundle is None:
        folder = f"{args.output}.training"
        next_step = f"{folder}: trained; `stonechat train` without --weights-only goes on from there"
        return show(args, {"training": folder}, [next_step])
    seconds = time.monotonic() - started_s
    purpose = bundle.manifest.purpose or {}
    tests = [part["report"]["test"] for part in purpose.get("tasks", [purpose])]
    costs = []
    for task in tasks:
        asked = [example.input for example in islice(all_examples(task, _TIMED, 1), _TIMED)]
        costs.append(cost_of_an_answer(bundle.path, task.name, asked) if asked else None)
    pages = [write_report(bundle, task, cost) for task, cost in zip(tasks, costs, strict=True)]
    if args.json:
        parts = zip(pages, tests, costs, strict=True)
        found = [{"report": str(page), "test": test, "an_answer": cost} for page, test, cost in parts]
        named = found[0] if len(found) == 1 else {"tasks": dict(zip([t.name for t in tasks], found, strict=True))}
        result = {"bundle": str(args.output), "seconds": round(seconds, 1), **named}
        print_json(result)
        return 0
    size = sum(entry.size_bytes for entry in bundle.manifest.files.values())
    for task, page, test in zip(tasks, pages, tests, strict=True):
        print(f"{args.output}: {task.name}, {size / 1e6:.2f} MB, {seconds / 60:.1f} min; see {page}")
        for name, entry in test["fields"].items():
            if not entry["count"]:  # its truth is in no test case
                continue
            interval = f"{entry['low']:.1%} to {entry['high']:.1%} of {entry['count']}"
            print(f"{name:<16} {entry['accuracy']:7.1%}  ({interval})")
        print(f"{'well-formed':<16} {test['well_formed']:7.1%}")
    return 0


_OF_TUNE = ("checkpoint", "further", "keep", "epochs", "layers", "rank", "rate")
_OF_OTHERS = ("steps", "weights_only")


def _check(args: argparse.Namespace, tasks: list[Task]) -> None:
    """Refuse what does not go together, all of it at once."""
    from device_runtime.errors import ConfigurationError

    flags = {"checkpoint": "--from"}
    other = _OF_OTHERS if args.kind == "tune" else _OF_TUNE
    wrong = [flags.get(n, f"--{n.replace('_', '-')}") for n in other if getattr(args, n) not in (None, False)]
    faults = [f"{', '.join(wrong)}: only {'without' if args.kind == 'tune' else 'with'} --kind tune"] if wrong else []
    if args.keep is not None and args.further is None:
        faults.append("--keep needs --further BUNDLE, whose weights are kept")
    if args.kind == "tune" and args.checkpoint is None:
        faults.append("--kind tune needs --from CHECKPOINT, such as a GGUF file (stonechat get smollm2-135m)")
    if args.kind != "tune" and len(args.tasks) > 1:
        faults.append(f"{len(args.tasks)} tasks: only --kind tune makes one bundle for several")
    for name, count in args.cases:
        if args.kind != "tune" and count < _FEWEST:
            faults.append(f"--cases is {count}; expected at least {_FEWEST}")
        if name is not None and name not in (named := [task.name for task in tasks]):
            faults.append(f"--cases {name}={count}: there is no such task; expected one of {', '.join(named)}")
    if faults:
        raise ConfigurationError("; ".join(faults) + ".")


def _trained(args: argparse.Namespace, task: Task, bar: ProgressBar) -> Bundle | None:
    from toolkit.train.pipeline import train
    from toolkit.train.weights import Settings, train_weights, work_folder

    steps, batch = args.steps or _STEPS, args.batch or _BATCH
    cases = dict(args.cases)
    settings = Settings(
        args.seed,
        steps,
        batch,
        cases.get(task.name, cases.get(None)),
        args.profile or "micro",
        args.baseline,
        args.kind == "distil",
    )
    if args.weights_only:
        train_weights(task, work_folder(args.output), settings, bar.update, afresh=args.afresh)
        return None
    return train(task, args.output, settings, bar.update, afresh=args.afresh)


def _tuned(args: argparse.Namespace, tasks: list[Task], bar: ProgressBar) -> Bundle:
    from converters.encoders.checkpoint import open_encoder
    from device_runtime.errors import ConfigurationError

    names = ("seed", "epochs", "batch", "layers", "rate", "profile", "baseline", "further")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    cases = dict(args.cases)
    given |= {"cases": cases.pop(None)} if None in cases else {}
    encoder = open_encoder(args.checkpoint) if args.checkpoint.is_dir() else None
    if encoder is None:
        from toolkit.train.tune.pipeline import TuneSettings, tune_bundle

        if args.keep is not None:
            raise ConfigurationError(
                f"--keep: only of a sentence encoder, and {args.checkpoint} is none; leave it out."
            )

        rank = {} if args.rank is None else {"rank": args.rank}
        settings = TuneSettings(args.checkpoint, cases_of=cases, **given, **rank)
        return tune_bundle(tasks, args.output, settings, bar.update, afresh=args.afresh)
    from toolkit.train.tune.encoder.pipeline import EncoderSettings, tune_encoder_bundle

    wrong = [f"{len(tasks)} tasks"] if len(tasks) > 1 else []
    wrong += ["--rank"] if args.rank is not None else []
    if wrong:
        raise ConfigurationError(
            f"{', '.join(wrong)}: {args.checkpoint} is an encoder, whose layers are tuned as they are, for one task."
        )
    given |= {"cases": cases[tasks[0].name]} if tasks[0].name in cases else {}
    chosen = EncoderSettings(**given, keep=args.keep)
    return tune_encoder_bundle(tasks[0], encoder, args.output, chosen, bar.update, afresh=args.afresh)
