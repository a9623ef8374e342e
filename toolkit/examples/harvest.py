"""Examples out of what devices have kept of the answers of larger models and people: distillation in the field."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_runtime.brain.kept_examples import BY_PERSON, CORRECTIONS, FILE, kept_entry
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import Example, answer_faults
from device_runtime.tasks.file import Task

__all__ = ["Harvest", "Kept", "harvested", "read_kept"]


@dataclass
class Harvest:
    """What was found."""

    examples: list[Example] = field(default_factory=list)  # the newest answer of each input
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    by_people: int = 0  # of the examples, those that a person has corrected

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"examples": len(self.examples), "by_people": self.by_people, "left_out": dict(self.left_out)}


@dataclass
class Kept:
    """What files have of the answers of larger models and people."""

    entries: list[Mapping[str, Any]] = field(default_factory=list)  # the oldest first
    unread: list[str] = field(default_factory=list)  # FILE:LINE of what is no JSON object in UTF-8
    without: list[Path] = field(default_factory=list)  # state folders that have no examples yet


def read_kept(paths: Sequence[Path]) -> Kept:
    """The entries of files, or of state folders. A line that is damaged costs that line, as on the device itself.

    Raises:
        ConfigurationError: one cannot be read, or holds something else; or no folder has any.
    """
    kept = Kept()
    for path in paths:
        files = [path]
        if path.is_dir():
            files = [file for name in (FILE, CORRECTIONS) if (file := path / name).exists()]
            if not files:
                kept.without.append(path)
        for file in files:
            _read(file, kept)
    if len(kept.without) == len(paths):
        raise _unreadable(kept.without[0] / FILE, os.strerror(errno.ENOENT))
    kept.entries.sort(key=lambda entry: str(entry.get("time", "")))
    return kept


def _read(file: Path, kept: Kept) -> None:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None
    entries, unread = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if (entry := kept_entry(line)) is None:
            unread.append(f"{file}:{number}")
        else:
            entries.append(entry)
    if unread and not entries:
        raise _unreadable(file, "no line of it is a JSON object in UTF-8")
    kept.entries += entries
    kept.unread += unread


def _unreadable(file: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{file} cannot be read: {why}. Expected the state folder of a device that escalates, or takes corrections, "
        f"or its {FILE}."
    )


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
        if "task" not in entry and "finish" in entry:
            result.left_out["of records of answers, which are no examples: see `stonechat records --examples`"] += 1
        elif entry.get("task") != task.name:
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
