"""`stonechat eval --task`: a task's examples asked of a bundle, and the answers scored. Needs the base install only."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import counted
from toolkit.cli.output import print_json

if TYPE_CHECKING:
    from device_runtime.tasks.file import Task
    from device_runtime.tasks.purpose import Purpose

__all__ = ["purpose_of", "run_task"]

_SHOWN_SEED = 20_000  # of the examples that a general model is shown


def run_task(args: argparse.Namespace) -> int:
    """Answer the examples, and print answers and score.

    Raises:
        ConfigurationError: the task file or the examples have faults, or the bundle does another task.
    """
    from device_runtime.errors import ConfigurationError
    from device_runtime.tasks.answering import Answerer
    from device_runtime.tasks.examples import Example, read_examples
    from device_runtime.tasks.file import load
    from device_runtime.tasks.rules import Truth
    from device_runtime.tasks.score import score
    from device_runtime.update.active import open_bundle
    from toolkit.examples.sources import all_examples
    from toolkit.progress import ProgressBar

    bundle = open_bundle(args.bundle)
    task = load(args.task) if args.task is not None else None
    purpose = purpose_of(bundle, task)
    files = (
        [args.examples] if args.examples is not None else [task.folder / name for name in task.examples] if task else []
    )
    if not files:
        raise ConfigurationError("There are no examples to ask: name some with --examples FILE.jsonl.")
    examples = [
        example for file in files for example in read_examples(file, purpose.inputs, purpose.answer, need_answers=False)
    ]
    if task is not None and task.truth:
        truth = Truth(task)
        examples = [replace(e, answer=truth.answer(e.input)) if e.answer is None else e for e in examples]
    shown: list[Example] = []
    if purpose.kind == "none" and task is not None:  # a general model: show it how
        shown = list(islice(all_examples(task, args.shown, _SHOWN_SEED), args.shown))
    answers = []
    with closing(Answerer(bundle, purpose, shown=shown, backend=args.backend)) as answerer, ProgressBar() as bar:
        started_s = time.perf_counter()
        for number, example in enumerate(examples):
            answers.append(answerer.answer(example.input))
            bar.update("answering", (number + 1) / len(examples))
        per_s = len(examples) / (time.perf_counter() - started_s)
    result = score(purpose, examples, answers)
    if args.json:
        said = [answer.to_json() for answer in answers]
        print_json({**result.to_json(), "answers_per_s": round(per_s, 1), "answers": said})
        return 0
    known = sum(example.answer is not None for example in examples)
    print(
        f"{purpose.name}: {counted(len(answers), 'answer')}, {known} of them with a known truth, {per_s:.1f} a second"
    )
    for line in _lines(result.to_json()):
        print(line)
    return 0


def purpose_of(bundle: Any, task: Task | None) -> Purpose:
    """What the bundle was trained for; for a bundle that was trained for nothing, what the task file says.

    Raises:
        ConfigurationError: it was trained for another task, or for none while no task file is given.
    """
    from device_runtime.errors import ConfigurationError
    from device_runtime.tasks.purpose import Purpose, purposes_of

    own = Purpose.of_manifest(bundle.manifest, None if task is None else task.name)
    if task is None and own is None:
        known = ", ".join(purpose.name for purpose in purposes_of(bundle.manifest)) or "no task"
        raise ConfigurationError(f"{bundle.path} was trained for {known}; name the task with --task TASK.yaml.")
    if own is None:
        return Purpose.of_task(task)  # type: ignore[arg-type]
    if task is not None and (own.name != task.name or not own.answers_as(task)):
        raise ConfigurationError(
            f"{bundle.path} was trained for {own.name} ({', '.join(own.fields)}), and the task file is of {task.name} "
            f"({', '.join(task.fields)}); give the task file that it was trained with, or train it again."
        )
    return own


def _lines(scored: dict[str, Any]) -> list[str]:
    lines = [f"{'well-formed':<22} {scored['well_formed']:7.1%}"]
    for name, entry in scored["fields"].items():
        if entry["count"]:
            error = entry["calibration_error"]
            lines.append(
                f"{name:<22} {entry['accuracy']:7.1%}  {entry['low']:.1%} to {entry['high']:.1%} of {entry['count']}"
                + ("" if error is None else f", calibration error {error:.3f}")
            )
    if scored["accuracy"] is not None:
        lines.append(f"{'typed fields together':<22} {scored['accuracy']:7.1%}")
    if scored["none_asked"]:
        lines.append(f"{'none recognized':<22} {scored['none_recognized']:7.1%}  of {scored['none_asked']}")
    if scored["unfamiliar"]:
        lines.append(f"{'unfamiliar':<22} {scored['unfamiliar']:7}")
    return lines
