"""Which fields of a reading move an answer: each is left out in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from device_runtime.tasks.answering import TypedAnswer

__all__ = ["Moved", "moves"]

Ask = Callable[[Mapping[str, Any]], TypedAnswer]


@dataclass(frozen=True)
class Moved:
    """What happens without one part of the input."""

    left_out: str
    answer: Mapping[str, Any] | None  # None: without it there is none
    confidence: Mapping[str, float]
    change: float  # the largest change of a field's confidence; 1 where the answer changes

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        answer = None if self.answer is None else dict(self.answer)
        return {"left_out": self.left_out, "change": round(self.change, 4), "answer": answer}


def moves(ask: Ask, given: Mapping[str, Any]) -> tuple[TypedAnswer, list[Moved]]:
    """The answer, and what each part of the input does to it, the strongest first.

    A field of numbers cannot be missing for most tasks, so it is set to an ordinary value by the caller's `ask`
    where it is None; of a text each word is left out.
    """
    whole = ask(given)
    found = [_moved(whole, name, ask(without)) for name, without in _without_one(given)]
    return whole, sorted(found, key=lambda moved: -moved.change)


def _moved(whole: TypedAnswer, name: str, other: TypedAnswer) -> Moved:
    if whole.answer is None or other.answer is None:
        change = float((whole.answer is None) != (other.answer is None))
    else:
        before, after = whole.answer, other.answer
        changes = [
            1.0 if after.get(field) != before.get(field) else abs(other.confidence.get(field, share) - share)
            for field, share in whole.confidence.items()
        ]
        change = max(changes, default=float(json.dumps(dict(before)) != json.dumps(dict(after))))
    return Moved(name, other.answer, other.confidence, change)


def _without_one(given: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(given.get("text"), str) and len(given) == 1:
        words = given["text"].split()
        for place, word in enumerate(words if len(words) > 1 else []):
            yield word, {"text": " ".join([*words[:place], *words[place + 1 :]])}
        return
    for name in given:
        yield name, {other: value for other, value in given.items() if other != name}
