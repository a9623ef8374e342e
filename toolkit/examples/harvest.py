"""Examples out of what devices have kept of the answers of larger models and people: distillation in the field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_runtime.brain.kept_examples import BY_PERSON, CORRECTIONS, FILE
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import Example, answer_faults
from device_runtime.tasks.file import Task

__all__ = ["Harvest", "harvested", "read_kept"]


@dataclass
class Harvest:
    """What was found."""

    examples: list[Example] = field(default_factory=list)  # the newest answer of each input
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    by_people: int = 0  # of the examples, those that a person has corrected

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"examples": len(self.examples), "by_people": self.by_people, "left_out": dict(self.left_out)}


def read_kept(paths: Sequence[Path]) -> list[Mapping[str, Any]]:
    """The entries of files, or of state folders, the oldest first.

    Raises:
        ConfigurationError: one cannot be read, or holds something else.
    """
    found: list[Mapping[str, Any]] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = [file for name in (FILE, CORRECTIONS) if (file := path / name).exists()] or [path / FILE]
        for file in files:
            found += _entries(file)
    return sorted(found, key=lambda entry: str(entry.get("time", "")))


def _entries(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigurationError(
            f"{file} cannot be read: {why}. Expected the state folder of a device that escalates, or takes "
            f"corrections, or its {FILE}."
        ) from None
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            if number == len(lines):  # a power cut has halved it
                continue
            raise ConfigurationError(f"{file}:{number}: not JSON; expected a line that a device has kept.") from None
        if isinstance(entry, Mapping):
            yield entry


def harvested(task: Task, entries: Iterable[Mapping[str, Any]], *, corrected: bool = False) -> Harvest:
    """The examples of a task: the newest answer of each input, a person's before any model's.

    Args:
        corrected: only those where the device had said something else, or nothing.
    """
    result = Harvest()
    by_input: dict[str, Example] = {}
    by_people: set[str] = set()  # inputs that a person has answered: what a model says later does not count
    for entry in entries:
        given, answer = entry.get("input"), entry.get("answer")
        if entry.get("task") != task.name:
            result.left_out["of another task"] += 1
        elif not isinstance(given, Mapping) or not isinstance(answer, Mapping):
            result.left_out["without an input and an answer"] += 1
        elif not task.inputs.prompt(given).readable:
            result.left_out["whose input the task cannot read"] += 1
        elif answer_faults(answer, task.answer):
            result.left_out["whose answer does not fit the task"] += 1
        elif corrected and entry.get("by") != BY_PERSON and _agreed(entry, answer):
            result.left_out["which the device had right itself"] += 1
        else:
            key, by_person = json.dumps(given, sort_keys=True), entry.get("by") == BY_PERSON
            if key in by_people and not by_person:
                result.left_out["which a person has answered"] += 1
                continue
            result.left_out["answered again later"] += key in by_input
            by_input[key] = Example(dict(given), dict(answer))
            by_people |= {key} if by_person else set()
    result.left_out = +result.left_out
    result.examples, result.by_people = list(by_input.values()), len(by_people)
    return result


def _agreed(entry: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
    local = entry.get("local")
    try:
        return isinstance(local, Mapping) and json.loads(str(local.get("text"))) == answer
    except ValueError:
        return False
