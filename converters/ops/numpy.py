"""Ops that compute, in float32: the reference for every graph.

Several sequences of one length are read side by side: tokens have shape (sequences, length), and
activations (sequences * length, width) with the sequences one after the other. Weights are asked for
when they are needed and not kept, so a pass holds one layer at a time whatever the model's size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import numpy.typing as npt

from converters.network.config import Attention, Feature, NetworkConfig
from converters.network.weights import FloatArray, ReadTensor
from converters.ops.numpy_parts import NumpyParts, Observe

__all__ = ["KvCache", "NumpyOps"]


@dataclass
class KvCache:
    """Keys (after RoPE) and values of earlier positions, per layer: (sequences or 1, positions, kv_heads, head_dim)."""

    layers: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)

    @property
    def positions(self) -> int:
        """How many positions it holds."""
        return self.layers[0][0].shape[1] if self.layers else 0


class NumpyOps(NumpyParts):
    """`Ops` on arrays.

    Args:
        config: the network.
        read: where weights come from; `head.weight` is asked for even if the head is tied (see `CanonicalWeights`).
        tokens: (sequences, length) int.
        past: positions before these tokens; one sequence in it serves all. It is not changed.
        observe: called with every named activation of `tensors.activations`: `<matmul>.in` for what a group of matmuls
            reads (under the name of the first), `<matmul>` for what each gives, `layers.{i}.{queries,keys,values}`
            after RoPE and before attention, `layers.{i}.scores` (-inf where a position is hidden),
            `layers.{i}.probabilities`, and the residual sums. It must not change the values.
        start: positions that `past` will hold, where another reading fills it layer by layer ahead of this one.
    """

    SUPPORTS = frozenset(get_args(Feature))

    def __init__(
        self,
        config: NetworkConfig,
        read: ReadTensor,
        tokens: npt.NDArray[np.integer],
        past: KvCache | None = None,
        observe: Observe | None = None,
        start: int | None = None,
    ) -> None:
        super().__init__(read, observe)
        self._config, self._tokens = config, tokens
        self._past = KvCache() if past is None else past
        self._start = self._past.positions if start is None else start
        self._sequences, self._length = tokens.shape
        self._tables = functools.cache(self._table)
        self.cache = KvCache()  # the past and these tokens, filled layer by layer

    def _table(self, frequencies: tuple[float, ...], magnitude: float) -> tuple[FloatArray, FloatArray]:
        """cos and sin of these positions, (1, length, 1, rotated / 2) each."""
        positions = np.arange(self._start, self._start + self._length, dtype=np.float64)
        angles = np.outer(positions, np.array(frequencies, np.float64))  # (length, rotated / 2)
        cos = (np.cos(angles) * magnitude).astype(np.float32)[None, :, None]
        return cos, (np.sin(angles) * magnitude).astype(np.float32)[None, :, None]

    def embed(self) -> FloatArray:
        """(sequences * length, width)."""
        embedding = self._config.embedding
        rows = np.take(self._read("embed.weight"), self._tokens.reshape(-1), axis=0)
        if embedding.scale != 1:
            rows = rows * np.float32(embedding.scale)
        if embedding.positions:
            positions = self._read("positions.weight")[self._start : self._start + self._length]
            rows = rows + np.tile(positions, (self._sequences, 1))
        return rows

    def rope(self, q: FloatArray, k: FloatArray, attention: Attention) -> tuple[FloatArray, FloatArray]:
        """As in `Ops`."""
        return self._rotate(q, attention), self._rotate(k, attention)

    def _rotate(self, x: FloatArray, attention: Attention) -> FloatArray:
        assert attention.rope is not None
        half = len(attention.rope.frequencies)
        cos, sin = self._tables(attention.rope.frequencies, attention.rope.magnitude)
        heads = x.reshape(self._sequences, self._length, -1, attention.head_dim)
        a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
        parts = [a * cos - b * sin, b * cos + a * sin, *([rest] if rest.shape[-1] else [])]
        return np.concatenate(parts, axis=-1).reshape(x.shape)

    def attend(self, q: FloatArray, k: FloatArray, v: FloatArray, attention: Attention, layer: int) -> FloatArray:
        """As in `Ops`."""
        a, name = attention, f"layers.{layer}"
        q, k, v = self._named(f"{name}.queries", q), self._named(f"{name}.keys", k), self._named(f"{name}.values", v)
        shape = (self._sequences, self._length, a.kv_heads, a.head_dim)
        keys, values = self._join_past(layer, k.reshape(shape), v.reshape(shape))
        self.cache.layers.append((keys, values))
        group = a.heads // a.kv_heads
        # (sequences, kv_heads, group * length, head_dim): the query heads of a key head are rows of one product
        queries = q.reshape(self._sequences, self._length, a.kv_heads, group, a.head_dim).transpose(0, 2, 3, 1, 4)
        queries = (queries * np.float32(a.score_scale)).reshape(self._sequences, a.kv_heads, -1, a.head_dim)
        hidden = self._hidden(a)
        out = np.empty((self._sequences, self._length, a.kv_heads, group, a.head_dim), np.float32)
        for s in range(self._sequences):  # one at a time: scores are the largest array of a pass
            scores = queries[s] @ keys[s].transpose(1, 2, 0)  # (kv_heads, group * length, past + length)
            scores = scores.reshape(a.kv_heads, group, self._length, -1)
            if a.softcap is not None:
                scores = self.softcap(scores, a.softcap)
            scores += hidden
            scores = self._named(f"{name}.scores", scores)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            scores = self._named(f"{name}.probabilities", scores)
            rows = scores.reshape(a.kv_heads, group * self._length, -1) @ values[s].transpose(1, 0, 2)
            mixed = rows.reshape(a.kv_heads, group, self._length, a.head_dim)
            out[s] = mixed.transpose(2, 0, 1, 3)  # (length, kv_heads, group, head_dim)
        return out.reshape(q.shape)

    def _hidden(self, attention: Attention) -> FloatArray:
        """0 where a token sees a position, -inf where not: (length, past + length)."""
        shape = (self._length, self._start + self._length)
        hidden = np.triu(np.full(shape, -np.inf, np.float32), self._start + 1)
        if attention.window is not None:
            hidden += np.tril(np.full(shape, -np.inf, np.float32), self._start - attention.window)
        return hidden

    def _join_past(self, layer: int, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        if not self._past.layers:
            return keys, values
        past_keys, past_values = (np.broadcast_to(t, (self._sequences, *t.shape[1:])) for t in self._past.layers[layer])
        return np.concatenate([past_keys, keys], axis=1), np.concatenate([past_values, values], axis=1)

    def select_rows(self, x: FloatArray) -> FloatArray:
        """All rows."""
        return x
