"""How good answers are: accuracy with its interval, well-formedness, recognized `none`, and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from device_runtime.tasks.answering import TypedAnswer
from device_runtime.tasks.examples import Example, answer_faults
from device_runtime.tasks.purpose import Purpose

__all__ = ["FieldScore", "Score", "calibration_error", "interval", "is_typed", "reliability", "score", "shares"]

_BINS = 10


@dataclass
class FieldScore:
    """Of one field of the answer."""

    right: int = 0
    count: int = 0
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)  # truth -> answered -> how often
    calibration_error: float | None = None  # None where no answer with a known truth had a confidence

    @property
    def accuracy(self) -> float | None:
        """Share that is right; None where no truth is known."""
        return self.right / self.count if self.count else None

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the manifest."""
        return {
            **shares(self.right, self.count),
            "right": self.right,
            "count": self.count,
            "calibration_error": None if self.calibration_error is None else round(self.calibration_error, 4),
            "confusion": self.confusion,
        }


@dataclass(frozen=True)
class Score:
    """Of many answers."""

    count: int
    well_formed: int
    fields: Mapping[str, FieldScore]  # the typed ones: enums and numbers
    none_asked: int  # inputs whose right answer is `none` …
    none_recognized: int  # … and how many of them got it
    unfamiliar: int

    @property
    def typed_right(self) -> int:
        """Typed fields that are right."""
        return sum(f.right for f in self.fields.values())

    @property
    def typed_count(self) -> int:
        """Typed fields."""
        return sum(f.count for f in self.fields.values())

    @property
    def accuracy(self) -> float | None:
        """Share of typed fields that are right; None where no truth is known."""
        return self.typed_right / self.typed_count if self.typed_count else None

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the manifest."""
        errors = [f.calibration_error for f in self.fields.values() if f.calibration_error is not None]
        return {
            "count": self.count,
            **shares(self.typed_right, self.typed_count),
            "well_formed": round(self.well_formed / self.count, 4) if self.count else None,
            "none_recognized": round(self.none_recognized / self.none_asked, 4) if self.none_asked else None,
            "none_asked": self.none_asked,
            "calibration_error": round(max(errors), 4) if errors else None,  # of the worst field
            "unfamiliar": self.unfamiliar,
            "fields": {name: f.to_json() for name, f in self.fields.items()},
        }


def score(purpose: Purpose, examples: Sequence[Example], answers: Sequence[TypedAnswer]) -> Score:
    """Hold answers against what is right; examples without an answer count for well-formedness alone."""
    typed = [name for name in purpose.fields if is_typed(purpose, name)]
    fields = {name: FieldScore() for name in typed}
    sure: dict[str, list[tuple[float, bool]]] = {name: [] for name in typed}
    well_formed = none_asked = none_recognized = 0
    for example, given in zip(examples, answers, strict=True):
        said = given.answer or {}
        well_formed += given.answer is not None and not answer_faults(said, purpose.answer)
        if example.answer is None:
            continue
        for name in typed:
            if name not in example.answer:
                continue
            right = name in said and said[name] == example.answer[name]
            entry = fields[name]
            entry.right += right
            entry.count += 1
            row = entry.confusion.setdefault(_label(example.answer[name]), {})
            answered = _label(said[name]) if name in said else "(no answer)"
            row[answered] = row.get(answered, 0) + 1
            if name in given.confidence:
                sure[name].append((given.confidence[name], right))
        if purpose.asks_nothing(example.answer):
            none_asked += 1
            none_recognized += purpose.asks_nothing(said)
    for name in typed:
        fields[name].calibration_error = calibration_error(sure[name])
    unfamiliar = sum(bool(given.unfamiliar) for given in answers)
    return Score(len(answers), well_formed, fields, none_asked, none_recognized, unfamiliar)


def is_typed(purpose: Purpose, name: str) -> bool:
    """Whether a field is an enum or a number, and no free text."""
    if purpose.fields[name] is not None:
        return True
    kinds = purpose.answer["properties"][name].get("type", [])
    return "string" not in ([kinds] if isinstance(kinds, str) else kinds)


def interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(sure: Sequence[tuple[float, bool]]) -> float | None:
    """The expected calibration error over ten bins of equal width; None of nothing."""
    gaps = (abs(sum(c for c, _ in held) - sum(r for _, r in held)) for held in _bins(sure))
    return sum(gaps) / len(sure) if sure else None


def shares(right: int, count: int) -> dict[str, float | None]:
    """For `--json`: the share that is right, with its interval (`low`, `high`); None of nothing."""
    if not count:
        return {"accuracy": None, "low": None, "high": None}
    low, high = interval(right, count)
    return {"accuracy": round(right / count, 4), "low": round(low, 4), "high": round(high, 4)}


def reliability(examples: Sequence[Example], answers: Sequence[TypedAnswer]) -> list[dict[str, float]]:
    """How sure and how often right answers are, in bins of confidence, over all fields."""
    sure = [
        (confidence, given.answer.get(name) == example.answer.get(name))
        for example, given in zip(examples, answers, strict=True)
        if example.answer is not None and given.answer is not None
        for name, confidence in given.confidence.items()
    ]
    return [
        {
            "confidence": round(sum(c for c, _ in held) / len(held), 4),
            "right": round(sum(r for _, r in held) / len(held), 4),
            "count": len(held),
        }
        for held in _bins(sure)
        if held
    ]


def _bins(sure: Sequence[tuple[float, bool]]) -> list[list[tuple[float, bool]]]:
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for confidence, right in sure:
        bins[min(int(confidence * _BINS), _BINS - 1)].append((confidence, right))
    return bins


def _label(value: Any) -> str:
    return "null" if value is None else str(value)
