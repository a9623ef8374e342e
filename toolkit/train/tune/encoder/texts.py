"""Cases as a sentence encoder is tuned on them: the tokens of a task's prompt within the encoder's frame, and of each
field of the answer the number of the right value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from converters.encoders.tokenizers import FramedTokenizer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from toolkit.train.tune.conversations import batch_lengths

__all__ = ["Batch", "Texts", "batches_of", "encoder_of", "texts_of"]

_SHARES = (0.35, 0.75, 0.95, 1.0)  # of the cases, by their length: most texts are short, and a few are very long


@dataclass(frozen=True)
class Texts:
    """The cases of one part."""

    tokens: Sequence[Sequence[int]]
    labels: npt.NDArray[np.int32]  # (cases, fields)


@dataclass(frozen=True)
class Batch:
    """Cases of about one length, which are computed together."""

    tokens: npt.NDArray[np.int32]  # (cases, length)
    lengths: npt.NDArray[np.int32]  # (cases,)
    labels: npt.NDArray[np.int32]  # (cases, fields)
    weights: npt.NDArray[np.float32]  # (cases,): 0 where there is none


def encoder_of(tokenizer: FramedTokenizer) -> Tokenizer:
    """The library's tokenizer, which reads many texts at once; nothing is cut or filled up."""
    library = Tokenizer.from_buffer(tokenizer.content)
    library.no_truncation()
    library.no_padding()
    return library


def texts_of(task: Task, examples: Sequence[Example], tokenizer: FramedTokenizer, longest: int) -> Texts:
    """The cases as tokens; of a text that is longer than `longest` tokens its end is left out."""
    prompts = [task.inputs.prompt(example.input).text.strip() for example in examples]
    found = encoder_of(tokenizer).encode_batch(prompts, add_special_tokens=False)
    room = longest - len(tokenizer.start_ids) - len(tokenizer.end_ids)
    rows = [[*tokenizer.start_ids, *one.ids[:room], *tokenizer.end_ids] for one in found]
    fields = {name: list(values or []) for name, values in task.fields.items()}
    labels = [[values.index((e.answer or {})[name]) for name, values in fields.items()] for e in examples]
    return Texts(rows, np.array(labels, np.int32).reshape(len(rows), len(fields)))


def batches_of(texts: Texts, size: int, rng: np.random.Generator) -> list[Batch]:
    """All cases, in batches of `size` that are of about one length; the last of each is filled up with weight 0.

    The number of different lengths is small, since each is compiled. Cases and batches are in an order that is drawn.
    """
    own = [len(tokens) for tokens in texts.tokens]
    lengths = batch_lengths(own, _SHARES)
    found = []
    for length, shorter in zip(lengths, [0, *lengths], strict=False):
        rows = [i for i, count in enumerate(own) if shorter < count <= length]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        for start in range(0, len(rows), size):
            found.append(_batch(texts, rows[start : start + size], size, length))
    return [found[i] for i in rng.permutation(len(found))]


def _batch(texts: Texts, rows: Sequence[int], size: int, length: int) -> Batch:
    tokens = np.zeros((size, length), np.int32)
    lengths = np.ones(size, np.int32)
    labels = np.zeros((size, texts.labels.shape[1]), np.int32)
    for place, i in enumerate(rows):
        tokens[place, : len(texts.tokens[i])] = texts.tokens[i]
        lengths[place], labels[place] = len(texts.tokens[i]), texts.labels[i]
    return Batch(tokens, lengths, labels, (np.arange(size) < len(rows)).astype(np.float32))
