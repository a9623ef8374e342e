"""`stonechat explain`: which fields of a reading, or words of a text, moved a bundle's answer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from toolkit.cli.options import add_json

__all__ = ["HELP", "add_arguments", "run"]

MAX_WORDS = 200  # far more than a task's text has
HELP = "show which fields or words of an input moved an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat explain`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="of a task")
    parser.add_argument("input", metavar="INPUT", help="a text, or a reading as a JSON object")
    parser.add_argument(
        "--instead", metavar="JSON", default="{}",
        help="values in place of fields that are left out, such as those of an ordinary reading "
        "(default: those that the bundle keeps of its training)",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask with each part left out in turn, and print what that changes."""
    from device_runtime.errors import ConfigurationError
    from device_runtime.tasks.answering import Answerer
    from toolkit.brain.explanation import moves
    from toolkit.cli.output import rows, say_unfamiliar, show

    answerer = Answerer.open(args.bundle)
    try:
        given: Any = {"text": args.input}
        if answerer.purpose.inputs.text is None:
            given = _object(args.input, "the input", answerer.purpose.inputs.fields or {})
        words = len(args.input.split())
        if answerer.purpose.inputs.text is not None and words > MAX_WORDS:
            raise ConfigurationError(
                f"the text has {words} words, and is asked once without each; give {MAX_WORDS} at most."
            )
        instead = _object(args.instead, "--instead", answerer.purpose.inputs.fields or {})
        if strange := [name for name, value in instead.items() if isinstance(value, float) and not isfinite(value)]:
            raise ConfigurationError(
                f"--instead has no finite number for {', '.join(strange)[:60]}; give one, or leave the field out."
            )
        if unknown := sorted(set(instead) - set(answerer.purpose.inputs.fields or {})):
            known = ", ".join(answerer.purpose.inputs.fields or {}) or "none: it reads a text"
            raise ConfigurationError(f"--instead names {', '.join(unknown)[:60]}; the bundle's fields are {known}.")
        ordinary = answerer.purpose.ordinary
        middle = {  # of its range, where a bundle was trained before it kept that
            name: ordinary.get(name, field.one_of[0] if field.one_of else ((field.low or 0) + (field.high or 0)) / 2)
            for name, field in (answerer.purpose.inputs.fields or {}).items()
        } | instead
        # What the input lacks of itself is not filled in: its answer is to be the device's.
        stand_ins = {name: middle[name] for name in given if name in middle}
        whole, found = moves(lambda inputs: answerer.answer({**stand_ins, **inputs}), given)
    finally:
        answerer.close()
    fields = {**whole.to_json(), "moved_by": [moved.to_json() for moved in found]}
    said = json.dumps(None if whole.answer is None else dict(whole.answer), ensure_ascii=False)
    lines = [said, "", *rows((f"{moved.change:.2f}", _without(moved.left_out, moved.answer)) for moved in found)]
    if stand_ins:
        fields["instead"] = stand_ins
        lines += ["", f"in place of what is left out: {json.dumps(stand_ins, ensure_ascii=False)}"]
    show(args, fields, lines)
    if not args.json:
        say_unfamiliar(whole.unfamiliar)
    return 0


def _object(text: str, what: str, known: Mapping[str, Any]) -> dict[str, Any]:
    from device_runtime.errors import ConfigurationError

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{what} is {text[:60]!r}; expected a JSON object with {', '.join(known)}.")
    return found


def _without(name: str, answer: Mapping[str, Any] | None) -> str:
    return f"without {name!r}: {json.dumps(None if answer is None else dict(answer), ensure_ascii=False)}"
