"""Byte-level BPE from the compact table that a conversion writes beside tokenizer.json.

Reading a tokenizer.json builds a vocabulary and a merge list in memory, which takes a fifth of a start and 30 MB. The
table is read where it lies: `docs/explained/tokenizer-table.md` describes it, and the C engine reads the same. Tests
hold both readers to what `tokenizers` gives. What is rare and would take much code is left to that library.
"""

from __future__ import annotations

import json
import re
import struct
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from device_runtime.engine.text.segments import PRIVATE, Segment
from device_runtime.errors import BundleError

__all__ = ["TableTokenizer", "Vocabulary"]

# converters/emit/c/tokenizer.py and device_runtime/micro/tokenizer/table.h have the same numbers.
_HEADER = struct.Struct("<4sIIIIIIIIffI16I")
_FORMAT, _BYTE_LEVEL, _NO_TOKEN = 1, 1, 0xFFFFFFFF
_WHOLE_WORDS, _NFC, _WIDE_LENGTHS, _WIDE_IDS = 1, 16, 32, 64
_GPT2, _GPT2_DIGITS, _GPT4_THREE, _GPT4_ONE = 1, 2, 3, 4
_LETTER, _NUMBER, _SPACE, _DIGIT = 1, 2, 4, 8
_NEVER = 1 << 62
_PER_START = 16  # texts that share one start
_LONGEST_WORD = 512  # bytes: the time to merge a word grows with the square of its length
_REMEMBERED = 1 << 14  # words, and pairs of tokens

# Texts are cut by their shape: the text with one ASCII character for each of its own, so that expressions stay short.
_OTHER_NUMBER, _OTHER = "\x01", "!"  # a number that is no digit; what is neither letter, number nor space
_L, _N, _S = "A-Za-z", "0-9\x01", "\t-\r "
_DIGITS_APART = re.compile("[0-9]|[^0-9]+")
_CUTS = {
    _GPT2: f"'(?:[stmd]|re|ve|ll)| ?[{_L}]+| ?[{_N}]+| ?[^{_S}{_L}{_N}]+|[{_S}]+(?![^{_S}])|[{_S}]+",
    _GPT4_THREE: f"'(?:[stmdSTMD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n{_L}{_N}]?[{_L}]+|[{_N}]{{1,3}}"
    f"| ?[^{_S}{_L}{_N}]+[\r\n]*|[{_S}]*[\r\n]+|[{_S}]+(?![^{_S}])|[{_S}]+",
}
_CUTS[_GPT2_DIGITS] = _CUTS[_GPT2]
_CUTS[_GPT4_ONE] = _CUTS[_GPT4_THREE].replace("{1,3}", "")


class _BeyondTable(Exception):
    """A text that is left to the library."""


class Vocabulary:
    """Tokens and merges in the bytes of a table."""

    def __init__(self, data: bytes) -> None:
        """`data` begins with a table; raises a `ValueError` if it does not."""
        magic, form, size, kind, cut, flags, count, _, _, _, _, _, *sizes = _HEADER.unpack_from(data)
        self.cut, self.count = int(cut), int(count)
        if (magic, form, kind) != (b"SCTK", _FORMAT, _BYTE_LEVEL) or self.cut not in _CUTS or size > len(data):
            raise ValueError("it is no table of byte-level BPE")
        self.size, place, parts = size, _HEADER.size, []
        view = memoryview(data)
        for part in sizes:
            parts.append(view[place : place + part])
            place += part + -part % 4
        if place != size:
            raise ValueError(f"its parts have {place:,} bytes, its header says {size:,}")
        ids: Literal["I", "H"] = "I" if flags & _WIDE_IDS else "H"
        self._starts, self._lengths = parts[0].cast("I"), parts[1].cast("H" if flags & _WIDE_LENGTHS else "B")
        self._bytes = bytes(parts[2])
        self._split_starts, self._splits, self._split_bytes = parts[3].cast("I"), parts[4], parts[5]
        self._ranks = parts[6].cast("I") if parts[6] else None
        self._sorted, self._byte_ids, self.controls = parts[8].cast(ids), parts[9].cast(ids), parts[10].cast("I")
        self.users, self._classes = parts[11].cast(ids), parts[12].cast("I")
        self.whole_words, self.composes = bool(flags & _WHOLE_WORDS), bool(flags & _NFC)
        self._none = _NO_TOKEN if flags & _WIDE_IDS else 0xFFFF
        if len(self._lengths) != self.count or len(self._splits) != self.count or len(self._byte_ids) != 256:
            raise ValueError("its parts are not of one vocabulary")
        starts = -(-self.count // _PER_START)
        if len(self._starts) != starts or len(self._split_starts) not in (0, starts):
            raise ValueError("its texts have no beginnings")
        if max((*self._sorted, *self.users), default=0) >= self.count:
            raise ValueError("it lists a token that it does not have")
        self._found: dict[bytes, int] = {}  # what was looked for lately; -1: it is no token

    def text(self, token: int) -> bytes:
        """The bytes of a token; none of a control token."""
        start = self._starts[token // _PER_START] + sum(self._lengths[token - token % _PER_START : token])
        return self._bytes[start : start + self._lengths[token]]

    def of_byte(self, byte: int) -> int | None:
        """The token of one byte."""
        token = self._byte_ids[byte]
        return None if token == self._none else token

    def find(self, text: bytes) -> int:
        """The token that has these bytes and that a text may become; -1: there is none."""
        token = self._found.get(text)
        if token is None:
            place = bisect_left(self._sorted, text, key=self.text)
            token = -1
            if place < len(self._sorted) and self.text(self._sorted[place]) == text:
                token = self._sorted[place]
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[text] = token
        return token

    def rank(self, left: bytes, right: bytes) -> int:
        """How early two neighbours merge; lower is earlier."""
        token = self.find(left + right)
        if token < 0:
            return _NEVER
        rank = (token if self._ranks is None else self._ranks[token]) << 8
        if not self._split_starts:
            return rank if self._splits[token] == len(left) else _NEVER
        start = self._split_starts[token // _PER_START] + sum(self._splits[token - token % _PER_START : token])
        splits = bytes(self._split_bytes[start : start + self._splits[token]])
        at = splits.find(len(left)) if len(left) < 256 else -1
        return rank | at if at >= 0 else _NEVER

    def class_of(self, character: int) -> int:
        """Letter, number, space and digit, as bits."""
        place = bisect_left(self._classes, (character + 1) << 4)
        return self._classes[place - 1] & 15 if place else 0


class TableTokenizer:
    """See `device_runtime.engine.tokenizer.Tokenizer`."""

    def __init__(self, path: Path, library: Callable[[], Any]) -> None:
        """Read a table, which the names of control tokens follow as JSON.

        Args:
            library: opens the same tokenizer with the library; called at the first text that needs it.

        Raises:
            BundleError: it is no such table.
        """
        try:
            data = path.read_bytes()
            vocabulary = Vocabulary(data)
            described = json.loads(data[vocabulary.size :])
            self._ids = {str(name): int(token) for name, token in described["names"].items()}
            self.special: Collection[str] = [str(name) for name in described["special"]]
            self._users = {vocabulary.text(token).decode(): token for token in vocabulary.users}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
            raise BundleError(
                f"{path} cannot be read as a tokenizer's table ({error}); convert the checkpoint again."
            ) from None
        self.names: Collection[str] = list(self._ids)
        self._vocabulary, self._open_library, self._opened = vocabulary, library, None
        self._name = _any_of(self._ids)
        self._user = _any_of(self._users)
        self._word = re.compile(_CUTS[vocabulary.cut])
        self._shapes = _Shapes(vocabulary)
        self._words: dict[bytes, tuple[int, ...]] = {}  # what they became lately

    @property
    def count(self) -> int:
        """Tokens, those without a text among them."""
        return self._vocabulary.count

    def encode(self, text: str | Sequence[Segment]) -> list[int]:
        """As in `Tokenizer`."""
        segments = [Segment(text, True)] if isinstance(text, str) else text
        try:
            return list(self._encoded(segments))
        except _BeyondTable:
            tokens: list[int] = self._library().encode(segments)
            return tokens

    def encode_inside(self, text: str) -> list[int]:
        """As in `Tokenizer`."""
        return self.encode([Segment(text, False)])

    def decode(self, tokens: Sequence[int]) -> str:
        """As in `Tokenizer`."""
        count, text = self._vocabulary.count, self._vocabulary.text
        return b"".join([text(token) for token in tokens if 0 <= token < count]).decode(errors="replace")

    def _library(self) -> Any:
        if self._opened is None:
            self._opened = self._open_library()
        return self._opened

    def _encoded(self, segments: Iterable[Segment]) -> Iterator[int]:
        plain: list[str] = []  # since the last control token; segments meet without a border
        for part, markup in segments:
            part, start = PRIVATE.sub("\ufffd", part), 0
            for name in self._name.finditer(part) if markup else ():
                yield from self._plain("".join([*plain, part[start : name.start()]]))
                yield self._ids[name[0]]
                plain, start = [], name.end()
            plain.append(part[start:])
        yield from self._plain("".join(plain))

    def _plain(self, text: str) -> Iterator[int]:
        """Tokens of a text without markup."""
        if self._vocabulary.composes and not text.isascii():
            raise _BeyondTable
        start = 0
        for user in self._user.finditer(text):
            yield from self._between(text[start : user.start()])
            yield self._users[user[0]]
            start = user.end()
        yield from self._between(text[start:])

    def _between(self, text: str) -> Iterator[int]:
        shape = text if text.isascii() and _OTHER_NUMBER not in text else text.translate(self._shapes)
        parts = [(0, len(shape))]
        if self._vocabulary.cut == _GPT2_DIGITS:
            parts = [found.span() for found in _DIGITS_APART.finditer(shape)]
        for first, end in parts:
            for word in self._word.finditer(shape[first:end]):
                yield from self._of_word(text[first + word.start() : first + word.end()].encode())

    def _of_word(self, word: bytes) -> tuple[int, ...]:
        if (known := self._words.get(word)) is not None:
            return known
        if len(word) > _LONGEST_WORD:
            raise _BeyondTable
        if len(self._words) >= _REMEMBERED:
            self._words.clear()
        self._words[word] = tokens = self._merged(word)
        return tokens

    def _merged(self, word: bytes) -> tuple[int, ...]:
        """Neighbours that merge earliest are merged, the left ones of equals, until none are left."""
        vocabulary = self._vocabulary
        if vocabulary.whole_words and (token := vocabulary.find(word)) >= 0:
            return (token,)
        # Bytes without a token vanish, as in the library, and what was around them are neighbours.
        symbols = [bytes([byte]) for byte in word if vocabulary.of_byte(byte) is not None]
        ranks = [vocabulary.rank(left, right) for left, right in pairwise(symbols)]
        while ranks and (least := min(ranks)) < _NEVER:
            at = ranks.index(least)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            del ranks[at]
            if at < len(ranks):
                ranks[at] = vocabulary.rank(symbols[at], symbols[at + 1])
            if at > 0:
                ranks[at - 1] = vocabulary.rank(symbols[at - 1], symbols[at])
        found = [vocabulary.of_byte(symbol[0]) if len(symbol) == 1 else vocabulary.find(symbol) for symbol in symbols]
        return tuple(token for token in found if token is not None)


class _Shapes(dict[int, str]):
    """For `str.translate`: the ASCII character that stands for a character when texts are cut; found when asked."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__({ord(_OTHER_NUMBER): _OTHER})
        self._vocabulary = vocabulary
        if vocabulary.cut in (_GPT4_THREE, _GPT4_ONE):
            self[0x17F] = "s"  # the long s: their expressions take an s in any case after an apostrophe

    def __missing__(self, character: int) -> str:
        if character < 128:
            shape = chr(character)
        else:
            kind = self._vocabulary.class_of(character)
            number = "0" if kind & _DIGIT else _OTHER_NUMBER  # the library's digits are all numbers
            shape = "a" if kind & _LETTER else number if kind & _NUMBER else "\t" if kind & _SPACE else _OTHER
        self[character] = shape
        return shape


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
