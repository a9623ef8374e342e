"""How sure a field's value is: the decisions that were made within it, and their probability."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Choice", "Decision", "by_field", "confidence_of", "shares_of", "value_name"]


@dataclass(frozen=True)
class Choice:
    """One decision: among what, and which."""

    logits: npt.NDArray[np.float32]  # of what could be chosen
    chosen: int  # among them
    tokens: npt.NDArray[np.int64] | None = None  # what could be chosen, where that is tokens; None: a field's values

    def shares(self, temperature: float = 1.0) -> npt.NDArray[np.float32]:
        """The probability of each, at this temperature; their sum is 1."""
        weights = np.exp((self.logits - self.logits.max()) / temperature)
        return np.asarray(weights / weights.sum(), np.float32)


@dataclass(frozen=True)
class Decision:
    """A choice, and where in the answer what it chose is: from one byte to before another."""

    start: int
    end: int
    choice: Choice


def confidence_of(choices: Sequence[Choice], temperature: float = 1.0) -> float:
    """The probability of what was chosen, at this temperature."""
    share = 1.0
    for choice in choices:
        share *= float(choice.shares(temperature)[choice.chosen])
    return share


def shares_of(
    choices: Mapping[str, Sequence[Choice]],
    values: Mapping[str, Sequence[Any]],
    temperatures: Mapping[str, float],
    spelled: Callable[[str], Sequence[int]] = lambda text: [],
) -> dict[str, dict[str, float]]:
    """How likely each value is, by field and by the value's name, as far as a single choice among all of them decided.

    Args:
        values: of each field, in the order of its choice.
        spelled: the tokens of a value in an answer, where choices are among tokens: each value has to be one then.
    """
    found = {}
    for name, (choice, *others) in ((name, made) for name, made in choices.items() if made):
        of_field = values.get(name, ())
        if others or (among := _among(choice, of_field, spelled)) is None:
            continue
        shares = among.shares(temperatures.get(name, 1.0))
        found[name] = dict(zip(map(value_name, of_field), map(float, shares), strict=True))
    return found


def _among(choice: Choice, values: Sequence[Any], spelled: Callable[[str], Sequence[int]]) -> Choice | None:
    """The choice as one among these values, in their order; None where it was among others."""
    if choice.tokens is None:
        return choice if len(choice.logits) == len(values) else None
    tokens = [spelled(json.dumps(value, ensure_ascii=False)) for value in values]
    places = [np.flatnonzero(choice.tokens == one[0]) for one in tokens if len(one) == 1]
    if not values or len(places) < len(values) or not all(map(len, places)):
        return None
    return Choice(choice.logits[np.concatenate(places)], 0)


def value_name(value: Any) -> str:
    """A value as a name in JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def by_field(
    answer: Mapping[str, Any], text: str, decisions: Sequence[Decision], texts: Collection[str]
) -> dict[str, list[Choice]]:
    """The decisions within each field's value.

    Args:
        text: the answer as it was written, an object.
        texts: fields that are free texts, which are left out.
    """
    found: dict[str, list[Choice]] = {}
    place, decoder = 0, json.JSONDecoder()
    for name in answer:
        label = json.dumps(name, ensure_ascii=False)
        begin = text.index(f"{label}:", place) + len(label) + 1
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        _, place = decoder.raw_decode(text, begin)
        if name in texts:
            continue
        start, end = (len(text[:at].encode()) for at in (begin, place))
        found[name] = [d.choice for d in decisions if d.start < end and d.end > start]
    return found
