"""The tokens that write a label at a place of an answer, as the model's own tokenizer cuts the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from device_runtime.engine.tokenizer import Tokenizer

__all__ = ["LabelPaths"]


_KEPT = 512  # places of answers, and texts


class LabelPaths:
    """For one tokenizer. What was asked lately is remembered: a link's answers have the same places again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.can_write = lru_cache(_KEPT)(self._can_write)
        self._found = lru_cache(_KEPT)(self._find)

    def _can_write(self, text: str) -> bool:
        """Whether the tokenizer gives a text back as it was."""
        return self._tokenizer.decode(self._tokenizer.encode_inside(text)) == text

    def after(
        self, written: Sequence[int], text: str, before: str, labels: Sequence[str], following: str
    ) -> Sequence[Sequence[int]]:
        """For each label the tokens from here to its end; none is the beginning of another.

        A token may reach beyond the label, into what follows.

        Args:
            written: tokens of the answer so far.
            text: what they spell, a beginning of `before` and maybe more of what has to come.
            before: the answer up to the label.
            following: what comes after it, whichever it is.
        """
        return self._found(tuple(written), text, before, tuple(labels), following)

    def _find(
        self, written: tuple[int, ...], text: str, before: str, labels: tuple[str, ...], following: str
    ) -> list[tuple[int, ...]]:
        paths, ends = [], []
        for label in labels:
            whole = before + label + following
            tokens = self._tokenizer.encode_inside(whole[len(text) :])
            paths.append(tokens)
            ends.append(self._reaches(written, tokens, before + label))
        for number, path in enumerate(paths):
            others = [other for i, other in enumerate(paths) if i != number]
            if any(other[: ends[number]] == path[: ends[number]] for other in others):
                ends[number] += 1  # 1 and 10: what comes after distinguishes them
        return [tuple(path[:end]) for path, end in zip(paths, ends, strict=True)]

    def _reaches(self, written: Sequence[int], tokens: Sequence[int], text: str) -> int:
        """How many of the tokens it takes until the answer begins with `text`."""
        for count in range(len(tokens) + 1):
            if self._tokenizer.decode([*written, *tokens[:count]]).startswith(text):
                return count
        return len(tokens)
