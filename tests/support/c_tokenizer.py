"""The C tokenizer as a library of this machine (tests only)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from tests.support.c_programs import compile_program, sources_of

__all__ = ["CTokenizer", "Refused", "tokenizer_library"]

SOURCE = Path(__file__).parents[1] / "device_runtime" / "micro" / "tokenizer_library.c"


class Refused(Exception):
    """The C code returned a status other than SC_OK; `args[0]` is its number."""


def tokenizer_library(folder: Path) -> ctypes.CDLL:
    """Compile it."""
    files = [SOURCE, *sources_of("tokenizer", "runtime/utf8.c")]
    return ctypes.CDLL(str(compile_program(folder / "tokenizer.so", *files, engine=False, shared=True)))


class CTokenizer:
    """One table."""

    def __init__(self, library: ctypes.CDLL, table: bytes) -> None:
        self._library = library
        self._table = ctypes.create_string_buffer(table, len(table))
        self._size = len(table)
        status = library.test_open(self._table, self._size)
        if status:
            raise Refused(status)

    def encode(self, text: str | bytes, chunk: int = 1 << 20, work: int = 1 << 16) -> list[int]:
        """Tokens of `text`, which is fed `chunk` bytes at a time."""
        data = text.encode() if isinstance(text, str) else text
        tokens = (ctypes.c_uint32 * (len(data) * 4 + 16))()
        count = self._library.test_encode(
            self._table, self._size, data, len(data), chunk, work, tokens, ctypes.c_uint32(len(tokens))
        )
        if count < 0:
            raise Refused(-count)
        return list(tokens[:count])

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token adds, and what the end adds."""
        ids = (ctypes.c_uint32 * max(len(tokens), 1))(*tokens)
        out = ctypes.create_string_buffer(len(tokens) * 512 + 64)
        ends = (ctypes.c_uint32 * (len(tokens) + 1))()
        status = self._library.test_decode(
            self._table, self._size, ids, len(tokens), out, ctypes.c_uint32(len(out)), ends
        )
        if status:
            raise Refused(status)
        return [out.raw[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
