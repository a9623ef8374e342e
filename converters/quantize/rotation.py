"""Rotation: the same network in a basis in which no channel is larger than the others.

The residual stream of a decoder has a few channels that are far larger than the rest. When a row of activations is
quantized with one scale, they leave the others few steps. An orthogonal R spreads every channel over all (after
QuaRot, Ashkboos et al. 2024), and costs nothing at run time, because it folds into the weights:

    x' = x R:            embed, and the rows of o and down, times R
    what reads x':       q, k, v, gate, up and head, times R on their columns, the norm's gain folded in first
                         (without its gain an RMS norm commutes with R)
    values, per head:    rows of v and columns of o

Inside the feed-forward block nothing can be rotated, because silu works channel by channel. There the channels are
only sorted by their calibrated peaks, so that the graph can quantize the few large ones apart (see profile_pi.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converters.network.decoder import NetworkConfig
from converters.ops.numpy import FloatArray, KvCache, ReadTensor

__all__ = ["Rotation", "rotation_matrix"]

_SEED = 0x5C4A7  # any fixed number: bundles must come out the same every time


def rotation_matrix(width: int) -> FloatArray:
    """An orthogonal (width, width) matrix whose elements are all of about the same size.

    The Kronecker product of a Hadamard matrix, as large as `width` allows, and a small random orthogonal one, with
    random signs.
    """
    random = np.random.default_rng(_SEED + width)
    hadamard = np.ones((1, 1))
    rest = width
    while rest % 2 == 0:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]]) / np.sqrt(2)
        rest //= 2
    q, r = np.linalg.qr(random.standard_normal((rest, rest)))
    signs = random.choice([-1.0, 1.0], width)
    return (signs[:, None] * np.kron(hadamard, q * np.sign(np.diag(r)))).astype(np.float32)


@dataclass(frozen=True)
class Rotation:
    """A rotated reading of a network.

    Args:
        config: the network.
        ffn_order: layer -> order of the feed-forward channels, by `gate` and `up` rows; none is left as it is.
    """

    config: NetworkConfig
    ffn_order: Mapping[int, npt.NDArray[np.integer]]

    def apply(self, read: ReadTensor) -> ReadTensor:
        """The rotated weights; `head.weight` differs from `embed.weight` even if tied. All norm gains are 1."""
        c = self.config
        residual, value = rotation_matrix(c.width), rotation_matrix(c.head_dim)

        def rotated(name: str) -> FloatArray:
            tensor = read(name)
            owner, _, part = name.rpartition(".")
            kind = owner.rpartition(".")[2]
            if kind.endswith("norm"):
                return np.ones_like(tensor)
            if kind == "embed":
                return tensor @ residual
            order = self.ffn_order.get(int(owner.split(".")[1])) if kind in ("gate", "up", "down") else None
            if order is not None and kind in ("gate", "up"):
                tensor = tensor[order]
            if part == "bias":
                if kind == "v":
                    return np.asarray((tensor.reshape(-1, c.head_dim) @ value).reshape(-1))
                return tensor @ residual if kind in ("o", "down") else tensor
            if kind == "v":
                tensor = _turn_rows(tensor, value)
            if kind == "o":
                tensor = _turn_columns(tensor, value)
            if kind == "down" and order is not None:
                tensor = tensor[:, order]
            if kind in ("o", "down"):
                return residual.T @ tensor
            return np.asarray((tensor * read(_gain_of(owner))) @ residual)

        return rotated

    def apply_to_cache(self, cache: KvCache) -> KvCache:
        """A cache of the same network as the rotated one would fill it."""
        value = rotation_matrix(self.config.head_dim)
        return KvCache([(keys, values @ value) for keys, values in cache.layers])

    def embedding_map(self, read: ReadTensor) -> FloatArray:
        """M, (width, width): a row of the rotated head times M is the rotated embedding of that token."""
        residual = rotation_matrix(self.config.width)
        return np.asarray((residual.T / read("final_norm.weight")) @ residual)


def _gain_of(owner: str) -> str:
    """The norm whose result a matmul reads."""
    if owner == "head":
        return "final_norm.weight"
    layer, kind = owner.rsplit(".", 1)
    return f"{layer}.{'attention_norm' if kind in ('q', 'k', 'v') else 'ffn_norm'}.weight"


def _turn_rows(weight: FloatArray, value: FloatArray) -> FloatArray:
    """Rotate the outputs of each head: weight is (heads * head_dim, in)."""
    dim = len(value)
    heads = weight.reshape(-1, dim, weight.shape[1])
    return np.asarray(np.matmul(value.T, heads)).reshape(weight.shape)


def _turn_columns(weight: FloatArray, value: FloatArray) -> FloatArray:
    """Rotate the inputs of each head: weight is (out, heads * head_dim)."""
    dim = len(value)
    return np.asarray(weight.reshape(len(weight), -1, dim) @ value).reshape(weight.shape)
