"""One answer of two: this device's own, of which it is unsure, and the larger model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from device_runtime.brain.far.side import FarAnswer

__all__ = ["surer_of_both"]


def surer_of_both(text: str, confidence: Mapping[str, float], far: FarAnswer, below: float) -> FarAnswer:
    """The larger model's answer with the fields of this device's own that it is not to decide: those that the device
    is sure of, and those of which the larger model says that it is less sure.

    Args:
        text: this device's answer.
        confidence: of its fields.
        below: from which confidence on a field is sure.
    """
    ours, theirs = _object(text), _object(far.text)
    said = far.confidence or {}
    kept = {
        name: value
        for name, value in ours.items()
        if name in theirs and name in confidence and confidence[name] >= min(below, said.get(name, 1.0))
    }
    sure = {name: confidence[name] if name in kept else said[name] for name in theirs if name in kept or name in said}
    return replace(far, text=json.dumps({**theirs, **kept}, ensure_ascii=False), confidence=sure or None)


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}
