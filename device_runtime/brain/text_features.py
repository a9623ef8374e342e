"""Hashed features of a text: words, pairs of words and pieces of words, without a vocabulary to keep."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator

__all__ = ["BUCKETS", "feature_ids", "plain_words", "word_ids"]

BUCKETS = 1 << 14
_WORD = re.compile(r"[^\W\d_]+|0|[^\w\s]", re.UNICODE)
_NUMBER = re.compile(r"\d+")
_LONGEST = 1000  # characters that are looked at


def plain_words(text: str) -> list[str]:
    """Words in small letters, runs of digits as `0`, and signs."""
    plain = unicodedata.normalize("NFKC", text[:_LONGEST]).lower()
    return _WORD.findall(_NUMBER.sub(" 0 ", plain))


def feature_ids(text: str) -> list[int]:
    """The buckets of a text's features, each once, sorted; crc32, so that they are the same on every machine."""
    return sorted(
        {zlib.crc32(feature.encode("utf-8", "replace")) % BUCKETS for feature in _features(plain_words(text))}
    )


def word_ids(text: str) -> list[int]:
    """The bucket of each word of letters, in the order of the text."""
    return [zlib.crc32(word.encode("utf-8", "replace")) % BUCKETS for word in plain_words(text) if word[0].isalpha()]


def _features(words: list[str]) -> Iterator[str]:
    before = "^"
    for word in words:
        yield f"w {word}"
        yield f"p {before} {word}"
        padded = f"<{word}>"
        if len(padded) > 4:
            for start in range(len(padded) - 3):
                yield f"c {padded[start : start + 4]}"
        before = word
    yield f"p {before} $"
