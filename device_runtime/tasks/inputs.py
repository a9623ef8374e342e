"""What a task reads, and the prompt that is made of it: by the same function in training, in `eval` and on a board.

Numbers are written at a fixed width (`+084.9`), so that each digit has its place, and cut to their step, never rounded
up: 2.999 does not become a 3.00 that a rule calls too much. Rules and features compute with the numbers that are cut:
what the model cannot see decides nothing. Texts are written in small letters with single spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal
from typing import Any, Literal

from device_runtime.fleet.expression import Expression, LinkError

__all__ = ["UNKNOWN", "Feature", "InputField", "Inputs", "Prompt", "cut"]

UNKNOWN = "?"  # in a prompt, for a value that is not there or is of another kind
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?)\s*(.*?)\s*")

# Where a word begins in what is written together: ioError, OOMKilled, eth0, 3ms.
_WORD_BEGINS = re.compile(
    r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"
    r"|_+|(?<=[^\w\s])(?=\S)|(?<=\S)(?=[^\w\s])"
)
# A date, a clock, an address, a hexadecimal number or three digits and more.
_LONG_NUMBER = re.compile(
    r"0x[0-9a-f]+|\d+(?:[-.:,/]\d+){2,}|\d{1,2}:\d\d(?!\d)|(?<![\d.])\d{3,}(?:\.\d+)?", re.IGNORECASE
)


@dataclass(frozen=True)
class InputField:
    """One field of a reading: a number from `low` to `high`, or one of some words."""

    unit: str = ""
    low: float | None = None  # what training covers; `from` in the file
    high: float | None = None  # `to` in the file
    step: float = 1.0  # what a number is cut to
    beyond: Literal["unfamiliar", "clamp"] = "unfamiliar"  # what a number outside of that range is
    one_of: tuple[str, ...] = ()
    usual: tuple[float, ...] = ()  # (low, high) of most readings, for what `generate` makes

    def to_json(self) -> dict[str, Any]:
        """As it is in a task file."""
        if self.one_of:
            return {"one_of": list(self.one_of)}
        unit = {"unit": self.unit} if self.unit else {}
        return {"from": self.low, "to": self.high, "step": self.step, "beyond": self.beyond, **unit}


@dataclass(frozen=True)
class Feature:
    """A number that is computed from the fields and the earlier readings, for the model to look at."""

    value: str  # an expression
    low: float
    high: float
    step: float = 1.0
    unit: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it is in a task file."""
        unit = {"unit": self.unit} if self.unit else {}
        return {"value": self.value, "from": self.low, "to": self.high, "step": self.step, **unit}

    @property
    def field(self) -> InputField:
        """As a field. Beyond its range it is clamped: whether a reading is familiar is for its fields to say."""
        return InputField(self.unit, self.low, self.high, self.step, "clamp")


@dataclass(frozen=True)
class Prompt:
    """What a model is given."""

    text: str
    unfamiliar: tuple[str, ...] = ()  # why the input is not like those of the training, in words
    readable: bool = True  # whether all that the task needs was there


@dataclass(frozen=True)
class Inputs:
    """What comes in: a text, or fields with earlier readings."""

    text: int | None = None  # characters at most; None: the task reads fields
    numbers: Literal["whole", "short"] = "whole"  # short: longer runs of digits in a text are read as one 0
    words: Literal["whole", "apart"] = "whole"  # apart: diskFull, disk_full and (disk:full) are each read word by word
    fields: Mapping[str, InputField] | None = None
    window: int = 0  # earlier readings that features may look at
    features: Mapping[str, Feature] | None = None
    _computed: Mapping[str, Expression] = field(init=False, repr=False, compare=False)  # the features'

    def __post_init__(self) -> None:
        computed = {name: Expression(feature.value) for name, feature in (self.features or {}).items()}
        object.__setattr__(self, "_computed", computed)

    def to_json(self) -> dict[str, Any]:
        """As it is in a task file, for the manifest of a bundle."""
        if self.text is not None:
            apart = {"words": self.words} if self.words != "whole" else {}
            return {"text": self.text, "numbers": self.numbers, **apart}
        found: dict[str, Any] = {"fields": {name: kind.to_json() for name, kind in (self.fields or {}).items()}}
        if self.window:
            found["window"] = self.window
        if self.features:
            found["features"] = {name: feature.to_json() for name, feature in self.features.items()}
        return found

    def prompt(self, given: Mapping[str, Any]) -> Prompt:
        """The prompt for a reading such as `{"temp_c": 71.5, "window": […]}`, or for `{"text": "…"}`."""
        if self.text is not None:
            return self._text_prompt(given.get("text"))
        parts, strange, readable = [], [], True
        for name, kind in (self.fields or {}).items():
            value = _word_of(given.get(name), kind) if kind.one_of else _number_of(given.get(name), kind)
            if value is None:
                readable = False
                strange.append(_missing(name, kind, given))
            elif not kind.one_of and not _within(float(value), kind):
                strange.append(f"{name} is {given[name]}; the model was trained for {kind.low:g} to {kind.high:g}")
            parts.append(written(name, value, kind))
        if readable:
            names = self.names(given)
            parts += [written(name, names[name], feature.field) for name, feature in (self.features or {}).items()]
        return Prompt(" ".join(parts) + "\n", tuple(strange), readable)

    def names(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What rules and features compute with: the fields as words and numbers to their steps, `window`, and the
        features."""
        names: dict[str, Any] = {name: _read(given.get(name), kind) for name, kind in (self.fields or {}).items()}
        if self.window:
            names["window"] = self._window(given.get("window"))
        for name, expression in self._computed.items():
            try:
                names[name] = expression.value(names)
            except LinkError:  # an earlier reading that lacks the field
                names[name] = None
        return names

    def _window(self, earlier: Any) -> list[Mapping[str, Any]]:
        """The last earlier readings, oldest first, without those that are no objects."""
        if not isinstance(earlier, Sequence) or isinstance(earlier, str):
            return []
        last = [reading for reading in earlier if isinstance(reading, Mapping)][-self.window :]
        return [{**reading, **self._read_of(reading)} for reading in last]

    def _read_of(self, reading: Mapping[str, Any]) -> dict[str, Any]:
        """Those fields of an earlier reading that can be read."""
        read = {name: _read(reading.get(name), kind) for name, kind in (self.fields or {}).items()}
        return {name: value for name, value in read.items() if value is not None}

    def _text_prompt(self, text: Any) -> Prompt:
        if not isinstance(text, str) or not text.strip():
            return Prompt("\n", ("there is no text",), readable=False)
        plain = " ".join(unicodedata.normalize("NFKC", text).split())
        if self.numbers == "short":
            plain = _LONG_NUMBER.sub("0", plain)
        assert self.text is not None
        strange: tuple[str, ...] = ()
        if len(plain) > self.text:
            strange = (f"the text has {len(plain)} characters; the model was trained for at most {self.text}",)
            plain = plain[: self.text]
        if self.words == "apart":  # each word after a space, the first too, so that it is the same token everywhere
            plain = "".join(f" {word}" for word in _WORD_BEGINS.sub(" ", plain).split())
        return Prompt(plain.lower() + "\n", strange)


def written(name: str, value: Any, field: InputField) -> str:
    """A field as it is in a prompt: `temp_c +084.9`."""
    if value is None or (not field.one_of and not isinstance(value, int | float)):
        return f"{name} {UNKNOWN}"
    if field.one_of:
        return f"{name} {value}"
    low, high = field.low or 0.0, field.high or 0.0
    places = max(0, -int(Decimal(repr(float(field.step))).normalize().as_tuple().exponent))
    width = len(str(int(max(abs(low), abs(high))))) + (places + 1 if places else 0)
    read = cut(min(max(value, low), high), field.step)
    sign = "-" if read < 0 else "+"
    return f"{name} {sign if low < 0 else ''}{abs(read):0{width}.{places}f}"


def cut(value: float, step: float) -> Decimal:
    """To the step, never rounded up."""
    of_step = Decimal(repr(float(step)))
    return (Decimal(repr(float(value))) / of_step).to_integral_value(ROUND_FLOOR) * of_step


def _read(value: Any, field: InputField) -> Any:
    """A word, or a number cut to its step, also beyond the range; None where it is neither."""
    if field.one_of:
        return _word_of(value, field)
    number = _number_of(value, field)
    if number is None:
        return None
    found = float(cut(number, field.step))
    return number if found == number else found  # a whole number stays one


def _within(value: float, field: InputField) -> bool:
    low, high = field.low, field.high
    return field.beyond == "clamp" or (low is not None and high is not None and low <= value <= high)


def _number_of(value: Any, field: InputField) -> int | float | None:
    """A number, or a text that is one and may end with the field's unit."""
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value)
        if found is None or (found[2] and _spelling(found[2]) != _spelling(field.unit)):
            return None
        value = float(found[1])
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return value if abs(value) < 1e15 else float("1e15") * (1 if value > 0 else -1)


def _word_of(value: Any, field: InputField) -> str | None:
    word = value.strip().lower() if isinstance(value, str) else value
    return next((known for known in field.one_of if known.lower() == word), None)


def _spelling(unit: str) -> str:
    """`°C`, `C` and `deg C` are one unit, `l/min` and `L / min` another."""
    return re.sub(r"[\s°º.]|deg(?:rees?)?", "", unit.lower())


def _missing(name: str, field: InputField, given: Mapping[str, Any]) -> str:
    expected = f"one of {', '.join(field.one_of)}" if field.one_of else f"a number{field.unit and ' of ' + field.unit}"
    found = f"{name} is {given[name]!r:.60}" if name in given else f"{name} is not there"
    return f"{found}; expected {expected}"
