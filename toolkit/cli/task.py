"""`stonechat task`: write, check and grow a task file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json, whole_number
from toolkit.cli.output import print_json

if TYPE_CHECKING:
    from device_runtime.tasks.examples import Example
    from device_runtime.tasks.file import Task

__all__ = ["HELP", "add_arguments", "run"]

HELP = "write a task file, check it, and make examples for it"

_SHOWN = 10  # warnings of a kind
_NUMBERS = """# What `stonechat train` makes a bundle of. See docs/guides/train.md.
task: 1
name: {name}
about: Says in a sentence what goes in and what comes out.
kind: tiny

input:
  fields: # what training covers; beyond it a reading is flagged as unfamiliar (or `beyond: clamp`)
    temp_c: {{unit: °C, from: -40, to: 120, step: 0.1, usual: [0, 90]}}
    state: {{one_of: [idle, running]}}
  window: 5 # earlier readings
  features: # numbers that are computed for the model to look at
    rise: {{value: "temp_c - window[0].temp_c if window else null", from: -50, to: 50, step: 0.1}}

answer: # a JSON schema
  type: object
  additionalProperties: false
  required: [level]
  properties:
    level: {{enum: [none, warn, alarm]}}
none: {{level: none}} # the answer to an input that asks for nothing

truth: # the first rule that holds; expressions as in a fleet file
  - when: temp_c >= 80
    answer: {{level: alarm}}
  - when: state == 'running' and temp_c >= 60
    answer: {{level: warn}}
  - answer: {{level: none}}

# Lines of such a file: {{"input": {{"temp_c": 71.5, "state": "idle"}}, "answer": {{"level": "none"}}}}
# examples: examples.jsonl
generate: {{cases: 60000, near_borders: 0.5}}
"""
_TEXT = """# What `stonechat train` makes a bundle of. See docs/guides/train.md.
task: 1
name: {name}
about: Says in a sentence what goes in and what comes out.
kind: tiny

input: {{text: 160}} # characters at most

answer: # a JSON schema
  type: object
  additionalProperties: false
  required: [topic]
  properties:
    topic: {{enum: [none, repair, invoice]}}
none: {{topic: none}} # the answer to a text that asks for nothing

examples: examples.jsonl # lines such as {{"input": {{"text": "the tap drips"}}, "answer": {{"topic": "repair"}}}}
# generate: {{cases: 60000, program: generate.py}} # run with --seed N --cases N; prints such lines
network: {{layers: 4, width: 128, heads: 4, ffn: 320, vocabulary: 1200}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat task`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="write a task.yaml to begin with", allow_abbrev=False)
    new.add_argument(
        "folder", metavar="DIR", type=Path, help="made if needed; its name, in a-z, 0-9 and -, is the task's"
    )
    new.add_argument("--text", action="store_true", help="the task reads a text, not numbers")
    add_json(new)
    check = actions.add_parser("check", help="list all faults of a task file and its examples", allow_abbrev=False)
    check.add_argument("task", metavar="TASK", type=Path, help="a task.yaml, or a folder with one")
    add_json(check)
    generate = actions.add_parser("generate", help="make examples, to be read and corrected", allow_abbrev=False)
    generate.add_argument("task", metavar="TASK", type=Path, help="a task.yaml, or a folder with one")
    generate.add_argument("-o", "--output", metavar="FILE.jsonl", type=Path, required=True)
    generate.add_argument("--cases", metavar="N", type=whole_number(1), default=1000, help="(default: 1000)")
    generate.add_argument("--seed", metavar="N", type=whole_number(0), default=0)
    generate.add_argument("--teacher", action="store_true", help="ask the task's teacher, and check what it answers")
    add_json(generate)
    harvest = actions.add_parser(
        "harvest", help="make examples of what larger models have answered for a device", allow_abbrev=False
    )
    harvest.add_argument("task", metavar="TASK", type=Path, help="a task.yaml, or a folder with one")
    harvest.add_argument(
        "--from", dest="sources", metavar="PATH", type=Path, action="append", required=True,
        help="a device's state folder, or a file that `stonechat records --examples` wrote; may be repeated",
    )  # fmt: skip
    harvest.add_argument("-o", "--output", metavar="FILE.jsonl", type=Path, required=True)
    harvest.add_argument("--corrected", action="store_true", help="only where the device had said something else")
    add_json(harvest)


def run(args: argparse.Namespace) -> int:
    """Write, check, grow or harvest."""
    return {"new": _new, "check": _check, "generate": _generate, "harvest": _harvest}[args.action](args)


def _new(args: argparse.Namespace) -> int:
    import re

    from device_runtime.bundle.work_place import made_folders, whole_file
    from device_runtime.errors import ConfigurationError

    path = args.folder / "task.yaml"
    if path.exists():
        raise ConfigurationError(f"{path} is there already; choose another folder.")
    called = args.folder.resolve().name
    name = re.sub(r"[^a-z0-9-]+", "-", called.lower()).strip("-")[:64].rstrip("-") or "task"
    with made_folders(args.folder), whole_file(path) as write:
        write((_TEXT if args.text else _NUMBERS).format(name=name))
    if args.json:
        print_json({"task": str(path), "name": name})
        return 0
    if name != called:
        print(f"the task is called {name}: a name has small letters, digits and '-'; `name:` in the file is another")
    print(f"{path}: written; edit it, then `stonechat task check {args.folder}`")
    return 0


def _check(args: argparse.Namespace) -> int:
    from device_runtime.tasks.examples import read_examples
    from device_runtime.tasks.file import load
    from device_runtime.tasks.rules import Truth
    from toolkit.examples.readings import never_met
    from toolkit.examples.sources import calibration_examples

    task = load(args.task)
    from_rules = task.truth and task.inputs.fields and task.generate.program is None
    unmet = never_met(task) if from_rules else []
    calibrate = len(calibration_examples(task))
    truth = Truth(task) if task.truth else None
    count = 0
    against: list[dict[str, Any]] = []
    strange: list[dict[str, Any]] = []
    for name in task.examples:
        for example in read_examples(task.folder / name, task.inputs, task.answer):
            count += 1
            read = task.inputs.prompt(example.input)
            if read.unfamiliar:  # a slip, most likely: such an input is not answered, or flagged
                strange.append({"file": name, "input": example.input, "why": "; ".join(read.unfamiliar)})
            said = truth.answer(example.input) if truth else None
            if said is not None and example.answer is not None and any(
                example.answer.get(field) != said[field] for field, values in task.fields.items() if values
            ):  # fmt: skip
                against.append({"file": name, "input": example.input, "answer": example.answer, "rules": said})
    if args.json:
        found = {
            "task": task.name,
            "examples": count,
            "calibrate": calibrate,
            "against_rules": against,
            "rules_never_met": unmet,
            "unfamiliar": strange,
        }
        print_json(found)
        return 0
    more_examples = f", {calibrate} to calibrate on" if task.calibrate else ""
    print(f"{task.name}: no faults, {counted(len(task.truth), 'rule')}, {counted(count, 'example')}{more_examples}")
    for condition in unmet:
        print(
            f"warning: no generated case meets the rule `{condition or 'the last one'}`, so no model learns it; is it "
            "possible within the fields' ranges, and comes no wider rule before it?"
        )
    for case in strange[:_SHOWN]:
        print(f"warning: {case['file']}: {case['why']}, in {json.dumps(case['input'], ensure_ascii=False)}")
    for case in against[:_SHOWN]:
        of, answer, rules = (json.dumps(case[name], ensure_ascii=False) for name in ("input", "answer", "rules"))
        cut = _cut_fields(task, case["input"]).items()
        read_as = "".join(f"; {name} is read as {value:g}, to its step" for name, value in cut)
        print(f"warning: {case['file']}: says {answer} of {of}, and the rules {rules}{read_as}")
    if more := max(0, len(strange) - _SHOWN) + max(0, len(against) - _SHOWN):
        print(f"warning: {more} more; --json lists them all")
    return 0


def _cut_fields(task: Task, given: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an input that have digits beyond their steps, as the model and the rules read them."""
    read = task.inputs.names(given)
    numbers = {name: read[name] for name in task.inputs.fields or {} if isinstance(given.get(name), int | float)}
    return {name: number for name, number in numbers.items() if number != given[name]}


def _generate(args: argparse.Namespace) -> int:
    from device_runtime.tasks.file import load

    task = load(args.task)
    _require_new(args.output)
    if args.teacher:
        return _teach(args, task)
    from toolkit.examples.sources import generated_examples

    count = _write(args.output, generated_examples(task, args.cases, args.seed))
    if args.json:
        print_json({"examples": count, "file": str(args.output)})
        return 0
    print(f"{args.output}: {counted(count, 'example')}; read and correct them, then name the file under `examples:`")
    return 0


def _harvest(args: argparse.Namespace) -> int:
    from device_runtime.errors import ConfigurationError
    from device_runtime.tasks.file import load
    from toolkit.cli.output import say
    from toolkit.examples.harvest import harvested, read_kept

    task = load(args.task)
    _require_new(args.output)
    kept = read_kept(args.sources)
    for path in kept.without:
        say(f"{path} has no examples yet")
    for place in kept.unread[:_SHOWN]:
        say(f"{place}: left out: no whole line of JSON in UTF-8; a power cut may have cut it")
    if more := len(kept.unread[_SHOWN:]):
        say(f"{counted(more, 'line')} more left out")
    found = harvested(task, kept.entries, corrected=args.corrected)
    if not found.examples:
        why = "".join(f"; {count} {reason}" for reason, count in found.left_out.items())
        raise ConfigurationError(f"There is no example of {task.name} in what was kept{why}.")
    _write(args.output, found.examples)
    if args.json:
        print_json({"file": str(args.output), **found.to_json(), "unread": kept.unread})
        return 0
    written = counted(len(found.examples), "example")
    print(f"{args.output}: {written}; read and correct them, then name the file under `examples:`")
    for reason, count in found.left_out.items():
        print(f"{count:6} left out: {reason}")
    return 0


def _require_new(path: Path) -> None:
    from device_runtime.errors import ConfigurationError

    if path.exists():
        raise ConfigurationError(
            f"{path} is there already, and its examples may have been corrected by hand; name another file, or "
            "remove it first."
        )


def _teach(args: argparse.Namespace, task: Task) -> int:
    from itertools import islice

    from device_runtime.errors import ConfigurationError
    from toolkit.examples.teacher import Taught, taught, teacher_of, unanswered
    from toolkit.progress import ProgressBar

    inputs = list(islice(unanswered(task, args.cases, args.seed), args.cases))
    result = Taught()
    with teacher_of(task) as teacher, ProgressBar() as bar:

        def asked() -> Iterator[Mapping[str, Any]]:
            for number, given in enumerate(inputs):
                bar.update("asking the teacher", number / len(inputs))
                yield given

        _write(args.output, taught(task, teacher, asked(), result))
    if args.json:
        print_json({"file": str(args.output), **result.to_json()})
    else:
        answers = counted(len(inputs), "answer")
        print(f"{args.output}: {result.believed} of {answers} believed; read and correct them, then")
        print("name the file under `examples:`")
        for reason, count in result.rejected.most_common():
            print(f"{count:6} rejected: {reason}")
        for case in result.shown:
            print(f"   {json.dumps(case['input'], ensure_ascii=False):.160} -> {case['fault']:.160}")
    if not result.believed:
        raise ConfigurationError(f"No answer of the teacher is believed; {args.output} was not written.")
    return 0


def _write(path: Path, examples: Iterable[Example]) -> int:
    """Write them to a file that appears whole, or not at all; returns how many they were."""
    from device_runtime.bundle.work_place import whole_file

    count = 0
    with whole_file(path) as write:
        for example in examples:
            count += 1
            write(json.dumps({"input": example.input, "answer": example.answer}, ensure_ascii=False) + "\n")
    return count
