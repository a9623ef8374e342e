"""`stonechat audit`: do answers change with what matters, and only with that?"""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json, whole_number

__all__ = ["HELP", "add_arguments", "run"]

HELP = "change what should not matter in a task's inputs, and see whether the answers change"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat audit`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--task", metavar="TASK", type=Path, required=True, help="a task.yaml, or a folder with one")
    parser.add_argument("--examples", metavar="FILE", type=Path, help="(default: generated ones)")
    parser.add_argument("--cases", metavar="N", type=whole_number(1), default=100, help="at most (default: 100)")
    parser.add_argument("--seed", metavar="N", type=whole_number(0), default=1000)
    parser.add_argument(
        "--backend", metavar="NAME", help="compiled, litert, tflite-runtime, tflm (default: by profile)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask every input in several ways, and print a table of flips."""
    import json
    from contextlib import closing

    from device_runtime.tasks.answering import Answerer
    from device_runtime.tasks.examples import read_examples
    from device_runtime.tasks.file import load
    from device_runtime.update.active import open_bundle
    from toolkit.cli.eval_task import purpose_of
    from toolkit.cli.output import print_json
    from toolkit.examples.sources import all_examples
    from toolkit.progress import ProgressBar
    from toolkit.train.audit import audit

    bundle, task = open_bundle(args.bundle), load(args.task)
    purpose = purpose_of(bundle, task)
    if args.examples is not None:
        examples = read_examples(args.examples, purpose.inputs, purpose.answer, need_answers=False)
    else:
        examples = list(all_examples(task, args.cases, args.seed))
    with closing(Answerer(bundle, purpose, backend=args.backend)) as answerer, ProgressBar() as bar:
        results = audit(task, answerer, [e.input for e in examples[: args.cases]], args.seed, bar.update)
    if args.json:
        print_json({"task": task.name, "changes": [r.to_json() for r in results]})
        return 0
    width = max(len(r.name) for r in results)
    print(f"{'':{width}}  should        asked  flips  share")
    for r in results:
        should = "change" if r.matters else "stay the same"
        print(f"{r.name:{width}}  {should:13} {r.asked:5}  {r.wrong:5}  {r.share:6.1%}")
    for r in results:
        for flip in r.flips[:3]:
            print(f"\n{r.name}: {json.dumps(flip['input'], ensure_ascii=False):.300}")
            print(f"   -> {json.dumps(flip['changed'], ensure_ascii=False):.300}")
            print(f"   {json.dumps(flip['before'])} -> {json.dumps(flip['after'])}")
    return 0
