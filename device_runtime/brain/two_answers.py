"""One answer of two: this device's own, of which it is unsure, and the larger model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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

    A model that writes its fields one after the other is as sure of each as those before it let it be: that no device
    is meant, because nothing is to be done. Once a field has the larger model's value instead, so has the rest.

    Args:
        text: this device's answer.
        certainty: of its fields.
        below: from which confidence on a field is sure.
        at_once: this device has decided each field by itself.
    """
    ours, theirs = _object(text), _object(far.text)
    mine, said = certainty.confidence or {}, far.confidence or {}
    answer, sure = dict(theirs), dict(said)
    for name in (name for name in ours if name in theirs and name in mine):
        answer[name], share = _one(
            (ours[name], mine[name], (certainty.probabilities or {}).get(name)),
            (theirs[name], said.get(name), (far.probabilities or {}).get(name)),
            below,
        )
        if share is not None:
            sure[name] = share
        if answer[name] != ours[name] and not at_once:
            break
    sure = {name: share for name, share in sure.items() if name in answer}
    return replace(far, text=json.dumps(answer, ensure_ascii=False), confidence=sure or None)


def _one(
    ours: tuple[Any, float, Shares | None], theirs: tuple[Any, float | None, Shares | None], below: float
) -> tuple[Any, float | None]:
    """A field's value, and how sure it is: of (value, confidence, shares) twice."""
    mine, share, own_shares = ours
    other, far_share, far_shares = theirs
    if share >= below:
        return mine, share
    if own_shares and far_shares and own_shares.keys() == far_shares.keys():
        both = {name: own_shares[name] * far_shares[name] for name in own_shares}
        values = {value_name(value): value for value in (mine, other)}
        best = max(both, key=lambda name: both[name] if name in values or _is_text(name) else 0.0)
        if both[best] > 0:
            return values.get(best, best), both[best] / sum(both.values())
    if far_share is None or far_share > share:
        return other, far_share
    return mine, share


def _is_text(name: str) -> bool:
    """Whether the value of this name can be nothing but a text: a label that neither has chosen."""
    try:
        json.loads(name)
    except ValueError:
        return True
    return False


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}
