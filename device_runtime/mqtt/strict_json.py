"""Strict JSON for payloads that anybody may have written (RFC 8259, and no more than it).

Python's `json` takes NaN, repeated names, numbers that become infinite and unpaired surrogates. Each of these would
surface later, far from its cause, so they are refused here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from device_runtime.errors import MessageError

__all__ = ["MAX_PAYLOAD_BYTES", "Check", "MessageError", "check_fields", "dump", "integer", "number", "parse", "text"]

MAX_PAYLOAD_BYTES = 65_536
MAX_DEPTH = 16  # levels of lists and objects

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)

Check = Callable[[str, Any], Any]  # (field name, value) -> value, or MessageError


def parse(payload: bytes) -> Any:
    """The JSON value in `payload`.

    Raises:
        MessageError: it is too large, not UTF-8, not JSON, or nested too deep.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"the payload has {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are read.")
    try:
        source = payload.decode("utf-8")
    except UnicodeDecodeError as e:
        raise MessageError(f"the payload is not UTF-8: byte {e.start} is 0x{payload[e.start]:02x}.") from None
    if not source.strip():
        raise MessageError("the payload is empty, which is not JSON.")
    _check_depth(source)
    try:
        value = json.loads(
            source, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats
        )
    except json.JSONDecodeError as e:
        raise MessageError(f"the payload is not JSON: {e.msg} at line {e.lineno}, column {e.colno}.") from None
    except ValueError as e:
        if isinstance(e, MessageError):
            raise
        raise MessageError("the payload holds a number with too many digits.") from None
    _check_surrogates(source, value)
    return value


def dump(fields: Mapping[str, Any]) -> bytes:
    """`fields` as JSON, without spaces."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def check_fields(what: str, value: Any, table: Mapping[str, Check], *, strict: bool = True) -> dict[str, Any]:
    """The fields of the object `value`, each through its check in `table`; null counts as absent.

    Raises:
        MessageError: `value` is no object, a check fails, or (when `strict`) a field is not in the table.
    """
    if not isinstance(value, dict):
        raise MessageError(f"{what} must be a JSON object, not {_kind(value)}.")
    checked = {}
    for name, item in value.items():
        if name not in table:
            if strict:
                near = get_close_matches(name, table, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(table)}."
                raise MessageError(f"{what} has no field {name[:64]!r}; {hint}")
        elif item is not None:
            checked[name] = table[name](name, item)
    return checked


@dataclass(frozen=True)
class text:
    """A check: a string of at most `limit` characters, one of `choices` if there are any."""

    limit: int = MAX_PAYLOAD_BYTES
    choices: tuple[str, ...] = ()

    def __call__(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise MessageError(f"{name} must be a string, not {_kind(value)}.")
        if len(value) > self.limit:
            raise MessageError(f"{name} has {len(value)} characters; at most {self.limit} are allowed.")
        if self.choices and value not in self.choices:
            raise MessageError(f"{name} is {value[:64]!r}; it must be one of {', '.join(self.choices)}.")
        return value


@dataclass(frozen=True)
class integer:
    """A check: a whole number from `low` to `high`."""

    low: int = 0
    high: int = 2**31 - 1

    def __call__(self, name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise MessageError(f"{name} must be a whole number, not {_kind(value)}.")
        if not self.low <= value <= self.high:
            raise MessageError(
                f"{name} is {value if value.bit_length() < 64 else 'huge'}; it must be from {self.low} to {self.high}."
            )
        return value


@dataclass(frozen=True)
class number:
    """A check: a number from `low` to `high`."""

    low: float = 0.0
    high: float = math.inf

    def __call__(self, name: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise MessageError(f"{name} must be a number, not {_kind(value)}.")
        if isinstance(value, int) and value.bit_length() > 64:
            raise MessageError(f"{name} is huge; it must be from {self.low:g} to {self.high:g}.")
        if not self.low <= value <= self.high:
            raise MessageError(f"{name} is {value}; it must be from {self.low:g} to {self.high:g}.")
        return float(value)


def flag(name: str, value: Any) -> bool:
    """A check: true or false."""
    if not isinstance(value, bool):
        raise MessageError(f"{name} must be true or false, not {_kind(value)}.")
    return value


def _check_depth(source: str) -> None:
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(source):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MessageError(f"the payload nests deeper than {MAX_DEPTH} levels.")
        elif token[0] in "]}":
            depth -= 1


def _check_surrogates(source: str, value: Any) -> None:
    if "\\u" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise MessageError("the payload holds half of a surrogate pair, which is no character.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise MessageError(f"the payload holds {name}, which is not JSON.")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise MessageError("the payload holds a number beyond the range of a double.")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise MessageError("the payload names a field twice.")
    return fields


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"
