"""One answer of two: this device's own, of which it is unsure, and the larger model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from device_runtime.brain.far.side import FarAnswer
from device_runtime.engine.generation import Certainty
from device_runtime.engine.typed.choice import value_name

__all__ = ["joined"]

Shares = Mapping[str, float]  # of each value of a field, by its name


def joined(text: str, certainty: Certainty, far: FarAnswer, below: float, *, at_once: bool) -> FarAnswer:
    """The larger model's answer, with what this device knows in it.

    A field that the device is sure of stays as it has it. Of another one on which both say how likely each value is,
    the value is taken that both together find likeliest: the product of the two is what two witnesses know who do not
    know each other. Else the surer of both has it, and the larger model where it does not say how sure it is.

    What comes out says how likely each value is, too: a device that has passed the question on to this one joins it
    again.

    A model that writes its fields one after the other is as sure of each as those before it let it be: that no device
    is meant, because nothing is to be done. Once a field has the larger model's value instead, so has the rest.

    Args:
        text: this device's answer.
        certainty: of its fields.
        below: from which confidence on a field is sure.
        at_once: this device has decided each field by itself.
    """
    mine, theirs = _fields(text, certainty), _fields(far.text, Certainty(far.confidence, far.probabilities))
    found = dict(theirs)
    for name in (name for name, field in mine.items() if name in theirs and field.sure is not None):
        found[name] = _one(mine[name], theirs[name], below)
        if found[name].value != mine[name].value and not at_once:
            break
    answer = {name: field.value for name, field in found.items()}
    sure = {name: field.sure for name, field in found.items() if field.sure is not None}
    shares = {name: field.shares for name, field in found.items() if field.shares}
    text = json.dumps(answer, ensure_ascii=False)
    return replace(far, text=text, confidence=sure or None, probabilities=shares or None)


class _Field(NamedTuple):
    """A field of an answer."""

    value: Any
    sure: float | None  # how sure its model is of it, where that says so
    shares: Shares | None  # how likely each of its values is, where the model says that


def _fields(text: str, certainty: Certainty) -> dict[str, _Field]:
    found = json.loads(text)
    sure, shares = certainty.confidence or {}, certainty.probabilities or {}
    answer = found if isinstance(found, dict) else {}
    return {name: _Field(value, sure.get(name), shares.get(name)) for name, value in answer.items()}


def _one(mine: _Field, other: _Field, below: float) -> _Field:
    """What both together say of a field."""
    assert mine.sure is not None
    if mine.sure >= below:
        return mine
    if mine.shares and other.shares and mine.shares.keys() == other.shares.keys():
        both = {name: mine.shares[name] * other.shares[name] for name in mine.shares}
        values = {value_name(value): value for value in (mine.value, other.value)}
        best = max(both, key=lambda name: both[name] if name in values or _is_text(name) else 0.0)
        if both[best] > 0:
            whole = sum(both.values())
            shares = {name: share / whole for name, share in both.items()}
            return _Field(values.get(best, best), shares[best], shares)
    return other if other.sure is None or other.sure > mine.sure else mine


def _is_text(name: str) -> bool:
    """Whether the value of this name can be nothing but a text: a label that neither has chosen."""
    try:
        json.loads(name)
    except ValueError:
        return True
    return False
