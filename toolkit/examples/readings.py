"""Readings for a task that has rules: many of them near the numbers that its rules compare with.

Chance alone seldom falls near a border, and a model that has not seen both sides of it does not learn where it is. So a
share of the numbers is drawn from around the rules' own constants, at distances from one step of the sensor to many.
All cases are drawn from a seed, and no rule gets less than its share of them.
"""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.file import Task
from device_runtime.tasks.inputs import InputField
from device_runtime.tasks.rules import Truth

__all__ = ["Borders", "drawn", "generated", "never_met"]

Case = dict[str, Any]  # {"input": {…}, "answer": {…}}
_TRIES = 60  # draws for each case that is wanted, before a rule is taken for one that hardly ever holds
_WHOLE = 0.15  # share of numbers without decimals: people's sensors differ


@dataclass(frozen=True)
class Borders:
    """The numbers that rules compare with."""

    of_fields: Mapping[str, tuple[float, ...]]
    others: tuple[float, ...]  # of differences, sums and features

    @classmethod
    def of(cls, task: Task) -> Borders:
        """Found in the rules' expressions."""
        fields: dict[str, set[float]] = {name: set() for name in task.inputs.fields or {}}
        others: set[float] = set()
        for rule in task.truth:
            for node in ast.walk(ast.parse(rule.when or "None", mode="eval")):
                if not isinstance(node, ast.Compare):
                    continue
                sides = [node.left, *node.comparators]
                numbers = [n for side in sides if (n := _constant(side)) is not None]
                names = [s.id for s in sides if isinstance(s, ast.Name) and s.id in fields]
                for name in names:
                    fields[name].update(numbers)
                if not names:
                    others.update(numbers)
        return cls({name: tuple(sorted(found)) for name, found in fields.items()}, tuple(sorted(others)))


def drawn(task: Task, seed: int) -> Iterator[Case]:
    """Readings without end, the same for the same seed; half of their numbers near those that rules compare with."""
    rng, borders = random.Random(f"{task.name} {seed}"), Borders.of(task)
    while True:
        yield _reading(task, borders, rng)


def generated(task: Task, count: int, seed: int) -> Iterator[Case]:
    """`count` cases, the same for the same seed.

    Raises:
        ConfigurationError: the task has no rules.
    """
    if not task.truth or not task.inputs.fields:
        raise ConfigurationError(f"{task.name} has no `truth` to generate cases from; give it rules or a `program`.")
    rng, truth, borders = random.Random(f"{task.name} {seed}"), Truth(task), Borders.of(task)
    share = 0.5 / len(task.truth)  # of the cases, which each rule gets; the other half falls as it falls
    counts = [0] * len(task.truth)
    made, tries = 0, 0
    while made < count:
        tries += 1
        given = _reading(task, borders, rng)
        number = truth.rule(given)
        if number is None:
            raise ConfigurationError(
                f"No rule of {task.name} holds for {given}; end `truth` with a rule without `when`."
            )
        scarce = counts[number] < share * (made + 1)
        some_scarce = min(counts) < share * made
        if some_scarce and not scarce and tries < _TRIES * (made + 10):
            continue
        counts[number] += 1
        made += 1
        yield {"input": given, "answer": dict(task.truth[number].answer)}


def never_met(task: Task, cases: int = 300) -> list[str]:
    """The conditions of rules that none of so many generated cases meets, so that no model would learn them.

    Raises:
        ConfigurationError: as `generated`.
    """
    truth = Truth(task)
    met = {truth.rule(case["input"]) for case in generated(task, cases, 0)}
    return [rule.when or "" for number, rule in enumerate(task.truth) if number not in met]


def _reading(task: Task, borders: Borders, rng: random.Random) -> Case:
    fields = task.inputs.fields or {}
    near = task.generate.near_borders
    given = {name: _value(field, borders.of_fields[name], near, rng) for name, field in fields.items()}
    if task.inputs.window and rng.random() < 0.85:
        given["window"] = _earlier(task, given, borders, rng)
    return given


def _value(field: InputField, borders: tuple[float, ...], near: float, rng: random.Random) -> Any:
    if field.one_of:
        return rng.choice(field.one_of)
    low, high = float(field.low or 0), float(field.high or 0)
    usual = field.usual or (low, high)
    chance = rng.random()
    if borders and chance < near:
        border = rng.choice(borders)
        if rng.random() < 0.15:
            value = border
        else:
            value = border + rng.choice((-1, 1)) * _distance(field.step, (usual[1] - usual[0]) / 4, rng)
    elif chance < near + (1 - near) * 0.78:
        value = rng.uniform(*usual)
    elif chance < near + (1 - near) * 0.88:
        value = _with_zeros(low, high, field.step, rng)
    elif chance < near + (1 - near) * 0.95 and (low < usual[0] or usual[1] < high):
        value = _unusual(low, high, usual, field.step, rng)
    else:
        value = rng.uniform(low, high) if rng.random() < 0.7 else rng.choice((low, high)) * rng.uniform(0.5, 1.5)
    return _cut(value, field, rng)


def _earlier(task: Task, given: Case, borders: Borders, rng: random.Random) -> list[Case]:
    """Earlier readings, oldest first: each field drifts to what it is now, by about what the rules compare with."""
    count = rng.randint(1, task.inputs.window)
    drifts = {}
    for name, field in (task.inputs.fields or {}).items():
        if field.one_of:
            continue
        chance = rng.random()
        if borders.others and chance < 0.5:
            drift = rng.choice(borders.others) + rng.choice((-1, 0, 1)) * _distance(field.step, 5.0, rng)
            drift *= rng.choice((-1, 1))  # a rule may be about a loss as well as a gain
        else:
            drift = rng.choice((-1, 1)) * _distance(field.step, float((field.high or 0) - (field.low or 0)) / 20, rng)
        drifts[name] = drift
    readings = []
    for i in range(count):
        reading = dict(given)
        for name, drift in drifts.items():
            field = (task.inputs.fields or {})[name]
            wobble = 0.0 if i == 0 else rng.gauss(0, abs(drift) / 6)
            reading[name] = _cut(given[name] - drift * (count - i) / count + wobble, field, rng, earlier=True)
        readings.append(reading)
    return readings


def _unusual(low: float, high: float, usual: Sequence[float], step: float, rng: random.Random) -> float:
    """Outside of what is usual, a little as often as far: most of a wide range is hardly ever drawn otherwise."""
    below = low < usual[0] and (usual[1] >= high or rng.random() < 0.5)
    if below:
        return usual[0] - _distance(step, usual[0] - low, rng)
    return usual[1] + _distance(step, high - usual[1], rng)


def _with_zeros(low: float, high: float, step: float, rng: random.Random) -> float:
    """A number of the whole range half of whose digits are 0, such as 500 or 20.07.

    A network reads digits one by one. A 2 before a 0 is hardly ever drawn otherwise where the usual range ends at 8,
    and what it has never seen together it may take for anything.
    """
    most = max(abs(low), abs(high))
    places = range(math.floor(math.log10(step)), math.floor(math.log10(max(most, step))) + 1)
    for _ in range(_TRIES):
        value = sum(rng.choice((0, rng.randint(1, 9))) * 10.0**place for place in places)
        value = -value if low < 0 and rng.random() < 0.3 else value
        if low <= value <= high:
            return value
    return rng.uniform(low, high)


def _distance(step: float, most: float, rng: random.Random) -> float:
    """From one step to `most`, small ones as often as large ones."""
    return float(step * (max(most, 2 * step) / step) ** rng.random())


def _cut(value: float, field: InputField, rng: random.Random, earlier: bool = False) -> float:
    """To the step, or to a whole number, as sensors differ; a present one never past the range that is familiar."""
    step = field.step
    if not earlier and rng.random() < _WHOLE and step < 1:
        cut = float(round(value))
    else:
        places = max(0, len(f"{step:.6f}".rstrip("0").partition(".")[2]))
        cut = round(round(value / step) * step, places)
    if not earlier and field.beyond == "unfamiliar" and field.low is not None and field.high is not None:
        cut = min(max(cut, float(field.low)), float(field.high))  # rounding may step over the end
    return cut


def _constant(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _constant(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return None
