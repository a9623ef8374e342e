"""Whether an answer from elsewhere fits a schema: by the same grammar that holds our own answers to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from device_runtime.engine.structured import check_schema, grammar_library, grammar_of
from device_runtime.errors import IncompleteError, SchemaError
from device_runtime.records.printable import counted

__all__ = ["accepted"]

_FENCES = ("```json", "```")  # that some servers' models write around JSON


def accepted(text: str, schema: Mapping[str, Any]) -> str:
    """The answer as our own would be written: its fields in the order of the schema, spaces as in our own.

    Args:
        text: as the other side has sent it.

    Raises:
        IncompleteError: it does not fit; says why, without a word of it.
        SchemaError: the schema cannot be used here.
    """
    value = _parsed(text)
    check_schema(schema)  # one of a client may be more than can be compiled here
    grammar = grammar_of(schema)
    ordered = _in_order(value, schema)
    for found in (ordered, value):
        written = json.dumps(found, ensure_ascii=False)
        if _fits(written, grammar):
            return written
    fields = schema.get("properties")
    names = f" with {', '.join(fields)}" if isinstance(fields, Mapping) and fields else ""
    raise IncompleteError(f"the answer is JSON, but does not fit the schema{names}.")


def _parsed(text: str) -> Any:
    text = text.strip()
    if text.startswith(_FENCES[1]) and text.endswith(_FENCES[1]):
        text = text.removeprefix(_FENCES[0]).removeprefix(_FENCES[1]).removesuffix(_FENCES[1])
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text that could be passed on
        return value
    except (ValueError, RecursionError):
        raise IncompleteError(f"the answer, of {counted(len(text), 'character')}, is no JSON.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _fits(text: str, grammar: str) -> bool:
    matcher = grammar_library()(_bytes(), grammar, log_level=0)
    if matcher.is_error():
        raise SchemaError(f"The schema cannot be used: {matcher.get_error()}.")
    encoded = list(text.encode())
    return int(matcher.try_consume_tokens(encoded)) == len(encoded) and bool(matcher.is_accepting())


@lru_cache(maxsize=1)
def _bytes() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _in_order(value: Any, schema: Any) -> Any:
    """`value` with the properties of its objects in the order in which the schema has them."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, Mapping):
        known = schema.get("properties")
        known = known if isinstance(known, Mapping) else {}
        names = [*(name for name in known if name in value), *(name for name in value if name not in known)]
        return {name: _in_order(value[name], known.get(name)) for name in names}
    if isinstance(value, list):
        return [_in_order(item, schema.get("items")) for item in value]
    return value
