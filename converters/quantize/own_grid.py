"""The network of a 4-bit checkpoint on its own grid: neither rotated nor rounded a second time.

Rotation would take the weights off their grid, so the few large channels of an activation stay. A kernel quantizes a
row of activations with one scale, and there they leave the others few steps. But a block of weights has a scale of its
own, and multiplying it is exact: what a block of channels is divided by, before the matmul, the scales of its weights
are multiplied by. So blocks of channels can be brought closer to one size before they are quantized. It costs nothing
at run time:

    q, k, v, gate, up    the norm's gain is divided
    o                    rows of v are divided, all query heads of a key head alike
    down                 rows of up are divided, where the feed-forward part has a gate
    head                 the final norm's gain is divided, channel by channel: its weights are int8 anyway
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from converters.network.config import NetworkConfig
from converters.network.tensors import Linear, Role, Tensor, by_role, groups, tensors
from converters.network.weights import CanonicalWeights, FloatArray, Weights
from converters.ops.numpy import KvCache
from converters.quantize.blocks import BLOCK, BlockRows, own_grid
from converters.quantize.observers import ChannelPeaks

__all__ = ["GridWeights", "around_one", "block_factors", "has_own_grid"]

_WIDEST = 64.0  # of a factor, either way: scales have to stay normal float16 numbers
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the difference in size that blocks of weights take over from activations
_HEAD_SHARE = 0.5  # and that the head's channels do


def has_own_grid(canonical: CanonicalWeights) -> bool:
    """Whether the matmuls of a checkpoint are mostly in 4 bits, by its first and its middle layer."""
    layers = {0, canonical.config.layers // 2}
    looked_at = [m for layer in layers for m in by_role(canonical.config, layer).values()]
    found = sum(m.rows * m.columns for m in looked_at if own_grid(canonical(m.weight)) is not None)
    return 2 * found > sum(m.rows * m.columns for m in looked_at)


def block_factors(sizes: FloatArray, weights: FloatArray) -> FloatArray:
    """What each block of channels is divided by, so that rounding disturbs the matmul's result least: (blocks,).

    A token's values are rounded in steps of its largest; the error of a block comes through its weights.

    Args:
        sizes: (tokens, blocks), the largest magnitude of each block.
        weights: (blocks,), the sum of the squared weights that read it.
    """
    mean = np.sqrt(np.square(sizes).mean(axis=0))

    def error(factors: FloatArray) -> float:
        steps = np.square((sizes / factors).max(axis=1)).mean()
        return float(steps * (np.square(factors) * weights).sum())

    return min((around_one(mean**share) for share in _SHARES), key=error)


def around_one(sizes: FloatArray) -> FloatArray:
    """The same proportions, around 1, none of them extreme."""
    sizes = np.maximum(sizes, max(float(sizes.max()) * 1e-6, 1e-12))
    return np.asarray(np.clip(sizes / np.exp(np.log(sizes).mean()), 1 / _WIDEST, _WIDEST), np.float32)


class GridWeights(Weights):
    """The weights of a checkpoint, with channels divided as above.

    Args:
        canonical: the checkpoint's weights.
        peaks: what calibration has seen of every matmul's input, with its blocks.
    """

    def __init__(self, canonical: CanonicalWeights, peaks: ChannelPeaks) -> None:
        source = canonical.config
        self._canonical = canonical
        super().__init__(
            replace(source, head=replace(source.head, scale=1.0), embedding=replace(source.embedding, scale=1.0)),
            self._scaled,
        )
        untied = replace(source, head=replace(source.head, tied=False))
        self._tensors = {tensor.name: tensor for tensor in tensors(untied)}
        self._inputs = _input_factors(source, peaks, canonical)  # by the name of the input: by channel, or nothing
        self._outputs = _output_factors(source, self._inputs)  # by the name of a matmul

    def blocks(self, matmul: Linear, factors: FloatArray) -> BlockRows | None:
        """The integers of a matmul, each row times one of `factors`; None where its weights lie on no grid."""
        rows = own_grid(self._canonical(matmul.weight))
        if rows is None:
            return None
        columns = self._inputs.get(matmul.input)
        by_block = np.ones(1, np.float32) if columns is None else columns[:: rows.block]
        return rows.times((self._row_factor(matmul) * factors)[:, None] * by_block)

    def cache(self, cache: KvCache) -> KvCache:
        """A cache of the checkpoint's network as this one would fill it."""
        layers = []
        for i, (keys, values) in enumerate(cache.layers):
            divided = self._outputs.get(f"layers.{i}.v")
            layers.append((keys, values if divided is None else values / divided.reshape(values.shape[2:])))
        return KvCache(layers)

    @property
    def embedding_map(self) -> FloatArray | None:
        """What a row of the head is times to be an embedding, (width,); None for a head with rows of its own."""
        source = self._canonical.config
        if not source.head.tied:
            return None
        factor = np.full(source.width, source.embedding.scale / source.head.scale, np.float32)
        divided = self._inputs.get("head.in")
        return factor if divided is None else np.asarray(factor / divided, np.float32)

    def _row_factor(self, matmul: Linear) -> FloatArray:
        divided = self._outputs.get(matmul.name)
        return np.ones(matmul.rows, np.float32) if divided is None else np.asarray(1 / divided, np.float32)

    def _scaled(self, name: str) -> FloatArray:
        tensor, values, source = self._tensors[name], self._canonical(name), self._canonical.config
        if tensor.kind == "gain" and (divided := self._inputs.get(_reader_of(source, tensor))) is not None:
            return values / divided
        if tensor.kind == "embedding" and source.embedding.scale != 1:
            return values * np.float32(source.embedding.scale)
        matmul = tensor.matmul
        if matmul is None:
            return values
        if matmul.role is Role.HEAD:
            values = values * np.float32(source.head.scale)
        if tensor.kind == "bias":
            return values * self._row_factor(matmul)
        columns = self._inputs.get(matmul.input)
        values = values * self._row_factor(matmul)[:, None]
        return values if columns is None else values * columns


def _reader_of(config: NetworkConfig, gain: Tensor) -> str:
    """The input that is a norm's result; empty for norms of anything else."""
    return next((group[0].input for group in groups(config) if f"{group[0].norm}.weight" == gain.name), "")


def _input_factors(config: NetworkConfig, peaks: ChannelPeaks, canonical: CanonicalWeights) -> dict[str, FloatArray]:
    """By channel, for each input that something before it can be divided for."""
    found: dict[str, FloatArray] = {}
    readers: dict[str, list[Linear]] = {}  # by the norm, whose result two parts may read, or by the input
    for group in groups(config):
        readers.setdefault(group[0].norm or group[0].input, []).extend(group)
    for matmuls in readers.values():
        first = matmuls[0]
        if first.role is Role.HEAD:
            if config.head.norm is not None and config.head.norm.gain:
                weights = np.abs(canonical(first.weight)).max(axis=0)
                share = peaks.peaks[first.input] ** _HEAD_SHARE / np.maximum(weights, 1e-12) ** (1 - _HEAD_SHARE)
                found[first.input] = around_one(share)
        elif first.input in peaks.of_blocks and _can_divide(config, first):
            factors = np.repeat(_factors_of(config, matmuls, peaks.of_blocks[first.input], canonical), BLOCK)
            found |= {matmul.input: factors for matmul in matmuls}
    return found


def _can_divide(config: NetworkConfig, matmul: Linear) -> bool:
    """Whether what this matmul reads can be divided before it, at no cost."""
    assert matmul.layer is not None
    block = config.blocks[matmul.layer]
    if matmul.role is Role.O:
        return block.attention.head_dim % BLOCK == 0
    if matmul.role is Role.DOWN:
        return block.feed_forward.gated
    layer = f"layers.{matmul.layer}"
    norms = {f"{layer}.attention_norm": block.attention_norm, f"{layer}.ffn_norm": block.ffn_norm}
    norm = norms.get(matmul.norm or "")
    return norm is not None and norm.gain


def _factors_of(
    config: NetworkConfig, matmuls: Sequence[Linear], sizes: FloatArray, canonical: CanonicalWeights
) -> FloatArray:
    """Of the blocks of one input."""
    first = matmuls[0]
    energy = sum(np.square(canonical(m.weight)).reshape(m.rows, -1, BLOCK).sum(axis=(0, 2)) for m in matmuls)
    assert first.layer is not None
    a = config.blocks[first.layer].attention
    if first.role is not Role.O:
        return block_factors(sizes, np.asarray(energy))
    # Query heads that share a key head read the same values, which are divided once for all.
    shape = (a.kv_heads, a.heads // a.kv_heads, a.head_dim // BLOCK)
    shared = block_factors(
        sizes.reshape(-1, *shape).max(axis=2).reshape(len(sizes), -1),
        np.asarray(energy).reshape(shape).sum(axis=1).reshape(-1),
    )
    return np.broadcast_to(shared.reshape(shape[0], 1, shape[2]), shape).reshape(-1)


def _output_factors(config: NetworkConfig, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """By row of v and of up: what their results are divided by."""
    found: dict[str, FloatArray] = {}
    for i, block in enumerate(config.blocks):
        matmuls, a = by_role(config, i), block.attention
        if (factor := inputs.get(matmuls[Role.O].input)) is not None:
            of_heads = factor.reshape(a.kv_heads, a.heads // a.kv_heads, a.head_dim)
            found[matmuls[Role.V].name] = of_heads[:, 0].reshape(-1)
        if (factor := inputs.get(matmuls[Role.DOWN].input)) is not None:
            found[matmuls[Role.UP].name] = factor
    return found
