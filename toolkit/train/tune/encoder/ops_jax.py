"""Ops that compute with JAX, to be differentiated: the network of converters/encoders/transformer.py, for tuning.

Texts are read side by side, each filled up to one length. Activations have shape (texts * length, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from converters.encoders.network import Pooling, Stack
from converters.encoders.ops_numpy import buckets_between
from converters.network.config import Norm
from toolkit.train.tune.jax_parts import HIDDEN, JaxParts, Tensors

__all__ = ["JaxSentences"]


class JaxSentences(JaxParts):
    """`SentenceOps` on JAX arrays.

    Args:
        weights: tensors by canonical name, as far as they are asked for.
        tokens: (texts, length), filled up with any token.
        lengths: (texts,): how many of them are the text's.
        key: what dropout draws from.
        drop: the share of what each part of a layer adds that is left out at random, in training.
    """

    def __init__(
        self, weights: Tensors, tokens: jax.Array, lengths: jax.Array, key: jax.Array | None = None, drop: float = 0.0
    ) -> None:
        super().__init__(weights)
        self._tokens, self._lengths = tokens, lengths
        self._seen = jnp.arange(tokens.shape[1]) < lengths[:, None]  # (texts, length)
        self._key, self._share = key, drop

    def _dropped(self, x: jax.Array) -> jax.Array:
        if self._key is None or not self._share:
            return x
        self._key, now = jax.random.split(self._key)
        kept = jax.random.bernoulli(now, 1 - self._share, x.shape)
        return x * kept / (1 - self._share)

    def embed(self, stack: Stack) -> jax.Array:
        """As in `StackOps`."""
        rows = self._read("embed.weight")[self._tokens] * stack.embedding_scale  # (texts, length, width)
        if stack.positions:
            rows = rows + self._read(f"{stack.side}.positions.weight")[: self._tokens.shape[1]]
        return rows.reshape(-1, rows.shape[-1])

    def norm(self, x: jax.Array, norm: Norm, name: str, heads: int = 1) -> jax.Array:
        """As in `StackOps`."""
        found = super().norm(x, norm, name, heads)
        return self._dropped(found) if name.endswith("embed_norm") else found

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, stack: Stack, layer: int) -> jax.Array:
        """Each row of a text over all rows of the same text."""
        a = stack.attention
        heads = (*self._tokens.shape, a.heads, a.head_dim)
        queries, keys, values = (x.reshape(heads) for x in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) * a.score_scale
        if stack.buckets is not None:
            rows = buckets_between(self._tokens.shape[1], stack)
            scores = scores + self._read(f"{stack.side}.relative.weight")[rows].transpose(2, 0, 1)
        shares = jax.nn.softmax(jnp.where(self._seen[:, None, None], scores, HIDDEN), axis=-1)
        return jnp.einsum("bhqk,bkhd->bqhd", shares, values).reshape(q.shape)

    def add(self, x: jax.Array, y: jax.Array, name: str) -> jax.Array:
        """As in `StackOps`."""
        return x + self._dropped(y)

    def tanh(self, x: jax.Array) -> jax.Array:
        """As in `SentenceOps`."""
        return jnp.tanh(x)

    def pool(self, x: jax.Array, pooling: Pooling) -> jax.Array:
        """As in `SentenceOps`: (texts, width)."""
        rows = x.reshape(*self._tokens.shape, -1)
        if pooling == "cls":
            return self._dropped(rows[:, 0])
        return self._dropped((rows * self._seen[..., None]).sum(axis=1) / self._lengths[:, None])

    def look(self, scores: jax.Array, values: jax.Array, fields: Sequence[int]) -> jax.Array:
        """As in `SentenceOps`: (texts, labels)."""
        of_rows = jnp.where(self._seen[..., None], scores.reshape(*self._tokens.shape, -1), HIDDEN)
        shares = jnp.repeat(jax.nn.softmax(of_rows, axis=1), np.array(fields), axis=2, total_repeat_length=sum(fields))
        return (shares * values.reshape(*self._tokens.shape, -1)).sum(axis=1)

    def unit(self, x: jax.Array) -> jax.Array:
        """As in `SentenceOps`."""
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
