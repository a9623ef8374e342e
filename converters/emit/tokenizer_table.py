"""`tokenizer.table`: what a start reads instead of tokenizer.json, where the engine's reader is known to agree with the
library."""

from __future__ import annotations

import json
from pathlib import Path

from converters.emit.c.byte_level_bpe import byte_level_table
from converters.texts import text_kinds
from device_runtime.bundle.manifest import TABLE
from device_runtime.engine.text.segments import Segment
from device_runtime.engine.text.table_tokenizer import TableTokenizer
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.errors import ConfigurationError

__all__ = ["write_tokenizer_table"]

_SAMPLE = 8000  # characters of each kind of text, on which the two are compared
_TOKENS_AT_ONCE = 64
_OWN_WAYS = ("single_word", "lstrip", "rstrip")  # of an added token, to match more or less than its name
_EDGES = (
    "  two  spaces\t\n\n",
    "'LL I'll 12345 \u0663\u0664 \u00bd\u00a0\u2003x",
    "\u6e29\u5ea6\u304c \U0001f642 e\u0301\u200d \r\n\r\n ",
)


def write_tokenizer_table(folder: Path, content: bytes, library: Tokenizer) -> bool:
    """Write the table of a tokenizer.json, unless it is of a kind, or has something, that only the library does.

    Args:
        library: the same tokenizer, by the library, with the names of its control tokens.
    """
    path = folder / TABLE
    try:
        table = byte_level_table(content, library.names).pack()
    except ConfigurationError:
        return False
    names = {name: library.encode(name) for name in library.names}
    added = json.loads(content).get("added_tokens", [])
    if any(len(ids) != 1 for ids in names.values()) or any(token.get(way) for token in added for way in _OWN_WAYS):
        return False
    described = {"names": {name: ids[0] for name, ids in names.items()}, "special": list(library.special)}
    path.write_bytes(table + json.dumps(described).encode())
    if _agree(path, library):
        return True
    path.unlink()
    return False


def _agree(path: Path, library: Tokenizer) -> bool:
    reader = TableTokenizer(path, lambda: library)
    texts = [text[:_SAMPLE] for text in text_kinds("heldout").values()]
    texts += [*_EDGES, *(f"a {name}{name} b" for name in library.names)]
    for text in texts:
        for segments in ([Segment(text, True)], [Segment(text, False)]):
            if reader.encode(segments) != library.encode(segments):
                return False
    for start in range(0, reader.count, _TOKENS_AT_ONCE):
        tokens = range(start, min(start + _TOKENS_AT_ONCE, reader.count))
        if reader.decode(tokens) != library.decode(tokens):
            return False
    return True
