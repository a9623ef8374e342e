"""Answers whose fields are all decided at once."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from device_runtime.errors import BundleError
from device_runtime.tasks.classify import Heads, WrittenAnswer, head_label

FIELDS = {"category": ["none", "disk"], "priority": ["low", "high"]}
LABELS = [head_label(name, value) for name, values in FIELDS.items() for value in values]


class Letters:
    """A tokenizer with a token for each label, and one for each character."""

    def encode(self, text: str) -> list[int]:
        return [LABELS.index(text)] if text in LABELS else [ord(c) for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


def logits(**best: str) -> np.ndarray:
    found = np.zeros(200, np.float32)
    for name, value in best.items():
        found[LABELS.index(head_label(name, value))] = 3.0
    return found


def test_each_field_takes_its_likeliest_value() -> None:
    answer, choices = Heads.in_vocabulary(FIELDS, Letters()).decide(logits(category="disk", priority="low"))  # type: ignore[arg-type]
    assert answer == {"category": "disk", "priority": "low"}
    assert [len(choices[name][0].logits) for name in FIELDS] == [2, 2]
    assert choices["category"][0].chosen == 1


def test_the_answer_is_written_token_by_token_from_the_first_logits() -> None:
    written = WrittenAnswer(Heads.in_vocabulary(FIELDS, Letters()), Letters(), {})  # type: ignore[arg-type]
    tokens, now = [], logits(category="disk", priority="high")
    while not written.complete:
        tokens.append(written.choose(now, 100, lambda masked: 0))
        now = logits(category="none", priority="low")  # later ones decide nothing
    assert json.loads(Letters().decode(tokens)) == {"category": "disk", "priority": "high"}


def test_a_vocabulary_without_the_labels_is_refused() -> None:
    with pytest.raises(BundleError, match="no tokens for the values of 'room'"):
        Heads.in_vocabulary({"room": ["attic"]}, Letters())  # type: ignore[arg-type]
