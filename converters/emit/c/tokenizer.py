"""The tokenizer as a compact table that a board reads where it lies.

docs/explained/tokenizer-table.md describes it; device_runtime/micro/tokenizer/ reads it. What the C code cannot do
exactly as the Python libraries do is refused here, by its name.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from device_runtime.errors import ConfigurationError

__all__ = ["Cut", "Flag", "Kind", "TokenizerTable", "pack_ids", "refuse"]

FORMAT = 1
NO_TOKEN = 0xFFFFFFFF
LONGEST_USER_TOKEN = 128  # bytes
_HEADER = struct.Struct("<4sIIIIIIIIffI16I")
_PER_START = 16  # texts that share one start


class Kind(enum.IntEnum):
    """How tokens are found."""

    BYTE_LEVEL_BPE = 1
    SENTENCEPIECE_BPE = 2
    UNIGRAM = 3


class Cut(enum.IntEnum):
    """How text is cut before merging (table.h)."""

    NOWHERE = 0
    GPT2 = 1
    GPT2_DIGITS = 2
    GPT4_THREE = 3
    GPT4_ONE = 4
    BEFORE_SPACES = 5


class Flag(enum.IntFlag):
    """table.h says what each means."""

    WHOLE_WORDS = 1
    BYTE_FALLBACK = 2
    DUMMY_PREFIX = 4
    FEWER_SPACES = 8
    NFC = 16
    WIDE_LENGTHS = 32
    WIDE_IDS = 64
    SEVERAL_SPLITS = 128
    OWN_SPACE = 256


@dataclass
class TokenizerTable:
    """What is in a table, before it is packed. Token ids are indices into `texts`."""

    kind: Kind
    cut: Cut
    flags: Flag
    texts: Sequence[bytes]  # of each token, as decoding gives it; empty for control tokens
    matched: Sequence[int]  # ids that text may become by merging or by their score
    controls: Sequence[int] = ()  # ids without text
    users: Sequence[int] = ()  # ids that are found in text before anything else
    byte_ids: Sequence[int | None] = ()  # 256, or none; None: that byte has no token
    unknown: int | None = None
    splits: Sequence[Sequence[int]] = ()  # byte-level: bytes of the left half of each merge that makes the token
    ranks: Sequence[int] | None = None  # lower merges first; None: the id is the rank
    scores: Sequence[float] | None = None  # unigram
    score_range: tuple[float, float] = (0.0, 0.0)  # the least and the greatest of the normal pieces
    charsmap: bytes = b""  # SentencePiece's precompiled normalization map
    classes: bytes = b""
    composition: tuple[bytes, bytes] = field(default=(b"", b""))  # decompositions, combining classes

    def pack(self) -> bytes:
        """The table's bytes.

        Raises:
            ConfigurationError: a token is longer than the format holds.
        """
        longest = max(map(len, self.texts))
        if longest >= 1 << 16:
            raise refuse(f"a token of {longest:,} bytes", "tokens of less than 65,536 bytes")
        for token in self.users:
            if len(self.texts[token]) > LONGEST_USER_TOKEN:
                raise refuse(
                    f"a user-defined token of {len(self.texts[token])} bytes",
                    f"at most {LONGEST_USER_TOKEN} bytes",
                )
        flags = self.flags
        if longest > 255:
            flags |= Flag.WIDE_LENGTHS
        if len(self.texts) >= 1 << 16:
            flags |= Flag.WIDE_IDS
        several = any(len(s) > 1 for s in self.splits)
        if several:
            flags |= Flag.SEVERAL_SPLITS
            split_parts = _strings([bytes(s) for s in self.splits], wide=False)
        else:
            split_parts = (b"", bytes(s[0] if s else 0 for s in self.splits), b"")
        wide = Flag.WIDE_IDS in flags
        mask = NO_TOKEN if wide else 0xFFFF
        parts = [
            *_strings(self.texts, wide=Flag.WIDE_LENGTHS in flags),
            *split_parts,
            b"" if self.ranks is None else struct.pack(f"<{len(self.ranks)}I", *self.ranks),
            b"" if self.scores is None else struct.pack(f"<{len(self.scores)}f", *self.scores),
            pack_ids(sorted(self.matched, key=self.texts.__getitem__), wide),
            pack_ids([NO_TOKEN & mask if i is None else i for i in self.byte_ids], wide),
            struct.pack(f"<{len(self.controls)}I", *sorted(self.controls)),
            pack_ids(sorted(self.users, key=self.texts.__getitem__), wide),
            self.classes,
            self.charsmap,
            *self.composition,
        ]
        body = b"".join(part + bytes(-len(part) % 4) for part in parts)
        header = _HEADER.pack(
            b"SCTK",
            FORMAT,
            _HEADER.size + len(body),
            self.kind,
            self.cut,
            flags,
            len(self.texts),
            len(self.texts),
            NO_TOKEN if self.unknown is None else self.unknown,
            *self.score_range,
            0,
            *map(len, parts),
        )
        return header + body


def pack_ids(ids: Sequence[int], wide: bool) -> bytes:
    """Token ids as uint16, or as uint32 where there are 65,536 tokens and more."""
    return struct.pack(f"<{len(ids)}{'I' if wide else 'H'}", *ids)


def refuse(found: str, expected: str) -> ConfigurationError:
    """The error for a tokenizer that the C engine cannot follow exactly."""
    return ConfigurationError(
        f"The C engine does not run this tokenizer: found {found}; expected {expected}. "
        "Convert for a Linux board, or use a checkpoint with another tokenizer."
    )


def _strings(texts: Sequence[bytes], *, wide: bool) -> tuple[bytes, bytes, bytes]:
    """Starts of each 16th text, lengths, and the texts one after the other."""
    starts, place = [], 0
    for number, text in enumerate(texts):
        if number % _PER_START == 0:
            starts.append(place)
        place += len(text)
    lengths = struct.pack(f"<{len(texts)}{'H' if wide else 'B'}", *map(len, texts))
    return struct.pack(f"<{len(starts)}I", *starts), lengths, b"".join(texts)
