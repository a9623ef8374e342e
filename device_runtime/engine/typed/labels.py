"""The tokens that write a label at a place of an answer, as the model's own tokenizer cuts the text."""

from __future__ import annotations

from collections.abc import Sequence

from device_runtime.engine.tokenizer import Tokenizer

__all__ = ["LabelPaths"]


class LabelPaths:
    """For one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def can_write(self, text: str) -> bool:
        """Whether the tokenizer gives a text back as it was."""
        return self._tokenizer.decode(self._tokenizer.encode_inside(text)) == text

    def after(
        self, written: Sequence[int], text: str, before: str, labels: Sequence[str], following: str
    ) -> list[list[int]]:
        """For each label the tokens from here to its end; none is the beginning of another.

        A token may reach beyond the label, into what follows.

        Args:
            written: tokens of the answer so far.
            text: what they spell, a beginning of `before` and maybe more of what has to come.
            before: the answer up to the label.
            following: what comes after it, whichever it is.
        """
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
        return [path[:end] for path, end in zip(paths, ends, strict=True)]

    def _reaches(self, written: Sequence[int], tokens: Sequence[int], text: str) -> int:
        """How many of the tokens it takes until the answer begins with `text`."""
        for count in range(len(tokens) + 1):
            if self._tokenizer.decode([*written, *tokens[:count]]).startswith(text):
                return count
        return len(tokens)
