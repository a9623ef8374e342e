"""Ops that compute, in float32: the reference that every graph is held against.

Several sequences of one length are read side by side: tokens have shape (sequences, length), and
activations (sequences * length, width) with the sequences one after the other. Weights are asked for
when they are needed and not kept, so a pass holds one tensor at a time whatever the model's size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from converters.network.decoder import NetworkConfig

__all__ = ["FloatArray", "KvCache", "NumpyOps", "Observe", "ReadTensor", "keeping", "with_head"]

FloatArray = npt.NDArray[np.float32]
ReadTensor = Callable[[str], FloatArray]  # canonical name -> float32 tensor
Observe = Callable[[str, FloatArray], None]  # (canonical name of an activation, its values)


def with_head(config: NetworkConfig, read: ReadTensor) -> ReadTensor:
    """`read`, which also answers to `head.weight` where the head shares the embedding's rows."""
    if not config.tied_head:
        return read
    return lambda name: read("embed.weight" if name == "head.weight" else name)


def keeping(read: ReadTensor, name: str) -> ReadTensor:
    """`read`, which reads the tensor of this name only once."""
    kept = functools.cache(lambda: read(name))
    return lambda wanted: kept() if wanted == name else read(wanted)


@dataclass
class KvCache:
    """Keys (after RoPE) and values of earlier positions, per layer: (sequences or 1, positions, kv_heads, head_dim)."""

    layers: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)

    @property
    def positions(self) -> int:
        """How many positions it holds."""
        return self.layers[0][0].shape[1] if self.layers else 0


class NumpyOps:
    """`Ops` on arrays.

    Args:
        config: the network.
        read: where weights come from; `head.weight` is asked for even if the head is tied (see `with_head`).
        tokens: (sequences, length) int.
        past: positions before these tokens; one sequence in it serves all. It is not changed.
        observe: called with every named activation: `<matmul>.in` for what a group of matmuls reads (under
            the name of the first), `<matmul>` for what each gives, `layers.{i}.{queries,keys,values}` after
            RoPE and before attention, `layers.{i}.scores` (-inf where a position is hidden),
            `layers.{i}.probabilities`, and the residual sums. It must not change the values.
    """

    def __init__(
        self,
        config: NetworkConfig,
        read: ReadTensor,
        tokens: npt.NDArray[np.integer],
        past: KvCache | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._config, self._read, self._tokens = config, read, tokens
        self._past = past or KvCache()
        self._observe = observe or (lambda name, values: None)
        self._sequences, self._length = tokens.shape
        positions = np.arange(self._past.positions, self._past.positions + self._length, dtype=np.float64)
        angles = np.outer(positions, np.array(config.rope_frequencies, np.float64))  # (length, head_dim / 2)
        self._cos = (np.cos(angles) * config.rope_magnitude).astype(np.float32)[None, :, None]
        self._sin = (np.sin(angles) * config.rope_magnitude).astype(np.float32)[None, :, None]
        self.cache = KvCache()  # the past and these tokens, filled layer by layer

    def embed(self) -> FloatArray:
        """(sequences * length, width)."""
        table = self._read("embed.weight")
        return np.take(table, self._tokens.reshape(-1), axis=0)

    def rms_norm(self, x: FloatArray, name: str) -> FloatArray:
        """As in `Ops`."""
        mean = np.einsum("tw,tw->t", x, x, dtype=np.float32)[:, None] / np.float32(x.shape[1])
        return np.asarray(x / np.sqrt(mean + np.float32(self._config.norm_epsilon)) * self._read(f"{name}.weight"))

    def linear(self, x: FloatArray, *names: str) -> tuple[FloatArray, ...]:
        """As in `Ops`."""
        x = self._named(f"{names[0]}.in", x)
        return tuple(self._named(name, self._matmul(x, name)) for name in names)

    def _named(self, name: str, values: FloatArray) -> FloatArray:
        """Every named activation comes through here; a reading that stores them in integers overrides it."""
        self._observe(name, values)
        return values

    def _matmul(self, x: FloatArray, name: str) -> FloatArray:
        y = x @ self._read(f"{name}.weight").T
        if self._config.has_bias(name):
            y += self._read(f"{name}.bias")
        return y

    def rope(self, q: FloatArray, k: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As in `Ops`."""
        return self._rotate(q), self._rotate(k)

    def _rotate(self, x: FloatArray) -> FloatArray:
        half = self._config.head_dim // 2
        heads = x.reshape(self._sequences, self._length, -1, 2 * half)
        a, b = heads[..., :half], heads[..., half:]  # (sequences, length, heads, head_dim / 2)
        turned = np.concatenate([a * self._cos - b * self._sin, b * self._cos + a * self._sin], axis=-1)
        return turned.reshape(x.shape)

    def attend(self, q: FloatArray, k: FloatArray, v: FloatArray, layer: int) -> FloatArray:
        """As in `Ops`."""
        c, name = self._config, f"layers.{layer}"
        q, k, v = self._named(f"{name}.queries", q), self._named(f"{name}.keys", k), self._named(f"{name}.values", v)
        shape = (self._sequences, self._length, c.kv_heads, c.head_dim)
        keys, values = self._join_past(layer, k.reshape(shape), v.reshape(shape))
        self.cache.layers.append((keys, values))
        past = self._past.positions
        group = c.heads // c.kv_heads
        # (sequences, kv_heads, group * length, head_dim): the query heads of a key head are rows of one product
        queries = q.reshape(self._sequences, self._length, c.kv_heads, group, c.head_dim).transpose(0, 2, 3, 1, 4)
        queries = (queries * np.float32(c.head_dim**-0.5)).reshape(self._sequences, c.kv_heads, -1, c.head_dim)
        hidden = np.triu(np.full((self._length, past + self._length), -np.inf, np.float32), past + 1)
        out = np.empty((self._sequences, self._length, c.kv_heads, group, c.head_dim), np.float32)
        for s in range(self._sequences):  # one at a time: scores are the largest array of a pass
            scores = queries[s] @ keys[s].transpose(1, 2, 0)  # (kv_heads, group * length, past + length)
            scores = scores.reshape(c.kv_heads, group, self._length, -1)
            scores += hidden
            scores = self._named(f"{name}.scores", scores)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            scores = self._named(f"{name}.probabilities", scores)
            rows = scores.reshape(c.kv_heads, group * self._length, -1) @ values[s].transpose(1, 0, 2)
            mixed = rows.reshape(c.kv_heads, group, self._length, c.head_dim)
            out[s] = mixed.transpose(2, 0, 1, 3)  # (length, kv_heads, group, head_dim)
        return out.reshape(q.shape)

    def _join_past(self, layer: int, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        if not self._past.layers:
            return keys, values
        past_keys, past_values = (np.broadcast_to(t, (self._sequences, *t.shape[1:])) for t in self._past.layers[layer])
        return np.concatenate([past_keys, keys], axis=1), np.concatenate([past_values, values], axis=1)

    def gated_silu(self, gate: FloatArray, up: FloatArray) -> FloatArray:
        """As in `Ops`."""
        with np.errstate(over="ignore"):  # exp of a large negative gate overflows to inf: sigmoid is 0
            return np.asarray(gate / (np.float32(1) + np.exp(-gate)) * up)

    def add(self, x: FloatArray, y: FloatArray, name: str) -> FloatArray:
        """As in `Ops`."""
        return self._named(name, x + y)

    def select_rows(self, x: FloatArray) -> FloatArray:
        """All rows."""
        return x
