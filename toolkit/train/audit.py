"""Bias and robustness: the same input written in other ways, and the smallest change that matters.

What should not matter: the order of a reading's fields, the spelling of its units, numbers as text, fields that the
task does not read; of a text the case of its letters, spaces, punctuation, polite words, and names that the task file
lists under `audit: exchange:`. What matters: for a task with rules, another reading whose truth is another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from device_runtime.tasks.answering import TypedAnswer
from device_runtime.tasks.file import Task
from device_runtime.tasks.rules import Truth

__all__ = ["Change", "Result", "audit", "changes_of"]

Input = Mapping[str, Any]
_KEPT = 20  # examples of flips


class Answers(Protocol):
    """What is audited."""

    def answer(self, given: Input) -> TypedAnswer:
        """Answer one input."""


@dataclass(frozen=True)
class Change:
    """A way to change an input."""

    name: str
    apply: Callable[[Input, random.Random], Input | None]  # None where it has nothing to change
    matters: bool = False


@dataclass
class Result:
    """What came of one change."""

    name: str
    matters: bool
    asked: int = 0
    wrong: int = 0  # answers that changed and should not have, or should have and did not
    flips: list[dict[str, Any]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of wrong ones."""
        return self.wrong / self.asked if self.asked else 0.0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "change": self.name,
            "should_change": self.matters,
            "asked": self.asked,
            "wrong": self.wrong,
            "share": round(self.share, 4),
            "examples": self.flips,
        }


def audit(
    task: Task,
    answerer: Answers,
    inputs: Sequence[Input],
    seed: int,
    progress: Callable[[str, float], None] = lambda step, share: None,
) -> list[Result]:
    """Ask each input as it is and in each changed way.

    For a change that matters both answers must be those of the rules: the one before and the one after.
    """
    rng, changes = random.Random(seed), list(changes_of(task))
    results = [Result(change.name, change.matters) for change in changes]
    typed = [name for name, values in task.fields.items() if values]
    truth = Truth(task) if task.truth else None
    for number, given in enumerate(inputs):
        before = _typed(answerer.answer(given), typed)
        for change, result in zip(changes, results, strict=True):
            changed = change.apply(given, rng)
            if changed is None:
                continue
            after = _typed(answerer.answer(changed), typed)
            result.asked += 1
            expected = before
            if change.matters and truth is not None:
                said = truth.answer(changed) or {}
                expected = {name: said.get(name) for name in typed}
            if after != expected:
                result.wrong += 1
                if len(result.flips) < _KEPT:
                    result.flips.append(
                        {"input": dict(given), "changed": dict(changed), "before": before, "after": after}
                    )
        progress("asking", (number + 1) / len(inputs))
    return [result for result in results if result.asked]


def changes_of(task: Task) -> Iterator[Change]:
    """The changes that make sense for a task."""
    if task.inputs.text is None:
        yield Change("order of fields", lambda given, rng: dict(reversed(list(given.items()))))
        yield Change("units written out", lambda given, rng: _with_units(task, given))
        yield Change("numbers as text", lambda given, rng: _as_text(task, given))
        yield Change("a field that is not read", lambda given, rng: {**given, "battery_v": 3.7, "note": "alarm"})
        if task.truth:
            yield Change("another truth", lambda given, rng: _other_truth(task, given, rng), matters=True)
        return
    yield Change("CAPITALS", lambda given, rng: {"text": given["text"].upper()})
    yield Change("First Letters", lambda given, rng: {"text": given["text"].title()})
    yield Change("spaces", lambda given, rng: {"text": "  " + given["text"].replace(" ", "  ") + " "})
    yield Change("full stop", lambda given, rng: _full_stop(given["text"]))
    for polite in task.audit.get("polite", ["please {}", "{}, thank you"]):
        yield Change(f"polite: {polite}", partial(_wrapped, polite))
    for words in task.audit.get("exchange", []):
        yield Change(f"exchanged: {'/'.join(words)}", partial(_exchanged, words))


def _typed(answer: TypedAnswer, names: Sequence[str]) -> dict[str, Any]:
    return {name: (answer.answer or {}).get(name) for name in names}


def _with_units(task: Task, given: Input) -> Input | None:
    fields = {n: f for n, f in (task.inputs.fields or {}).items() if f.unit and n in given}
    return {**given, **{n: f"{given[n]} {f.unit.upper()}" for n, f in fields.items()}} if fields else None


def _as_text(task: Task, given: Input) -> Input:
    return {**given, **{n: str(given[n]) for n, f in (task.inputs.fields or {}).items() if n in given and not f.one_of}}


def _other_truth(task: Task, given: Input, rng: random.Random) -> Input | None:
    """One field changed so that the rules give another answer."""
    truth = Truth(task)
    before = truth.rule(given)
    for _ in range(40):
        name, found = rng.choice(list((task.inputs.fields or {}).items()))
        if found.one_of:
            value: Any = rng.choice(found.one_of)
        else:
            low, high = found.usual or (found.low or 0.0, found.high or 0.0)
            value = round(rng.uniform(low, high) / found.step) * found.step
        changed = {**given, name: round(value, 6) if not found.one_of else value}
        after = truth.rule(changed)
        if after is not None and before is not None and task.truth[after].answer != task.truth[before].answer:
            return changed
    return None


def _full_stop(text: str) -> Input | None:
    return None if text.endswith((".", "?", "!")) else {"text": text + "."}


def _wrapped(pattern: str, given: Input, rng: random.Random) -> Input:
    return {"text": pattern.format(given["text"])}


def _exchanged(words: Sequence[str], given: Input, rng: random.Random) -> Input | None:
    text = f" {given['text']} "
    found = [word for word in words if f" {word} " in text]
    if not found:
        return None
    other = rng.choice([word for word in words if word != found[0]])
    return {"text": text.replace(f" {found[0]} ", f" {other} ").strip()}
