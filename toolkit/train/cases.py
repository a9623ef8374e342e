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

from device_runtime.tasks.classify import head_label
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from toolkit.train.vocabulary import answer_text

__all__ = ["PARTS", "WORD_WEIGHT", "Cases", "Part", "calibration_rows", "part_of", "tokenized"]

Part = Literal["train", "calibrate", "test"]
PARTS: tuple[Part, ...] = ("train", "calibrate", "test")
WORD_WEIGHT = 0.125  # the weight of predicting a word of a text, beside that of a decision
_SHARES = (("test", 0.03), ("calibrate", 0.03))


@dataclass(frozen=True)
class Cases:
    """Cases of one part, as arrays."""

    tokens: npt.NDArray[np.int32]  # (cases, length), filled up with </s>
    learnt: npt.NDArray[np.float32]  # (cases, length - 1): the weight of predicting the next token at this position
    ends: npt.NDArray[np.int32] | None = None  # (cases,): of the kind classify, the position of the prompt's last token
    labels: npt.NDArray[np.int32] | None = None  # (cases, fields): the right value's number, of each field
    heads: tuple[tuple[int, ...], ...] = ()  # of each field, the tokens of its values

    def arrays(self) -> dict[str, Any]:
        """For a file."""
        found: dict[str, Any] = {"tokens": self.tokens.astype(np.uint16), "learnt": self.learnt}
        if self.ends is not None and self.labels is not None:
            found |= {"ends": self.ends, "labels": self.labels}
            found |= {f"head{i}": np.array(head) for i, head in enumerate(self.heads)}
        return found

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Cases:
        """From a file."""
        tokens, learnt = arrays["tokens"].astype(np.int32), arrays["learnt"].astype(np.float32)
        if "ends" not in arrays:
            return cls(tokens, learnt)
        heads = [tuple(map(int, arrays[f"head{i}"])) for i in range(arrays["labels"].shape[1])]
        return cls(tokens, learnt, arrays["ends"], arrays["labels"], tuple(heads))


def part_of(example: Mapping[str, Any], task: Task, held: float | None = None) -> Part:
    """Where a case belongs; `held` is the share of each part that is not trained on, where it is not the usual one."""
    prompt = task.inputs.prompt(example).text
    if task.inputs.text is not None:
        key = " ".join(sorted(re.findall(r"[^\W\d_]+|\d+", prompt)))
    else:
        key = re.sub(r"\d(?= |\n)", "", prompt)  # without the last digit of each number
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32
    for part, share in _SHARES:
        share = share if held is None else held
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
    if task.kind == "classify":
        return _classified(task, examples, tokenizer, drops)
    enums = _choices(task, tokenizer)
    rows, weights = [], []
    for number, example in enumerate(examples):
        prompt = _prompt(task, example, tokenizer, drops if number % 2 else 0.0)
        answer = [*tokenizer.encode(answer_text(example.answer or {}, task)), tokenizer.eos_id()]
        rows.append(prompt + answer)
        # What JSON's grammar forces is learnt lightly, what is decided fully. Of a text, its words as well: what
        # follows what is half of what they mean.
        before = WORD_WEIGHT if task.inputs.text is not None else 0.0
        weights.append([before] * (len(prompt) - 1) + [1.0 if token in enums else 0.1 for token in answer])
    return Cases(*_arrays(rows, weights, tokenizer.eos_id()))


def _classified(task: Task, examples: Sequence[Example], tokenizer: SentencePieceProcessor, drops: float) -> Cases:
    """Prompts alone, with the number of each field's right value."""
    rows = [_prompt(task, example, tokenizer, drops if n % 2 else 0.0) for n, example in enumerate(examples)]
    tokens, learnt = _arrays(rows, [[WORD_WEIGHT] * (len(row) - 1) for row in rows], tokenizer.eos_id())
    fields = {name: values or [] for name, values in task.fields.items()}
    heads = tuple(tuple(tokenizer.piece_to_id(head_label(n, v)) for v in values) for n, values in fields.items())
    labels = [[values.index((e.answer or {})[name]) for name, values in fields.items()] for e in examples]
    ends = np.array([len(row) - 1 for row in rows], np.int32)
    return Cases(tokens, learnt, ends, np.array(labels, np.int32), heads)


def _prompt(task: Task, example: Example, tokenizer: SentencePieceProcessor, drops: float) -> list[int]:
    text = task.inputs.prompt(example.input).text
    sampled: dict[str, Any] = {"enable_sampling": True, "alpha": drops, "nbest_size": -1} if drops else {}
    return [tokenizer.bos_id(), *tokenizer.encode(text, **sampled)]


def _arrays(
    rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], eos_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Rows of one length, which ends with </s> at least once."""
    length = max(map(len, rows)) + 1
    tokens = np.full((len(rows), length), eos_id, np.int32)
    learnt = np.zeros((len(rows), length - 1), np.float32)
    for i, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        tokens[i, : len(row)] = row
        learnt[i, : len(weight)] = weight
    return tokens, learnt


def _choices(task: Task, tokenizer: SentencePieceProcessor) -> set[int]:
    """The tokens of an answer that a decision is made by: labels, digits, `null`."""
    texts = [json.dumps(value, ensure_ascii=False) for values in task.fields.values() for value in values or []]
    texts += [json.dumps(rule.answer[name], ensure_ascii=False) for rule in task.truth for name in task.fields]
    found = {tokenizer.piece_to_id(text.replace(" ", "\u2581")) for text in [*texts, *"0123456789", "null"]}
    return found - {tokenizer.unk_id()}


def calibration_rows(cases: Cases) -> npt.NDArray[np.int64]:
    """(cases, length - 1): all without `<s>`, for the converter to choose its ranges on."""
    return cases.tokens[:, 1:].astype(np.int64)
