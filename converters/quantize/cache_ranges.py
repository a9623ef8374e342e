"""How the keys and values of a `pi` graph are stored in int8: one scale for the keys of a layer, one for its values.

XNNPACK takes back to floats only what has one fixed scale a tensor, so the channels have to be of one size beforehand.
Values are, by the rotation of their heads. Of the keys some channels are many times larger than others, and RoPE turns
the two of a pair into each other, whatever the position. So each pair of keys is divided by its largest length, and the
queries that meet it are multiplied by that: in the scales of the rows of k and q, or in the gains of their norms, where
it costs nothing at run time.

The first position, on which most of the attention rests, is stored exactly: what rounding would change of its keys and
values is taken away from those of all positions. Softmax does not see that of the keys, which raises or lowers all
scores of a query alike; that of the values is a bias of v, and comes back as a bias of o.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.network.config import Attention, NetworkConfig
from converters.network.tensors import activations
from converters.network.weights import FloatArray
from converters.ops.numpy import KvCache
from converters.quantize.rotation import rotation_matrix

__all__ = ["CachePeaks", "CacheRange", "cache_ranges", "stored_cache"]

_MOST = 127  # of int8, either way
# What other texts may have beyond the largest that calibration has seen. Random networks, which read nothing like it in
# their tests, are 14 to 27 % off without, 6 to 13 % with 1.2, and 4 to 6 % with 1.5.
_HEADROOM = 1.3
_LEAST = 1e-6  # of a scale, where nothing was ever seen
_LEAST_FACTOR = 1 / 16  # what hardly occurs at calibration keeps some room
_MOST_FACTOR_INT4 = 16.0  # scales of int4 blocks have to stay normal float16 numbers


@dataclass(frozen=True)
class CacheRange:
    """Of one layer."""

    key_factors: FloatArray  # (kv_heads, head_dim): what each channel of the keys is divided by
    key_offset: FloatArray  # (kv_heads, head_dim): what is then taken away from them
    key_scale: float
    value_offset: FloatArray  # (kv_heads, head_dim): what is taken away from the values
    value_scale: float


class CachePeaks:
    """An observer (see `NumpyOps`) that keeps the largest magnitudes of keys and values.

    Args:
        rotated: values are seen in the checkpoint's basis, and stored in that of `RotatedWeights`.
    """

    def __init__(self, config: NetworkConfig, rotated: bool) -> None:
        self.keys: dict[int, FloatArray] = {}  # layer -> (kv_heads, head_dim), of a pair that RoPE turns its length
        self.values: dict[int, FloatArray] = {}  # layer -> (kv_heads, head_dim)
        self._config, self._rotated, self._activations = config, rotated, activations(config)

    def __call__(self, name: str, values: FloatArray) -> None:
        """Take in one activation, (tokens, width)."""
        activation = self._activations[name]
        if activation.layer is None or activation.kind not in ("keys", "values"):
            return
        a = self._config.blocks[activation.layer].attention
        heads = values.reshape(len(values), a.kv_heads, a.head_dim)
        if activation.kind == "keys":
            seen, found = self.keys, _pair_lengths(heads, a)
        else:
            seen, found = self.values, np.abs(heads @ rotation_matrix(a.head_dim) if self._rotated else heads)
        peak = found.max(axis=0)
        known = seen.get(activation.layer)
        seen[activation.layer] = peak if known is None else np.maximum(known, peak)

    def cache(self) -> KvCache:
        """What was seen, as a cache of one position."""
        return KvCache([(self.keys[i][None, None], self.values[i][None, None]) for i in sorted(self.keys)])


def cache_ranges(config: NetworkConfig, peaks: KvCache, prefix: KvCache, *, int4: bool) -> tuple[CacheRange, ...]:
    """One for each layer.

    Args:
        peaks: what `CachePeaks.cache` gives, in the basis in which values are stored.
        prefix: what the cache begins with, in that basis; it has to fit too.
        int4: the weights of the layers have scales in float16, which bounds what they can be divided by.
    """
    found = []
    for i, block in enumerate(config.blocks):
        a = block.attention
        keys, values = (sizes[0, 0] for sizes in peaks.layers[i])  # (kv_heads, head_dim)
        if prefix.layers:
            of_prefix = (_pair_lengths(prefix.layers[i][0][0], a), np.abs(prefix.layers[i][1][0]))
            keys, values = (np.maximum(s, p.max(axis=0)) for s, p in zip((keys, values), of_prefix, strict=True))
        factors = _factors(keys, a, int4)
        scales = (float(sizes.max()) * _HEADROOM / _MOST for sizes in (keys / factors, values))
        key_scale, value_scale = (max(scale, _LEAST) for scale in scales)
        key_offset = value_offset = np.zeros_like(keys)
        if prefix.layers:
            first_keys, first_values = (t[0, 0] for t in prefix.layers[i])
            value_offset = _lost(first_values, value_scale)
            if a.softcap is None:  # a capped score shows by how much all of them were moved
                key_offset = _lost(first_keys / factors, key_scale)
        found.append(CacheRange(factors, key_offset, key_scale, value_offset, value_scale))
    return tuple(found)


def stored_cache(cache: KvCache, ranges: Sequence[CacheRange]) -> KvCache:
    """Keys and values as the graph stores them, int8."""
    layers = []
    for (keys, values), r in zip(cache.layers, ranges, strict=False):
        keys = _stored(keys / r.key_factors - r.key_offset, r.key_scale)
        layers.append((keys, _stored(values - r.value_offset, r.value_scale)))
    return KvCache(layers)


def _lost(values: FloatArray, scale: float) -> FloatArray:
    """What rounding takes away."""
    return np.asarray(values - np.rint(values / np.float32(scale)) * np.float32(scale), np.float32)


def _stored(values: FloatArray, scale: float) -> npt.NDArray[Any]:
    return np.asarray(np.clip(np.rint(values / np.float32(scale)), -_MOST, _MOST), np.int8)


def _factors(keys: FloatArray, attention: Attention, int4: bool) -> FloatArray:
    """(kv_heads, head_dim). A norm of the keys has one gain for all heads, and where it has none there is no place.

    Biases of k as Qwen2 has them make a pair a hundred times as large as the others, so int8 weights have no bound.
    """
    norm = attention.qk_norm
    if norm is not None and not norm.gain:
        return np.ones_like(keys)
    sizes = keys if norm is None else np.broadcast_to(keys.max(axis=0), keys.shape)
    sizes = np.maximum(sizes, max(float(sizes.max()) * 1e-6, 1e-12))
    most = _MOST_FACTOR_INT4 if int4 and norm is None else np.inf
    return np.asarray(np.clip(sizes / np.exp(np.log(sizes).mean()), _LEAST_FACTOR, most), np.float32)


def _pair_lengths(heads: FloatArray, attention: Attention) -> FloatArray:
    """(tokens, kv_heads, head_dim): of a pair that RoPE turns its length, twice; of any other channel its size."""
    half = 0 if attention.rope is None else len(attention.rope.frequencies)
    lengths = np.hypot(heads[..., :half], heads[..., half : 2 * half])
    return np.concatenate([lengths, lengths, np.abs(heads[..., 2 * half :])], axis=-1)
