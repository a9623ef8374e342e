"""Tables for Unicode normalization form C, which some tokenizers apply to text first.

`tokenizers` follows an older version of Unicode than Python does: a character counts only if the library knows it.
"""

from __future__ import annotations

import struct
import sys
import unicodedata
from functools import cache

from tokenizers import normalizers

__all__ = ["composition_tables"]

_HANGUL = range(0xAC00, 0xD7A4)  # composed by arithmetic
_BASE, _LAST_MARK = "\u4e00", 0x0345  # a character that no mark is composed with; the mark of the highest class, 240


@cache
def composition_tables() -> tuple[bytes, bytes]:
    """Decompositions with the order of those that compose again, and combining classes (table.h)."""
    compose, decompose = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    decompositions: list[tuple[int, int, int]] = []
    combining: list[int] = []
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        order = unicodedata.combining(character)
        # A mark that the library knows goes before the last of all marks.
        if order and (point == _LAST_MARK or decompose(_BASE + chr(_LAST_MARK) + character)[1] != chr(_LAST_MARK)):
            combining.append(point << 8 | order)
        parts = unicodedata.decomposition(character).split()
        if parts and not parts[0].startswith("<") and point not in _HANGUL and decompose(character) != character:
            first, second = [int(part, 16) for part in [*parts, "0"][:2]]
            decompositions.append((point, first, second))
    composed = [
        number
        for number, (point, first, second) in enumerate(decompositions)
        if second and compose(chr(first) + chr(second)) == chr(point)
    ]
    composed.sort(key=lambda number: decompositions[number][1:])
    table = struct.pack("<II", len(decompositions), len(composed))
    table += b"".join(struct.pack("<III", *entry) for entry in decompositions)
    table += struct.pack(f"<{len(composed)}H", *composed)
    return table + bytes(-len(table) % 4), struct.pack(f"<{len(combining)}I", *combining)
