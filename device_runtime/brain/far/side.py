"""The seam to a larger model elsewhere, and what is common to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from device_runtime.mqtt.messages import Usage

__all__ = ["FarAnswer", "FarQuestion", "FarSide"]


@dataclass(frozen=True)
class FarQuestion:
    """What goes to a larger model: nothing that is to be withheld is in it any more."""

    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any] | None = None  # that the answer fits
    max_new: int | None = None  # tokens
    hops: int = 0  # how often it was passed on before it came here


@dataclass(frozen=True)
class FarAnswer:
    """What a larger model says."""

    text: str
    where: str  # who has answered, as replies call it
    model: str | None = None
    usage: Usage = field(default_factory=Usage)
    confidence: Mapping[str, float] | None = None  # by field, where the far side says it
    probabilities: Mapping[str, Mapping[str, float]] | None = None  # by field, of each value, where it says them
    unfamiliar: str = ""  # why its model was not trained for such an input, where the far side says that it was not


class FarSide(Protocol):
    """A larger model. May be used from several threads."""

    def ask(self, question: FarQuestion, end_s: float) -> FarAnswer:
        """Ask, and wait for the whole answer.

        Args:
            end_s: when to give up, on the monotonic clock.

        Raises:
            StonechatError: there is no answer; says why, without a word of the question.
        """
        ...

    def close(self) -> None:
        """Give up what is under way, and disconnect."""
