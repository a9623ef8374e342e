"""Rotation: the same network in a basis in which no channel is larger than the others, with its norms folded in.

The residual stream of a decoder has a few channels that are far larger than the rest. When a row of activations is
quantized with one scale, they leave the others few steps. An orthogonal R spreads every channel over all (after
QuaRot, Ashkboos et al. 2024), and costs nothing at run time, because it folds into the weights:

    x' = x R:            embed, positions, and the rows of o and down, times R
    what reads x':       q, k, v, gate, up and head, times R on their columns, the norm's gain folded in first
                         (without its gain an RMS norm commutes with R), its bias as part of theirs
    values, per head:    rows of v and columns of o

A layer norm is an RMS norm of what has its mean taken away. Everything that is added to the residual stream can lose
its mean beforehand (after SliceGPT, Ashkboos et al. 2024), so a network of layer norms becomes one of RMS norms.

A norm after a part (`attention_post_norm`) has its gain in the residual stream, where R cannot pass it. Such a network
keeps its basis, and the gains before its parts stay where they are, divided by the factors of `smoothing.py`: a gain of
almost nothing is often there to hide a channel that is larger than all others together, and that channel would take
every step of the row if the gain were part of the weights. Only its head may read another basis, where a float matmul
before it is worth what it costs: the rows of a tied head cannot be divided by factors, since they are embeddings too.

Inside the feed-forward block nothing can be rotated, because the activation works channel by channel. There the
channels are only sorted by their calibrated peaks, so that the graph can quantize the few large ones apart (see
profiles/pi.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from converters.network.config import Block, NetworkConfig, Norm
from converters.network.tensors import Linear, Role, Tensor, tensors
from converters.network.weights import CanonicalWeights, FloatArray, Weights
from converters.ops.numpy import KvCache
from device_runtime.errors import ArchitectureError

__all__ = ["RotatedWeights", "folded", "rotates_residual", "rotation_matrix", "turned_rows"]

_WIDE = 1024  # from here on a product with the whole matrix would be most of a conversion's work
_ROWS = 4096  # at a time
_SEED = 0x5C4A7  # any fixed number: bundles must come out the same every time


@lru_cache(maxsize=4)
def rotation_matrix(width: int) -> FloatArray:
    """An orthogonal (width, width) matrix whose elements are all of about the same size.

    The Kronecker product of a Hadamard matrix, as large as `width` allows, and a small random orthogonal one, with
    random signs.
    """
    signs, hadamard, rest = _factors(width)
    matrix = (signs[:, None] * np.kron(hadamard, rest)).astype(np.float32)
    matrix.flags.writeable = False  # it is shared
    return matrix


def _factors(width: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Signs (width,), a Hadamard matrix, and a small orthogonal one."""
    random = np.random.default_rng(_SEED + width)
    rest = width // (width & -width)
    q, r = np.linalg.qr(random.standard_normal((rest, rest)))
    return random.choice([-1.0, 1.0], width), _hadamard(width // rest), q * np.sign(np.diag(r))


def _hadamard(size: int) -> npt.NDArray[np.float64]:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
    return matrix


@lru_cache(maxsize=4)
def _two_steps(width: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Signs, and the Kronecker product as one of two matrices, the first about the root of the width."""
    signs, hadamard, rest = _factors(width)
    first = 1
    while 4 * first * first <= width and 2 * first <= len(hadamard):
        first *= 2
    second = np.kron(_hadamard(len(hadamard) // first), rest)
    return signs.astype(np.float32), _hadamard(first).astype(np.float32), second.astype(np.float32)


def turned_rows(rows: FloatArray) -> FloatArray:
    """rows @ rotation_matrix(width), (…, width); of a large width in two steps, each with a small matrix."""
    width = rows.shape[-1]
    if width < _WIDE:
        return np.asarray(rows @ rotation_matrix(width))
    signs, first, second = _two_steps(width)
    flat = rows.reshape(-1, width)
    out = np.empty(flat.shape, np.float32)
    for start in range(0, len(flat), _ROWS):
        block = (flat[start : start + _ROWS] * signs).reshape(-1, len(first), len(second))
        block = np.matmul(first, block).reshape(-1, len(second)) @ second
        out[start : start + _ROWS] = block.reshape(-1, width)
    return out.reshape(rows.shape)


def rotates_residual(config: NetworkConfig) -> bool:
    """Whether the residual stream of this network can change its basis."""
    return not any(block.attention_post_norm or block.ffn_post_norm for block in config.blocks)


def folded(config: NetworkConfig, turn_head: bool = False) -> NetworkConfig:
    """The network that `RotatedWeights` are of: RMS norms before each part, and scales in the weights.

    The norms have no gain, except where the residual stream keeps its basis.

    Args:
        turn_head: whether the head of such a network is to read a basis without large channels.

    Raises:
        ArchitectureError: layer norms that are not all before a part, so that they cannot become RMS norms.
    """
    blocks, gains = [], not rotates_residual(config)
    for block in config.blocks:
        a, f = block.attention, block.feed_forward
        ffn_norm = block.ffn_norm or (block.attention_norm if block.parallel else None)
        blocks.append(
            replace(
                block,
                attention=replace(a, bias=a.bias or _has_bias(block.attention_norm)),
                feed_forward=replace(f, bias=f.bias or _has_bias(ffn_norm)),
                attention_norm=_plain(block.attention_norm, gains),
                ffn_norm=_plain(block.ffn_norm, gains),
                residual_scale=1.0 if _folds_residual_scale(block) else block.residual_scale,
            )
        )
    norm, turned = config.head.norm, gains and turn_head
    bias = config.head.bias or _has_bias(norm)
    head = replace(config.head, norm=_plain(norm, gains and not turned), bias=bias, scale=1.0, turned=turned)
    _check_layer_norms(config)
    return replace(config, blocks=tuple(blocks), head=head, embedding=replace(config.embedding, scale=1.0))


def _plain(norm: Norm | None, gains: bool) -> Norm | None:
    return None if norm is None else Norm(norm.epsilon, gain=gains and norm.gain)


def _has_bias(norm: Norm | None) -> bool:
    return norm is not None and norm.bias


def _folds_residual_scale(block: Block) -> bool:
    """Whether what a part adds is what its last matmul gives, so that the scale can be part of that."""
    return block.attention_post_norm is None and block.ffn_post_norm is None


def _before(block: Block) -> list[Norm | None]:
    """The norms of what reads the residual stream."""
    return (
        [block.attention_norm] if block.parallel and block.ffn_norm is None else [block.attention_norm, block.ffn_norm]
    )


def _layer_norms(config: NetworkConfig) -> list[bool]:
    """For each reader of the residual stream, whether it reads it through a layer norm."""
    norms = [norm for block in config.blocks for norm in _before(block)] + [config.head.norm]
    return [norm is not None and norm.kind == "layer" for norm in norms]


def _check_layer_norms(config: NetworkConfig) -> None:
    after = [norm for block in config.blocks for norm in (block.attention_post_norm, block.ffn_post_norm)]
    mixed = any(_layer_norms(config)) and not all(_layer_norms(config))
    if mixed or any(norm is not None and norm.kind == "layer" for norm in after):
        raise ArchitectureError(
            "The layer norms of this network are not all before attention, feed-forward and head; expected that, "
            "or RMS norms. No profile can compute it: use another checkpoint."
        )


class RotatedWeights(Weights):
    """The rotated network of a checkpoint; `head.weight` differs from `embed.weight` even if tied.

    Args:
        canonical: the checkpoint's weights.
        ffn_order: layer -> order of the feed-forward channels, by `gate` and `up` rows; none is left as it is.
        down_factors: layer -> what each channel is divided by where `up` makes it, and `down` multiplied by, in that
            order; for feed-forward parts with a gate.
        norm_factors: norm -> what each channel of its result is divided by, in its gain, and the weights that read it
            multiplied by; for networks that keep their basis.
        turn_head: see `folded`.
    """

    def __init__(
        self,
        canonical: CanonicalWeights,
        ffn_order: Mapping[int, npt.NDArray[np.integer]],
        down_factors: Mapping[int, FloatArray] = MappingProxyType({}),
        norm_factors: Mapping[str, FloatArray] = MappingProxyType({}),
        turn_head: bool = False,
    ) -> None:
        self._canonical, self._order, self._down_factors = canonical, ffn_order, down_factors
        self._source = {tensor.name: tensor for tensor in tensors(canonical.config)}
        self._norm_factors = norm_factors
        self._gain_factors = {f"{norm}.weight": factor for norm, factor in norm_factors.items()}
        config = folded(canonical.config, turn_head)
        self._residual = rotation_matrix(config.width) if rotates_residual(config) else None
        self._centered = any(_layer_norms(canonical.config))
        self._head_basis = rotation_matrix(config.width) if config.head.turned else self._residual
        super().__init__(config, self._rotated)
        self._tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in tensors(config)}
        self._tensors |= {t.name: t for t in tensors(replace(config, head=replace(config.head, tied=False)))}

    def rotate_cache(self, cache: KvCache) -> KvCache:
        """A cache of the checkpoint's network as the rotated one would fill it."""
        pairs = zip(cache.layers, self.config.blocks, strict=False)
        return KvCache([(keys, values @ rotation_matrix(b.attention.head_dim)) for (keys, values), b in pairs])

    @property
    def embedding_map(self) -> FloatArray | None:
        """M, (width, width): a row of the rotated head times M is the rotated embedding of that token.

        None for a head that does not share the embedding's rows.
        """
        config = self._canonical.config
        if not config.head.tied:
            return None
        back = np.eye(config.width, dtype=np.float32) if self._head_basis is None else self._head_basis.T
        if (factor := self._column_factor("final_norm")) is not None and not self.config.head.turned:
            back = back / factor
        mapped = self._into_residual(back)
        scale = config.embedding.scale / config.head.scale
        return np.asarray(mapped if scale == 1 else mapped * np.float32(scale))

    # -- one tensor ----------------------------------------------------------------------------------------------------

    def _rotated(self, name: str) -> FloatArray:
        tensor = self._tensors[name]
        if tensor.kind in ("gain", "norm bias"):  # of q, k, after a part, or where nothing is rotated
            factor = self._gain_factors.get(name)
            return self._canonical(name) if factor is None else self._canonical(name) / factor
        if tensor.kind == "embedding":
            scale, rows = self._canonical.config.embedding.scale, self._canonical(name)
            return self._into_residual(rows if scale == 1 else rows * np.float32(scale))
        if tensor.kind == "basis":
            assert self._head_basis is not None
            gain = self._column_factor("final_norm")
            return np.asarray(self._head_basis.T if gain is None else self._head_basis.T * gain)
        if tensor.kind == "positions":
            return self._into_residual(self._canonical(name))
        assert tensor.matmul is not None
        return self._bias(tensor.matmul) if tensor.kind == "bias" else self._weight(tensor.matmul)

    def _weight(self, matmul: Linear) -> FloatArray:
        weight = self._canonical(matmul.weight)
        order = self._order.get(matmul.layer) if matmul.layer is not None else None
        if order is not None and matmul.role in (Role.GATE, Role.UP):
            weight = weight[order]
        if order is not None and matmul.role is Role.DOWN:
            weight = weight[:, order]
        factor = self._down_factors.get(matmul.layer) if matmul.layer is not None else None
        if factor is not None and matmul.role is Role.UP:
            weight = weight / factor[:, None]
        if factor is not None and matmul.role is Role.DOWN:
            weight = weight * factor
        if matmul.role is Role.V:
            weight = _rotate_rows(weight, self._values(matmul))
        if matmul.role is Role.O:
            weight = _rotate_columns(weight, self._values(matmul))
        if matmul.role in (Role.O, Role.DOWN):
            if (scale := self._residual_scale(matmul)) != 1:
                weight = weight * np.float32(scale)
            if self._centered:
                weight = weight - weight.mean(axis=0)
            return weight if self._residual is None else turned_rows(np.ascontiguousarray(weight.T)).T
        if matmul.role is Role.HEAD and self._canonical.config.head.scale != 1:
            weight = weight * np.float32(self._canonical.config.head.scale)
        if matmul.role is Role.HEAD and self.config.head.turned:  # the gain is part of the basis
            return turned_rows(weight)
        if matmul.norm is not None and (columns := self._column_factor(matmul.norm)) is not None:
            weight = weight * columns
        return np.asarray(weight if self._residual is None else turned_rows(weight))

    def _column_factor(self, norm: str) -> FloatArray | None:
        """What the weights that read a norm are multiplied by, (width,): its gain, where that does not stay there."""
        if f"{norm}.weight" in self._tensors:
            return self._norm_factors.get(norm)
        return self._canonical(f"{norm}.weight") if f"{norm}.weight" in self._source else None

    def _bias(self, matmul: Linear) -> FloatArray:
        """The checkpoint's bias, where it has one, and what the norm's makes of it."""
        name = f"{matmul.name}.bias"
        bias = self._canonical(name) if name in self._source else np.zeros(matmul.rows, np.float32)
        if matmul.norm is not None and f"{matmul.norm}.bias" in self._source:
            bias = bias + self._canonical(matmul.weight) @ self._canonical(f"{matmul.norm}.bias")
        if matmul.role is Role.HEAD and self._canonical.config.head.scale != 1:
            bias = bias * np.float32(self._canonical.config.head.scale)
        order = self._order.get(matmul.layer) if matmul.layer is not None else None
        if order is not None and matmul.role in (Role.GATE, Role.UP):
            bias = bias[order]
        factor = self._down_factors.get(matmul.layer) if matmul.layer is not None else None
        if factor is not None and matmul.role is Role.UP:
            bias = bias / factor
        if matmul.role is Role.V:
            values = self._values(matmul)
            bias = (bias.reshape(-1, len(values)) @ values).reshape(-1)
        if matmul.role not in (Role.O, Role.DOWN):
            return np.asarray(bias)
        scale = self._residual_scale(matmul)
        return np.asarray(self._into_residual(bias if scale == 1 else bias * np.float32(scale)))

    def _residual_scale(self, matmul: Linear) -> float:
        assert matmul.layer is not None
        block = self._canonical.config.blocks[matmul.layer]
        return block.residual_scale if _folds_residual_scale(block) else 1.0

    def _into_residual(self, rows: FloatArray) -> FloatArray:
        """(…, width) that is added to the residual stream."""
        rows = self._center_columns(rows)
        return np.asarray(rows if self._residual is None else turned_rows(rows))

    def _center_columns(self, rows: FloatArray) -> FloatArray:
        return np.asarray(rows - rows.mean(axis=-1, keepdims=True)) if self._centered else rows

    def _values(self, matmul: Linear) -> FloatArray:
        """The rotation of one head's values."""
        assert matmul.layer is not None
        return rotation_matrix(self.config.blocks[matmul.layer].attention.head_dim)


def _rotate_rows(weight: FloatArray, values: FloatArray) -> FloatArray:
    """Rotate the outputs of each head: weight is (heads * head_dim, in)."""
    dim = len(values)
    heads = weight.reshape(-1, dim, weight.shape[1])
    return np.asarray(np.matmul(values.T, heads)).reshape(weight.shape)


def _rotate_columns(weight: FloatArray, values: FloatArray) -> FloatArray:
    """Rotate the inputs of each head: weight is (out, heads * head_dim)."""
    dim = len(values)
    return np.asarray(weight.reshape(len(weight), -1, dim) @ values).reshape(weight.shape)
