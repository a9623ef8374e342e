"""What `tokenizers` takes for a letter, a number or a space, code point by code point.

The library is asked, not Python's `unicodedata`: the two follow different versions of Unicode, and a board has to cut
text where the library does.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, pre_tokenizers

__all__ = ["DIGIT", "LETTER", "NUMBER", "SPACE", "character_classes"]

LETTER, NUMBER, SPACE, DIGIT = 1, 2, 4, 8  # device_runtime/micro/tokenizer/table.h
_SURROGATES = 0xD800, 0xE000
_END = 0x40000  # no letter, number or space has ever been assigned from here on
_AT_ONCE = 2048  # code points: the library's time grows faster than a text


@cache
def character_classes() -> bytes:
    """Entries `first code point << 4 | class`, uint32 little-endian, ascending: each holds until the next one."""
    classes = np.zeros(_END, np.uint8)
    for pattern, bit in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)):
        others = pre_tokenizers.Split(Regex(pattern), "removed")
        classes |= np.where(_covered(others, 0), 0, bit).astype(np.uint8)
    digits = pre_tokenizers.Digits(individual_digits=False)  # runs of digits and of other characters in turn
    classes |= np.where(_covered(digits, 1), DIGIT, 0).astype(np.uint8)
    first, after = _SURROGATES
    classes[first:after] = 0
    starts = np.flatnonzero(np.diff(classes, prepend=np.uint8(255)))
    return (starts.astype("<u4") << 4 | classes[starts]).astype("<u4").tobytes()


def _covered(splitter: pre_tokenizers.PreTokenizer, parity: int) -> npt.NDArray[np.bool_]:
    """(code points,): those inside of the pieces that `splitter` leaves; with parity 1, of every second one."""
    inside = np.zeros(_END, np.bool_)
    points = [point for point in range(_END) if not _SURROGATES[0] <= point < _SURROGATES[1]]
    for at in range(0, len(points), _AT_ONCE):
        part = points[at : at + _AT_ONCE]
        # A character that is neither comes first, so that runs of the two kinds begin alike everywhere.
        pieces = splitter.pre_tokenize_str("\0" + "".join(map(chr, part)))
        for _, (start, end) in pieces[1::2] if parity else pieces:
            for place in range(max(start - 1, 0), end - 1):
                inside[part[place]] = True
    return inside
