"""What an annotation may say of a field beyond its type: `Annotated[int, Range(1, 100), "tokens, at most"]`.

A text in the annotation is the field's documentation. `typed_json.py` reads and writes JSON by all of this,
`device_runtime/bridge/codec.py` packed bytes, and `scripts/message_tables.py` makes the tables in docs/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = ["COUNT", "Check", "Constraint", "Inside", "Kind", "Length", "Pattern", "Range", "ReadAs", "Rounded"]


@runtime_checkable
class Constraint(Protocol):
    """Something that a value of the right type may break."""

    def fault(self, value: Any) -> str | None:
        """What is wrong with `value`: the rest of a sentence that begins with the field's name. None: nothing."""

    @property
    def words(self) -> str:
        """The constraint for a table; empty when there is nothing to add to the type."""


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included."""

    low: float = 0
    high: float = math.inf

    def fault(self, value: float) -> str | None:
        """See `Constraint`."""
        if self.low <= value <= self.high:
            return None
        limits = f"at least {_plain(self.low)}" if self.high == math.inf else self._span
        return f"is {'huge' if isinstance(value, int) and value.bit_length() > 64 else value}; it must be {limits}"

    @property
    def words(self) -> str:
        """See `Constraint`."""
        if self.high in (2**31 - 1, math.inf):
            return f"{_readable(self.low)} or more"
        return f"{_readable(self.low)} to {_readable(self.high)}"

    @property
    def _span(self) -> str:
        return f"from {_plain(self.low)} to {_plain(self.high)}"


COUNT = Range(0, 2**31 - 1)


@dataclass(frozen=True)
class Length:
    """So many characters of a text, or entries of a list."""

    high: int
    low: int = 0

    def fault(self, value: str | tuple[Any, ...]) -> str | None:
        """See `Constraint`."""
        if len(value) > self.high:
            unit = "characters" if isinstance(value, str) else "entries"
            return f"has {len(value)} {unit}; at most {self.high} are allowed"
        if len(value) < self.low:
            return "is an empty string" if isinstance(value, str) else f"is empty; it needs at least {self.low}"
        return None

    @property
    def words(self) -> str:
        """See `Constraint`."""
        return f"{self.low} to {self.high:,}" if self.low else f"at most {self.high:,}"


@dataclass(frozen=True)
class Pattern:
    """A text that a regular expression matches as a whole."""

    expression: str
    wrong: str  # the rest of a sentence that begins with the field's name; {} is the text that was found
    words: str = ""

    def fault(self, value: str) -> str | None:
        """See `Constraint`."""
        if re.fullmatch(self.expression, value, re.ASCII):
            return None
        return self.wrong.format(repr(value[:200]))


@dataclass(frozen=True)
class Check:
    """A value that a function takes without raising `ValueError`."""

    function: Callable[[Any], Any]
    words: str = ""

    def fault(self, value: Any) -> str | None:
        """See `Constraint`."""
        try:
            self.function(value)
        except ValueError as error:
            return f"cannot be used: {str(error).rstrip('.')}"
        return None


@dataclass(frozen=True)
class Kind:
    """What to call the type, in errors and in tables."""

    words: str


@dataclass(frozen=True)
class Rounded:
    """A number is written with so many digits after the point."""

    digits: int


@dataclass(frozen=True)
class ReadAs:
    """The value is described by another type, such as a TypedDict for a mapping of texts."""

    type: Any


@dataclass(frozen=True)
class Inside:
    """The field is written in an object of this name, within the record's own."""

    name: str


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _readable(bound: float) -> str:
    if isinstance(bound, int):
        power = bound.bit_length() - 1
        for exact, text in ((2**power, f"2^{power}"), (2 ** (power + 1) - 1, f"2^{power + 1} - 1")):
            if bound == exact and power > 20:
                return text
        return f"{bound:,}"
    return f"{bound:,.9f}".rstrip("0").rstrip(".")
