"""Cases as a checkpoint is tuned on them: the task in the system's turn, the input in the user's, the answer in the
assistant's, by the checkpoint's own chat template and tokenizer.

What all cases of a task begin with is kept once, as the task's prefix. Of an answer, the tokens that decide something
are learnt fully; the rest, which the schema's grammar writes, is learnt a little, so that the form holds without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.checkpoints import TokenizerFile
from device_runtime.engine.chat import render_segments
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from device_runtime.tasks.purpose import Purpose

__all__ = ["Batch", "Conversation", "batch_lengths", "batches_of", "conversations", "prefixes_of"]

_TEXT, _FORM = 0.25, 0.1  # weight of a token of a free text, and of the form, beside that of a decision
_FORM_SLOTS = 2  # tokens of the form that are learnt of each case, beside its decisions
_SHARES = (0.6, 0.9, 1.0)  # of the cases, by their length: batches have up to three different lengths
_ROUND = 8  # a length is a multiple of this


@dataclass(frozen=True)
class Conversation:
    """One case."""

    task: int  # its number
    tokens: tuple[int, ...]  # all of it, the end of the answer included
    learnt: Mapping[int, float]  # position of a token that is learnt -> its weight


@dataclass(frozen=True)
class Batch:
    """Cases of one task and about one length, which are computed together."""

    task: int
    tokens: npt.NDArray[np.int32]  # (cases, length), without the prefix and the last token
    slots: npt.NDArray[np.int32]  # (cases, learnt): positions after which something is learnt
    targets: npt.NDArray[np.int32]  # (cases, learnt): what follows there
    weights: npt.NDArray[np.float32]  # (cases, learnt): 0 where there is nothing


def conversations(
    number: int, task: Task, examples: Sequence[Example], file: TokenizerFile, tokenizer: Tokenizer, seed: int
) -> list[Conversation]:
    """The cases of one task.

    Raises:
        ConfigurationError: the checkpoint has no chat template.
    """
    if file.chat_template is None:
        raise ConfigurationError(
            "The checkpoint has no chat template, so nothing says where a question ends and an answer begins; "
            "tune one that was made for conversations (its name often ends with Instruct, Chat or it)."
        )
    purpose, rng = Purpose.of_task(task), np.random.default_rng([seed, number])
    found = []
    for example in examples:
        messages = purpose.conversation((), task.inputs.prompt(example.input).text)
        segments = render_segments(
            file.chat_template, messages, file.special_tokens, tokenizer.names, tokenizer.special
        )
        prompt = tokenizer.encode(segments)
        text, spans = _answer(example.answer or {}, task)
        answer = tokenizer.encode_inside(text)
        weights = _weights(answer, spans, tokenizer)
        form = [i for i, weight in enumerate(weights) if weight == _FORM] + [len(answer)]
        kept = set(rng.choice(form, min(_FORM_SLOTS, len(form)), replace=False).tolist())
        learnt = {i: w for i, w in enumerate([*weights, _FORM]) if w != _FORM or i in kept}
        tokens = (*prompt, *answer, file.eos_ids[0])
        found.append(Conversation(number, tokens, {len(prompt) + i: w for i, w in learnt.items()}))
    return found


def _answer(answer: Mapping[str, Any], task: Task) -> tuple[str, list[tuple[int, int, float]]]:
    """The answer as it is written, and where in it the values are, with the weight of their tokens."""
    text, spans = "", []
    for number, (name, values) in enumerate(task.fields.items()):
        text += (", " if number else "{") + json.dumps(name, ensure_ascii=False) + ": "
        start = len(text)
        text += json.dumps(answer[name], ensure_ascii=False)
        free = isinstance(answer[name], str) and values is None
        spans.append((start, len(text) + (values is None), _TEXT if free else 1.0))  # a number ends by what follows
    return text + "}", spans


def _weights(tokens: Sequence[int], spans: Sequence[tuple[int, int, float]], tokenizer: Tokenizer) -> list[float]:
    """Of each token of an answer."""
    weights, start = [], 0
    for i in range(len(tokens)):
        end = len(tokenizer.decode(tokens[: i + 1]))
        within = [weight for begin, stop, weight in spans if start < stop and end > begin]
        weights.append(max(within, default=_FORM))
        start = end
    return weights


def prefixes_of(cases: Sequence[Conversation], tasks: int) -> list[tuple[int, ...]]:
    """What all cases of each task begin with; at least one token of each case is left."""
    found = []
    for number in range(tasks):
        rows = [case.tokens for case in cases if case.task == number]
        first = min(min(case.learnt) for case in cases if case.task == number) - 1
        same = next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), first)
        found.append(rows[0][: min(first, same)])
    return found


def batches_of(
    cases: Sequence[Conversation], prefixes: Sequence[tuple[int, ...]], size: int, rng: np.random.Generator
) -> list[tuple[Batch, list[int]]]:
    """All cases, in batches of `size` cases that belong together; the last of each kind is filled up with weight 0.

    The number of different shapes is small, since each is compiled. Cases and batches are in an order that is drawn.

    Returns:
        each batch with the numbers of its cases.
    """
    own = [len(case.tokens) - 1 - len(prefixes[case.task]) for case in cases]
    lengths = batch_lengths(own)
    learnt = max(len(case.learnt) for case in cases)
    found = []
    for length, shorter in zip(lengths, [0, *lengths], strict=False):
        for task, prefix in enumerate(prefixes):
            rows = [i for i, case in enumerate(cases) if case.task == task and shorter < own[i] <= length]
            rows = [rows[i] for i in rng.permutation(len(rows))]
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                found.append((_batch([cases[i] for i in part], prefix, size, length, learnt), part))
    return [found[i] for i in rng.permutation(len(found))]


def batch_lengths(own: Sequence[int], shares: Sequence[float] = _SHARES) -> list[int]:
    """The lengths that batches have: these shares of the cases are at most so long."""
    rounded = sorted(-(-length // _ROUND) * _ROUND for length in own)
    return sorted({rounded[max(0, round(len(rounded) * share) - 1)] for share in shares})


def _batch(cases: Sequence[Conversation], prefix: Sequence[int], size: int, length: int, learnt: int) -> Batch:
    tokens = np.zeros((size, length), np.int32)
    slots, targets = np.zeros((size, learnt), np.int32), np.zeros((size, learnt), np.int32)
    weights = np.zeros((size, learnt), np.float32)
    for row, case in enumerate(cases):
        own = case.tokens[len(prefix) : -1]
        tokens[row, : len(own)] = own
        for slot, (place, weight) in enumerate(case.learnt.items()):
            slots[row, slot] = place - 1 - len(prefix)
            targets[row, slot], weights[row, slot] = case.tokens[place], weight
    return Batch(cases[0].task, tokens, slots, targets, weights)
