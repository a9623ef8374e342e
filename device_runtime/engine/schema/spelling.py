"""What of an answer a bundle's vocabulary cannot spell: names of properties and values that a schema gives.

The small vocabularies of trained tasks have the pieces of their own answers, and of what they read. Some have single
characters besides that are read back as others: a space is a U+2581 to SentencePiece, and where no token has one, no
text but the task's own answer has spaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from device_runtime.engine.schema.grammar_tokenizer import GrammarTokenizer

__all__ = ["spelling_fault"]

_MOST_SHOWN = 3  # texts that cannot be spelt
_DEEPEST = 40  # levels
_BEGINNINGS = ('"', "0", "true", "null", "[", "{")  # of values that a schema does not name
_NAMES = {" ": "a space", "\n": "a line's end"}
_COLON = "the space after its colon"  # in a property whose name has none


def spelling_fault(tokenizer: GrammarTokenizer, schema: Mapping[str, Any]) -> str | None:
    """Which property or value of a schema has no tokens, and which characters of it; None where there is none."""
    found = [_said(tokenizer, where, text) for where, text in _unspelt(tokenizer, schema, "", 0)]
    if not found:
        return None
    more = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return "; ".join(found[:_MOST_SHOWN]) + more


def _said(tokenizer: GrammarTokenizer, where: str, text: str) -> str:
    missing = [character for character in dict.fromkeys(text) if not tokenizer.spells(character)]
    if not missing:  # an accent that is a character of its own, where the tokenizer composes them
        return f"{where} (its tokens are read back as another text)"
    names = _NAMES if " " in text.removeprefix(", ").removesuffix(": ") else {**_NAMES, " ": _COLON}
    return f"{where} (no token for {', '.join(names.get(c, repr(c)) for c in missing)})"


def _unspelt(tokenizer: GrammarTokenizer, node: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """What cannot be spelt, as people call it, and its text."""
    if not isinstance(node, Mapping) or depth > _DEEPEST:
        return
    properties = node.get("properties")
    for number, (name, inner) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        below = f"{path}.{name}" if path else str(name)
        before = f"{', ' if number else '{'}{json.dumps(name, ensure_ascii=False)}: "
        values = [json.dumps(value, ensure_ascii=False) for value in _values(inner)]
        wrong = [value for value in values or _BEGINNINGS if not tokenizer.spells(before + value)]
        if len(wrong) == len(values or _BEGINNINGS) and not tokenizer.spells(before):
            yield f"the property {below!r}", before
        elif values:
            yield from ((f"{value} in {below!r}", value) for value in wrong)
        yield from _unspelt(tokenizer, inner, below, depth + 1)
    for inner in _parts(node):
        yield from _unspelt(tokenizer, inner, path, depth + 1)


def _parts(node: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas in a schema, but for those of its properties."""
    for word in ("items", "additionalProperties"):
        yield node.get(word)
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        yield from node[word] if isinstance(node.get(word), list) else ()
    for word in ("$defs", "definitions"):
        yield from node[word].values() if isinstance(node.get(word), Mapping) else ()


def _values(schema: Any) -> Iterator[Any]:
    """The values that a property can have, where the schema names them."""
    if not isinstance(schema, Mapping):
        return
    if "const" in schema:
        yield schema["const"]
    elif isinstance(schema.get("enum"), list):
        yield from schema["enum"]
