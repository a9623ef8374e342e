"""Cases as a network is trained on them: tokens, and which of them it is to learn.

A case is `<s>`, the prompt, the answer and `</s>`. Cases that are almost the same (readings that differ in their last
digits, texts of the same words) share a key, and the key decides whether a case is trained on, calibrated on or tested
on, so that no test is of something that training has nearly seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from toolkit.train.vocabulary import answer_text

__all__ = ["PARTS", "Cases", "Part", "calibration_rows", "part_of", "tokenized"]

Part = Literal["train", "calibrate", "test"]
PARTS: tuple[Part, ...] = ("train", "calibrate", "test")
_SHARES = (("test", 0.03), ("calibrate", 0.03))


@dataclass(frozen=True)
class Cases:
    """Cases of one part, as arrays."""

    tokens: npt.NDArray[np.int32]  # (cases, length), filled up with </s>
    learnt: npt.NDArray[np.float32]  # (cases, length - 1): the weight of predicting the next token at this position


def part_of(example: Mapping[str, Any], task: Task) -> Part:
    """Where a case belongs."""
    prompt = task.inputs.prompt(example).text
    if task.inputs.text is not None:
        key = " ".join(sorted(re.findall(r"[^\W\d_]+|\d+", prompt)))
    else:
        key = re.sub(r"\d(?= |\n)", "", prompt)  # without the last digit of each number
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32
    for part, share in _SHARES:
        if place < share:
            return part  # type: ignore[return-value]
        place -= share
    return "train"


def tokenized(task: Task, examples: Sequence[Example], tokenizer: SentencePieceProcessor, drops: float = 0.0) -> Cases:
    """Arrays of these cases, all of one length.

    Args:
        drops: share of the vocabulary's merges that is left out in every second prompt (BPE-dropout), so that a word
            is known by its parts as well; drawn from SentencePiece's own generator.
    """
    enums = _choices(task, tokenizer)
    rows, weights = [], []
    for number, example in enumerate(examples):
        text = task.inputs.prompt(example.input).text
        dropped: dict[str, Any] = {}
        if drops and number % 2:
            dropped = {"enable_sampling": True, "alpha": drops, "nbest_size": -1}
        prompt = [tokenizer.bos_id(), *tokenizer.encode(text, **dropped)]
        answer = [*tokenizer.encode(answer_text(example.answer or {}, task)), tokenizer.eos_id()]
        rows.append(prompt + answer)
        # What JSON's grammar forces is learnt lightly, what is decided fully. Of a text, its words as well: what
        # follows what is half of what they mean.
        before = 0.15 if task.inputs.text is not None else 0.0
        weights.append([before] * (len(prompt) - 1) + [1.0 if token in enums else 0.1 for token in answer])
    length = max(map(len, rows))
    tokens = np.full((len(rows), length), tokenizer.eos_id(), np.int32)
    learnt = np.zeros((len(rows), length - 1), np.float32)
    for i, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        tokens[i, : len(row)] = row
        learnt[i, : len(weight)] = weight
    return Cases(tokens, learnt)


def _choices(task: Task, tokenizer: SentencePieceProcessor) -> set[int]:
    """The tokens of an answer that a decision is made by: labels, digits, `null`."""
    texts = [json.dumps(value, ensure_ascii=False) for values in task.fields.values() for value in values or []]
    texts += [json.dumps(rule.answer[name], ensure_ascii=False) for rule in task.truth for name in task.fields]
    found = {tokenizer.piece_to_id(text.replace(" ", "\u2581")) for text in [*texts, *"0123456789", "null"]}
    return found - {tokenizer.unk_id()}


def calibration_rows(cases: Cases) -> npt.NDArray[np.int64]:
    """(cases, length - 1): all without `<s>`, for the converter to choose its ranges on."""
    return cases.tokens[:, 1:].astype(np.int64)
