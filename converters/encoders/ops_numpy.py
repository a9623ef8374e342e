"""The float32 reference of encoders and translators: one text at a time, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.encoders.network import Buckets, EncoderConfig, Pooling, Stack, TranslatorConfig
from converters.encoders.transformer import cross_rows, next_logits, sentence
from converters.network.weights import FloatArray, ReadTensor
from converters.ops.numpy_parts import NumpyParts, Observe

__all__ = [
    "NumpyReading",
    "bucket_of",
    "buckets_between",
    "reference_logits",
    "reference_sentence",
    "reference_sentences",
]


class NumpyReading(NumpyParts):
    """All of `transformer.py` on arrays; a decoder reads all tokens of a translation in one pass.

    Args:
        tokens: (length,) of this reading.
    """

    def __init__(self, read: ReadTensor, tokens: Sequence[int], observe: Observe | None = None) -> None:
        super().__init__(read, observe)
        self._tokens = np.asarray(tokens, np.int64)
        self._kept: dict[int, tuple[FloatArray, FloatArray]] = {}

    def read_on(self, tokens: Sequence[int]) -> None:
        """Have the decoder read these tokens; what was kept of the text stays."""
        self._tokens = np.asarray(tokens, np.int64)

    def embed(self, stack: Stack) -> FloatArray:
        """As in `StackOps`."""
        rows = self._read("embed.weight")[self._tokens] * np.float32(stack.embedding_scale)
        if stack.positions:
            rows = rows + self._read(f"{stack.side}.positions.weight")[: len(self._tokens)]
        return np.asarray(rows, np.float32)

    def attend(self, q: FloatArray, k: FloatArray, v: FloatArray, stack: Stack, layer: int) -> FloatArray:
        """As in `StackOps`."""
        length = len(q)
        bias = self._near(stack, length)
        if stack.crosses:
            bias = bias + np.triu(np.full((length, length), -np.inf, np.float32), 1)
        return self._mixed(q, k, v, stack, bias)

    def _near(self, stack: Stack, length: int) -> FloatArray:
        """What is added to scores by distance, (heads, queries, keys); one 0 for all where nothing is."""
        if stack.buckets is None:
            return np.zeros((1, 1, 1), np.float32)
        table = self._read(f"{stack.side}.relative.weight")
        return np.asarray(table[buckets_between(length, stack)].transpose(2, 0, 1))

    def keep(self, k: FloatArray, v: FloatArray, layer: int) -> None:
        """As in `transformer.py`."""
        self._kept[layer] = (k, v)

    def attend_kept(self, q: FloatArray, stack: Stack, layer: int) -> FloatArray:
        """As in `transformer.py`."""
        return self._mixed(q, *self._kept[layer], stack, np.zeros((1, 1, 1), np.float32))

    def _mixed(self, q: FloatArray, k: FloatArray, v: FloatArray, stack: Stack, bias: FloatArray) -> FloatArray:
        a = stack.attention
        queries, keys, values = (x.reshape(len(x), a.heads, a.head_dim).transpose(1, 0, 2) for x in (q, k, v))
        scores = queries @ keys.transpose(0, 2, 1) * np.float32(a.score_scale) + bias  # (heads, queries, keys)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = scores / scores.sum(axis=-1, keepdims=True)
        return np.asarray((shares @ values).transpose(1, 0, 2).reshape(q.shape), np.float32)

    def tanh(self, x: FloatArray) -> FloatArray:
        """As in `StackOps`."""
        return np.tanh(x)

    def pool(self, x: FloatArray, pooling: Pooling) -> FloatArray:
        """As in `StackOps`."""
        return x[:1] if pooling == "cls" else x.mean(axis=0, keepdims=True)

    def look(self, scores: FloatArray, values: FloatArray, fields: Sequence[int]) -> FloatArray:
        """As in `SentenceOps`."""
        return _looked(scores[None], values[None], fields)

    def unit(self, x: FloatArray) -> FloatArray:
        """As in `StackOps`."""
        return np.asarray(x / np.linalg.norm(x))


def _looked(scores: FloatArray, values: FloatArray, fields: Sequence[int]) -> FloatArray:
    """Of (texts, tokens, fields) and (texts, tokens, labels): (texts, labels)."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = np.repeat(weights / weights.sum(axis=1, keepdims=True), fields, axis=2)
    return np.asarray((shares * values).sum(axis=1), np.float32)


def buckets_between(length: int, stack: Stack) -> npt.NDArray[np.int64]:
    """The bucket of each key's distance, seen from each query, of a stack that has buckets: (queries, keys)."""
    assert stack.buckets is not None
    places = np.arange(length)
    return bucket_of(places[None] - places[:, None], stack.buckets, both_ways=not stack.crosses)


def bucket_of(distances: npt.NDArray[Any], buckets: Buckets, *, both_ways: bool) -> npt.NDArray[np.int64]:
    """T5's bucket of each distance (key minus query): exact ones nearby, wider ones by the logarithm.

    Args:
        both_ways: half of the buckets are for keys after the query; else those count as distance 0.
    """
    count, first = buckets.count, np.zeros(distances.shape, np.int64)
    if both_ways:
        count //= 2
        first = np.where(distances > 0, count, 0)
        behind = np.abs(distances)
    else:
        behind = np.maximum(-distances, 0)
    exact = count // 2
    with np.errstate(divide="ignore"):
        share = np.log(behind.astype(np.float32) / np.float32(exact)) / np.float32(np.log(buckets.longest / exact))
    far = exact + np.where(behind < exact, 0, share * np.float32(count - exact)).astype(np.int64)
    return np.asarray(first + np.where(behind < exact, behind, np.minimum(far, count - 1)), np.int64)


class _Several(NumpyReading):
    """Texts of one length, one after another in all arrays: (texts * length, width). No text sees another."""

    def __init__(self, read: ReadTensor, texts: Sequence[Sequence[int]]) -> None:
        super().__init__(read, [token for text in texts for token in text])
        self._count = len(texts)

    def embed(self, stack: Stack) -> FloatArray:
        """As in `StackOps`."""
        rows = self._read("embed.weight")[self._tokens] * np.float32(stack.embedding_scale)
        if stack.positions:
            length = len(self._tokens) // self._count
            rows = rows + np.tile(self._read(f"{stack.side}.positions.weight")[:length], (self._count, 1))
        return np.asarray(rows, np.float32)

    def attend(self, q: FloatArray, k: FloatArray, v: FloatArray, stack: Stack, layer: int) -> FloatArray:
        """As in `StackOps`."""
        assert not stack.crosses
        a = stack.attention
        queries, keys, values = (
            x.reshape(self._count, -1, a.heads, a.head_dim).transpose(0, 2, 1, 3) for x in (q, k, v)
        )
        scores = queries @ keys.transpose(0, 1, 3, 2) * np.float32(a.score_scale)  # (texts, heads, length, length)
        scores = scores + self._near(stack, scores.shape[-1])
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ values
        return np.asarray(mixed.transpose(0, 2, 1, 3).reshape(q.shape), np.float32)

    def pool(self, x: FloatArray, pooling: Pooling) -> FloatArray:
        """As in `StackOps`."""
        of_texts = x.reshape(self._count, -1, x.shape[-1])
        return of_texts[:, 0] if pooling == "cls" else of_texts.mean(axis=1)

    def look(self, scores: FloatArray, values: FloatArray, fields: Sequence[int]) -> FloatArray:
        """As in `SentenceOps`."""
        scores, values = (x.reshape(self._count, -1, x.shape[-1]) for x in (scores, values))
        return _looked(scores, values, fields)

    def unit(self, x: FloatArray) -> FloatArray:
        """As in `StackOps`."""
        return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12), np.float32)


def reference_sentences(config: EncoderConfig, read: ReadTensor, texts: Sequence[Sequence[int]]) -> FloatArray:
    """The same as `reference_sentence` of texts that have the same number of tokens, (texts, width or labels)."""
    return sentence(_Several(read, texts), config)


def reference_sentence(
    config: EncoderConfig, read: ReadTensor, tokens: Sequence[int], observe: Observe | None = None
) -> FloatArray:
    """What the float network makes of a text, (width or labels,)."""
    found: FloatArray = sentence(NumpyReading(read, tokens, observe), config)[0]
    return found


def reference_logits(
    config: TranslatorConfig,
    read: ReadTensor,
    source: Sequence[int],
    target: Sequence[int],
    observe: Observe | None = None,
) -> FloatArray:
    """Logits after each token of a translation's beginning, (tokens, vocabulary)."""
    ops = NumpyReading(read, source, observe)
    cross_rows(ops, config)
    ops.read_on(target)
    return next_logits(ops, config)
