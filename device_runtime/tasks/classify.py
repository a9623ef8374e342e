"""Answers of the kind `classify`: every field is decided at once, by what the network says after the prompt.

The rows of the output matrix that belong to a field's values (`<category=network>`) are that field's head on the last
hidden state. One run of the graph answers; the JSON is written by the runtime.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from device_runtime.engine.backends import Logits
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.engine.typed.choice import Choice
from device_runtime.errors import BundleError

__all__ = ["Choice", "Heads", "WrittenAnswer", "head_label"]


def head_label(name: str, value: Any) -> str:
    """The token that stands for a value of a field."""
    return f"<{name}={value}>"


class Heads:
    """The heads of one bundle."""

    def __init__(self, fields: Mapping[str, Sequence[Any] | None], places: Mapping[str, Sequence[int]]) -> None:
        """Prepare.

        Args:
            fields: of the answer, each with its values.
            places: where the logits of each field's values are.
        """
        self.fields: Mapping[str, Sequence[Any]] = {name: list(values or []) for name, values in fields.items()}
        self._places = {name: list(places[name]) for name in self.fields}

    @classmethod
    def in_vocabulary(cls, fields: Mapping[str, Sequence[Any] | None], tokenizer: Tokenizer) -> Heads:
        """Heads that are rows of the output matrix: each value has a token.

        Raises:
            BundleError: the vocabulary lacks one.
        """
        places = {}
        for name, values in fields.items():
            tokens = [tokenizer.encode(head_label(name, value)) for value in values or []]
            if any(len(found) != 1 for found in tokens):
                raise BundleError(f"The bundle's vocabulary has no tokens for the values of {name!r}; train it again.")
            places[name] = [found[0] for found in tokens]
        return cls(fields, places)

    @classmethod
    def in_order(cls, fields: Mapping[str, Sequence[Any] | None], count: int) -> Heads:
        """Heads of a network that gives the logits of all values, field by field, and nothing else.

        Raises:
            BundleError: it gives another number of them.
        """
        sizes = [len(values or []) for values in fields.values()]
        if sum(sizes) != count or 0 in sizes:
            raise BundleError(f"The bundle's graph gives {count} logits, and its answer has {sum(sizes)} values.")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return cls(fields, {name: range(a, a + n) for name, a, n in zip(fields, starts, sizes, strict=True)})

    def decide(self, logits: Logits) -> tuple[dict[str, Any], dict[str, list[Choice]]]:
        """The answer, and the choice of each field.

        Args:
            logits: of the vocabulary after the prompt, or of all values.
        """
        answer, choices = {}, {}
        for name, places in self._places.items():
            of_values = np.asarray(logits[places], np.float32)
            best = int(np.argmax(of_values))
            answer[name] = self.fields[name][best]
            choices[name] = [Choice(of_values, best)]
        return answer, choices


class WrittenAnswer:
    """A constraint (see structured.py) that leaves no choice: the answer that the heads gave, token by token."""

    def __init__(self, heads: Heads, tokenizer: Tokenizer, given: Mapping[str, Any]) -> None:
        """`given` are values that are known without the heads, by field."""
        self._heads, self._tokenizer, self._given = heads, tokenizer, given
        self._left: list[int] | None = None  # None before the first token
        self.choices: dict[str, list[Choice]] = {}  # of each field
        self.values = heads.fields

    @property
    def satisfied(self) -> bool:
        """Whether the whole answer was written."""
        return self._left == []

    complete = satisfied

    def choose(self, logits: Logits, left: int, choose: Callable[[Logits], int]) -> int:
        """The next token of the answer, which the logits after the prompt decide."""
        if self._left is None:
            answer, choices = self._heads.decide(logits)
            answer |= self._given
            self.choices = {name: found for name, found in choices.items() if name not in self._given}
            self._left = self._tokenizer.encode(json.dumps(answer, ensure_ascii=False))
        return self._left.pop(0)

    def forced(self) -> list[int]:
        """All that is left of the answer."""
        return list(self._left or [])

    def check(self, text: str) -> None:
        """There is nothing to check: every value is one of the schema's."""
