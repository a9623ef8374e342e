"""Strict JSON for payloads that anybody may have written (RFC 8259, and no more than it).

Python's `json` takes NaN, repeated names, numbers that become infinite and unpaired surrogates. Each of these would
surface later, far from its cause, so they are refused here.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from device_runtime.errors import MessageError
from device_runtime.records import typed_json
from device_runtime.records.printable import shown

__all__ = ["MAX_PAYLOAD_BYTES", "MessageError", "dump", "parse", "parse_line", "read", "require_characters"]

MAX_PAYLOAD_BYTES = 65_536
MAX_DEPTH = 16  # levels of lists and objects

# No alternative of this looks further than two characters, so a search takes time in proportion to the text, whatever
# the text is. A pattern for a whole string would begin again at each quote of a string that does not end.
_ESCAPE_QUOTE_OR_BRACKET = re.compile(r'\\.|["\[{\]}]', re.DOTALL)

_COMMAND = typed_json.Manner(unknown_fields_refused=True, null_is_absent=True, quotes_values=False)
_REPORT = typed_json.Manner(null_is_absent=True, quotes_values=False)


def parse(
    payload: bytes, *, what: str = "payload", most_bytes: int = MAX_PAYLOAD_BYTES, most_levels: int = MAX_DEPTH
) -> Any:
    """The JSON value in `payload`.

    Args:
        what: it is, for errors.

    Raises:
        MessageError: it is too large, not UTF-8, not JSON, or nested too deep.
    """
    if len(payload) > most_bytes:
        raise MessageError(f"the {what} has {len(payload)} bytes; at most {most_bytes} are read.")
    try:
        source = payload.decode("utf-8")
    except UnicodeDecodeError as e:
        raise MessageError(f"the {what} is not UTF-8: byte {e.start} is 0x{payload[e.start]:02x}.") from None
    if not source.strip():
        raise MessageError(f"the {what} is empty, which is not JSON.")
    _check_depth(source, what, most_levels)
    try:
        value = json.loads(
            source, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats
        )
    except json.JSONDecodeError as e:
        raise MessageError(f"the {what} is not JSON: {e.msg} at line {e.lineno}, column {e.colno}.") from None
    except ValueError as e:
        if isinstance(e, MessageError):
            raise MessageError(f"the {what} {e}") from None
        raise MessageError(f"the {what} holds a number with too many digits.") from None
    require_characters(source, value, what)
    return value


def parse_line(line: str) -> Any:
    """The JSON value in a line of a file, of whatever length: one that may hold a payload, as a field of a field.

    Raises:
        MessageError: as of `parse`.
    """
    return parse(line.encode("utf-8", "surrogatepass"), what="line", most_bytes=sys.maxsize, most_levels=MAX_DEPTH + 2)


def require_characters(source: str, value: Any, what: str) -> None:
    """Refuse what no UTF-8 can hold, so that nothing could send it on or keep it.

    Args:
        source: the JSON text that `value` was read from.

    Raises:
        MessageError: a text in it has half of a surrogate pair.
    """
    if "\\u" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise MessageError(f"the {what} holds half of a surrogate pair, which is no character.") from None


def dump(fields: Mapping[str, Any]) -> bytes:
    """`fields` as JSON, without spaces."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def read(kind: Any, value: Any, what: str, *, strict: bool = True) -> Any:
    """Parsed JSON as a record (`device_runtime/records/typed_json.py`); null counts as absent.

    Args:
        kind: the record's class.
        what: the message, for errors.
        strict: an unknown field is an error.

    Raises:
        MessageError: `value` is no object, a field has a wrong value, or one is missing (or unknown, when `strict`).
    """
    try:
        return typed_json.read(kind, value, what, _COMMAND if strict else _REPORT)
    except ValueError as error:
        raise MessageError(str(error)) from None


def _check_depth(source: str, what: str, most_levels: int) -> None:
    depth, in_string = 0, False
    for token in _ESCAPE_QUOTE_OR_BRACKET.findall(source):
        if token == '"':
            in_string = not in_string
        elif in_string or token[0] == "\\":
            continue
        elif token in "[{":
            depth += 1
            if depth > most_levels:
                raise MessageError(f"the {what} nests deeper than {most_levels} levels.")
        else:
            depth -= 1


def _refuse_constant(name: str) -> NoReturn:
    raise MessageError(f"holds {name}, which is not JSON.")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise MessageError("holds a number beyond the range of a double.")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise MessageError(f"names the field {shown(repr(twice), 60)} twice.")
    return fields
