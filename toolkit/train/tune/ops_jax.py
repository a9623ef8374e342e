"""Ops that compute with JAX, to be differentiated: the network of converters/network/decoder.py, for tuning.

Several sequences that begin alike are read side by side: what they have in common (the chat template's beginning, the
system message) is there once. Activations have shape (prefix + sequences * length, width): the positions of the prefix,
then those of each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import jax
import jax.numpy as jnp

from converters.network.config import Attention, Feature, NetworkConfig
from toolkit.train.tune.jax_parts import HIDDEN, JaxParts, Tensors

__all__ = ["JaxOps", "Sequences"]


@dataclass(frozen=True)
class Sequences:
    """How the rows of an activation are laid out."""

    prefix: int  # rows of the prefix, of which the last ones may be empty
    count: int  # sequences
    length: int  # positions of each
    begin: jax.Array | int  # how many rows of the prefix are not empty: where each sequence begins

    def positions(self) -> jax.Array:
        """Of each row, (prefix + count * length,)."""
        own = self.begin + jnp.arange(self.length)
        return jnp.concatenate([jnp.arange(self.prefix), jnp.tile(own, self.count)])


class JaxOps(JaxParts):
    """`Ops` on JAX arrays.

    Args:
        config: the network.
        weights, trained, scale: see `JaxParts`.
        rows: how the rows are laid out.
        tokens: (prefix + count * length,), for `embed`.
    """

    SUPPORTS = frozenset(get_args(Feature))

    def __init__(
        self,
        config: NetworkConfig,
        weights: Tensors,
        rows: Sequences,
        tokens: jax.Array | None = None,
        trained: Tensors | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(weights, trained, scale)
        self._config, self._rows, self._tokens = config, rows, tokens

    def embed(self) -> jax.Array:
        """As in `Ops`."""
        embedding = self._config.embedding
        rows = self._read("embed.weight")[self._tokens] * embedding.scale
        if embedding.positions:
            rows = rows + self._read("positions.weight")[self._rows.positions()]
        return jnp.asarray(rows)

    def rope(self, q: jax.Array, k: jax.Array, attention: Attention) -> tuple[jax.Array, jax.Array]:
        """As in `Ops`."""
        assert attention.rope is not None
        angles = self._rows.positions()[:, None] * jnp.asarray(attention.rope.frequencies, jnp.float32)
        cos, sin = (f(angles)[:, None] * attention.rope.magnitude for f in (jnp.cos, jnp.sin))  # (rows, 1, half)
        half = len(attention.rope.frequencies)

        def rotated(x: jax.Array) -> jax.Array:
            heads = x.reshape(len(x), -1, attention.head_dim)
            a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
            return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).reshape(x.shape)

        return rotated(q), rotated(k)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, attention: Attention, layer: int) -> jax.Array:
        """Causal attention: the prefix over itself, each sequence over the prefix and itself."""
        a, rows = attention, self._rows
        p, group = rows.prefix, attention.heads // attention.kv_heads
        kv = (-1, a.kv_heads, a.head_dim)
        before_k, before_v = k[:p].reshape(kv), v[:p].reshape(kv)  # (P, KV, D)
        first = jnp.arange(p)
        mixed = []
        if p:
            scores = self._scores(jnp.einsum("pkgd,qkd->kgpq", q[:p].reshape(p, a.kv_heads, group, -1), before_k), a)
            scores = jnp.where(self._seen(first, first, a), scores, HIDDEN)
            part = jnp.einsum("kgpq,qkd->pkgd", jax.nn.softmax(scores, axis=-1), before_v)
            mixed.append(part.reshape(p, -1))
        own = (rows.count, rows.length)
        queries = q[p:].reshape(*own, a.kv_heads, group, a.head_dim)  # (B, T, KV, G, D)
        own_k, own_v = k[p:].reshape(*own, *kv[1:]), v[p:].reshape(*own, *kv[1:])  # (B, T, KV, D)
        at = rows.begin + jnp.arange(rows.length)
        to_prefix = self._scores(jnp.einsum("btkgd,pkd->bkgtp", queries, before_k), a)
        to_prefix = jnp.where(self._seen(at, first, a) & (first < rows.begin), to_prefix, HIDDEN)
        to_own = self._scores(jnp.einsum("btkgd,bskd->bkgts", queries, own_k), a)
        to_own = jnp.where(self._seen(at, at, a), to_own, HIDDEN)
        shares = jax.nn.softmax(jnp.concatenate([to_prefix, to_own], axis=-1), axis=-1)
        out = jnp.einsum("bkgtp,pkd->btkgd", shares[..., :p], before_v)
        out = out + jnp.einsum("bkgts,bskd->btkgd", shares[..., p:], own_v)
        return jnp.concatenate([*mixed, out.reshape(rows.count * rows.length, -1)])

    def _scores(self, products: jax.Array, attention: Attention) -> jax.Array:
        scores = products * attention.score_scale
        return scores if attention.softcap is None else self.softcap(scores, attention.softcap)

    @staticmethod
    def _seen(queries: jax.Array, keys: jax.Array, attention: Attention) -> jax.Array:
        """Whether the position of a query sees that of a key: (queries, keys)."""
        back = queries[:, None] - keys[None, :]
        return (back >= 0) if attention.window is None else (back >= 0) & (back < attention.window)

    def softcap(self, x: jax.Array, cap: float) -> jax.Array:
        """As in `Ops`."""
        return cap * jnp.tanh(x / cap)

    def turn(self, x: jax.Array, name: str) -> jax.Array:
        """As in `Ops`."""
        return x @ self._read(f"{name}.weight").T

    def select_rows(self, x: jax.Array) -> jax.Array:
        """All rows."""
        return x
