"""Tokens into pieces of text as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_runtime.engine.tokenizer import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """Turns tokens into pieces of text as they come; holds back a character until all its tokens are there."""

    _REPLACEMENT = "�"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # the text from here on is decoded again for each token …
        self._read = 0  # … and what is before here has been handed out

    def push(self, token: int) -> str:
        """The text that this token completes; empty when a character is still unfinished."""
        self._tokens.append(token)
        # Decoding from a little earlier keeps the spaces that a decoder drops at the start of a text.
        before = self._tokenizer.decode(self._tokens[self._start : self._read])
        after = self._tokenizer.decode(self._tokens[self._start :])
        if len(after) <= len(before) or after.endswith(self._REPLACEMENT):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return after[len(before) :]

    def flush(self) -> str:
        """What was held back, with U+FFFD for a character that never became whole."""
        before = self._tokenizer.decode(self._tokens[self._start : self._read])
        after = self._tokenizer.decode(self._tokens[self._start :])
        self._start = self._read = len(self._tokens)
        return after[len(before) :]
