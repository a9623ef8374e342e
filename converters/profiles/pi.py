"""The `pi` profile: one signature, for any number of tokens and any size of the kv_cache.

The runtime starts with the smallest window of the cache and moves to the next when it is full, so both time and memory
follow the tokens in use and not the capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from converters.emit.tflite_write import Constant, GraphWriter
from converters.network.config import NetworkConfig
from converters.network.decoder import decoder
from converters.network.tensors import Linear, Role, groups
from converters.network.weights import FloatArray
from converters.ops.counting import CountingWriter, count_graph
from converters.ops.tflite import rope_tables
from converters.ops.tflite_pi import CacheConstants, EmbeddingRows, PiConstants, PiOps
from converters.ops.tflite_pi_parts import BlockedColumns, ColumnRange, QuantizedMatmul
from converters.profiles.profile import (
    GraphJob,
    Profile,
    Written,
    counted_network,
    counted_positions,
    shaped_gains,
    shaped_ropes,
    unfolded_gains,
)
from converters.quantize.blocks import BLOCK, BlockRows, packed_int4, quantize_blocks
from converters.quantize.cache_ranges import CacheRange, stored_cache
from converters.quantize.observers import observe_windows
from converters.quantize.own_grid import GridWeights
from converters.quantize.params import SMALL_FFN_WIDTH
from converters.quantize.rotation import RotatedWeights
from converters.quantize.weights import Hessian, quantize_rows
from device_runtime.bundle.manifest import DECODER, GraphCounts
from device_runtime.machine.memory import PREFILL_TOKENS, SEVERAL_TOKENS, cache_windows

__all__ = ["PiProfile", "sorted_cuts"]


class PiProfile(Profile):
    """int8 or int4 weights, activations quantized on the fly by the kernel, an int8 kv_cache in windows.

    With 4 bits the embedding and the head keep 8: they are looked up and multiplied row by row, and rows of a
    vocabulary have little in common.
    """

    name = "pi"
    default_context = 1024
    calibration_window = 256
    calibration_tokens = 4096
    kv_cache_element_bytes = 1
    turns_head = True
    supports = PiOps.SUPPORTS

    def __init__(self, weight_bits: Literal[8, 4] = 8) -> None:
        self.weight_bits = weight_bits

    def windows(self, context: int) -> tuple[int, ...]:
        """As in `Profile`."""
        return cache_windows(context)

    def prefill_tokens(self, context: int) -> int:
        """As in `Profile`."""
        return min(PREFILL_TOKENS, self.windows(context)[0])

    def several_tokens(self, context: int) -> int:
        """As in `Profile`. How much longer they take than one depends on the processor, see `KernelFamily`."""
        return min(SEVERAL_TOKENS, self.windows(context)[0])

    def write(self, path: Path, job: GraphJob) -> Written:
        """As in `Profile`."""
        config = job.weights.config
        with GraphWriter(path.parent, external=True) as writer:
            constants = _Constants(writer, job, self.weight_bits).all()
            window = cache_windows(job.context)[0]
            tokens = self.prefill_tokens(job.context)
            ops = PiOps(writer.subgraph(DECODER), constants, config, tokens, window, job.context)
            ops.finish(decoder(ops, config))
            writer.write(path, f"stonechat pi profile, context {job.context}")
        return Written(_count(constants, config, job.context), stored_cache(job.prefix, job.cache_ranges))

    def estimate(self, config: NetworkConfig, context: int, *, fast: bool = False) -> GraphCounts:
        """As in `Profile`; nothing depends on `fast`."""
        return _count(_placeholders(config, context, self.weight_bits), config, context)


def sorted_cuts(width: int) -> tuple[int, ...]:
    """Where the sorted feed-forward channels are cut: the largest 2/24, the next 6/24, then 16.

    Divergence from float of SmolLM2, rounded to the nearest: 0.0107 uncut, 0.0070 with one cut (at 18/24), 0.0063 with
    these, 0.0062 with four; and each range costs three operators and a scale for each row.
    """
    if width < SMALL_FFN_WIDTH:
        return ()
    return tuple(sorted({width * share // 24 // 32 * 32 for share in (16, 22)}))  # two may fall on one column


class _Constants:
    """Quantizes the weights; rounding errors are compensated for what calibration sees."""

    def __init__(self, writer: GraphWriter, job: GraphJob, weight_bits: int) -> None:
        self._writer, self._job, self._weights = writer, job, job.weights
        self._grid = job.weights if isinstance(job.weights, GridWeights) else None
        self._int4 = weight_bits == 4
        self._config: NetworkConfig = job.weights.config
        self._matmuls: dict[int, QuantizedMatmul] = {}
        self._by_input = {group[0].input: group for group in groups(self._config)}

    def all(self) -> PiConstants:
        """Everything that the signatures share."""
        job, config, writer = self._job, self._config, self._writer
        if not job.fast and self._grid is None:  # one layer's inputs are in memory at a time
            observe_windows(config, self._weights, job.windows, job.prefix, self._quantize_as_read)
        for group in groups(config):
            if group[0].group not in self._matmuls:
                self._quantize(group, None)
        mapped = self._weights.embedding_map
        if config.head.tied:
            ranges = self._matmuls[groups(config)[-1][0].group].ranges
            assert not isinstance(ranges, BlockedColumns)  # the head keeps 8 bits
            head = ranges[0]
            embedding = EmbeddingRows(head.weight, writer.constant(head.scale))
        else:
            embedding = self._rows(self._weights("embed.weight"))
        positions = self._rows(self._weights("positions.weight")) if config.embedding.positions else None
        job.progress(1.0)
        embedding_map = None if mapped is None else writer.constant(np.ascontiguousarray(mapped.T))  # (out, in)
        ropes = {}
        for rope in config.ropes:
            cos, sin = (writer.constant(table) for table in rope_tables(rope, job.context))
            ropes[rope] = (cos, sin)
        basis = writer.constant(self._weights("head_basis.weight")) if config.head.turned else None
        norms = _norms(self._weights, job.cache_ranges)
        cache = tuple(CacheConstants(r.key_offset[:, None], r.key_scale, r.value_scale) for r in job.cache_ranges)
        return PiConstants(self._matmuls, embedding, embedding_map, positions, ropes, norms, cache, basis)

    def _rows(self, table: FloatArray) -> EmbeddingRows:
        (rows,) = quantize_rows(table)
        return EmbeddingRows(self._writer.constant(rows.values), self._writer.constant(rows.scale))

    def _quantize_as_read(self, name: str, values: FloatArray) -> None:
        group = self._by_input.get(name)
        # The rows of a tied head are embeddings too, for which compensation would only add error.
        if group is not None and not (group[0].role is Role.HEAD and self._config.head.tied):
            self._quantize(group, Hessian(values))

    def _quantize(self, group: tuple[Linear, ...], hessian: Hessian | None) -> None:
        self._matmuls[group[0].group] = self._quantize_group(group, hessian)
        self._job.progress(len(self._matmuls) / (len(self._by_input) + 1))

    def _quantize_group(self, group: Sequence[Linear], hessian: Hessian | None) -> QuantizedMatmul:
        if self._int4 and (blocks := self._blocks(group, hessian)) is not None:
            return QuantizedMatmul(self._blocked(blocks), self._bias(group), tuple(matmul.rows for matmul in group))
        cuts = sorted_cuts(group[0].columns) if group[0].role is Role.DOWN else ()
        parts = [quantize_rows(self._weights(matmul.weight), cuts, hessian) for matmul in group]
        factors = [self._row_factors(matmul) for matmul in group]
        ranges, start = [], 0
        for same_columns in zip(*parts, strict=True):
            weight = same_columns[0].values
            if len(group) > 1:
                weight = np.concatenate([part.values for part in same_columns])
            scale = np.concatenate([part.scale * factor for part, factor in zip(same_columns, factors, strict=True)])
            ranges.append(ColumnRange(start, weight.shape[1], self._writer.constant(weight), scale))
            start += weight.shape[1]
        return QuantizedMatmul(tuple(ranges), self._bias(group), tuple(matmul.rows for matmul in group))

    def _blocks(self, group: Sequence[Linear], hessian: Hessian | None) -> list[BlockRows] | None:
        """int4 weights of each matmul; None where the group keeps 8 bits."""
        if group[0].role is Role.HEAD or group[0].columns % BLOCK:
            return None
        if self._grid is None:
            return [
                quantize_blocks(self._weights(matmul.weight) * self._row_factors(matmul)[:, None], BLOCK, hessian)
                for matmul in group
            ]
        found = [self._grid.blocks(matmul, self._row_factors(matmul)) for matmul in group]
        return [rows for rows in found if rows is not None] if None not in found else None

    def _blocked(self, blocks: Sequence[BlockRows]) -> BlockedColumns:
        weight = self._writer.int4_constant(packed_int4(np.concatenate([rows.values for rows in blocks])))
        scale = self._writer.constant(np.concatenate([rows.scale for rows in blocks]).astype(np.float16))
        offsets = np.concatenate([rows.offset for rows in blocks if rows.offset is not None])
        (offset,) = quantize_rows(offsets * np.float32(BLOCK))  # they are multiplied with means, not with sums
        return BlockedColumns(weight, scale, self._writer.constant(offset.values), offset.scale)

    def _bias(self, group: Sequence[Linear]) -> Constant | None:
        if not _has_bias(group):
            return None
        biases = []
        for matmul in group:
            bias = np.zeros(matmul.rows, np.float32)
            if matmul.bias:
                bias = self._weights(f"{matmul.name}.bias") * self._row_factors(matmul)
            biases.append(bias + self._cache_bias(matmul))
        return self._writer.constant(np.concatenate(biases))

    def _cache_bias(self, matmul: Linear) -> FloatArray:
        """v gives values without what is taken away from all of them, and o gives it back."""
        if matmul.layer is None or matmul.role not in (Role.V, Role.O):
            return np.zeros(matmul.rows, np.float32)
        offset = self._job.cache_ranges[matmul.layer].value_offset  # (kv_heads, head_dim)
        if matmul.role is Role.V:
            return -offset.reshape(-1)
        attention = self._config.blocks[matmul.layer].attention
        of_heads = np.repeat(offset, attention.heads // attention.kv_heads, axis=0)
        return np.asarray(self._weights(matmul.weight) @ of_heads.reshape(-1))

    def _row_factors(self, matmul: Linear) -> FloatArray:
        """What the rows of a matmul are multiplied by, at no cost: attention's 1 / sqrt(head_dim) in q, what keys are
        divided by in k, and in q the other way. Where q and k are normed, that is part of the norms' gains."""
        ones = np.ones(matmul.rows, np.float32)
        if matmul.layer is None or matmul.role not in (Role.Q, Role.K):
            return ones
        attention = self._config.blocks[matmul.layer].attention
        if attention.qk_norm:
            return ones
        factors = self._job.cache_ranges[matmul.layer].key_factors  # (kv_heads, head_dim)
        if matmul.role is Role.K:
            return ones / factors.reshape(-1)
        of_heads = np.repeat(factors, attention.heads // attention.kv_heads, axis=0)
        return of_heads.reshape(-1) * np.float32(attention.score_scale)


def _has_bias(group: Sequence[Linear]) -> bool:
    """v and o always have one, for what is taken away from the values of the kv_cache."""
    return any(matmul.bias or matmul.role in (Role.V, Role.O) for matmul in group)


def _count(constants: PiConstants, config: NetworkConfig, context: int) -> GraphCounts:
    config = counted_network(config, context)

    def emit(writer: GraphWriter, window: int) -> None:
        tokens = min(PREFILL_TOKENS, context)
        ops = PiOps(writer.subgraph(DECODER), constants, config, tokens, window, context)
        ops.finish(decoder(ops, config))

    return count_graph(emit, counted_positions(config, context))


def _placeholders(config: NetworkConfig, context: int, weight_bits: int) -> PiConstants:
    """Constants of which only the shapes are known."""
    shaped = CountingWriter().placeholder
    matmuls = {}
    for group in groups(config):
        rows, columns = tuple(matmul.rows for matmul in group), group[0].columns
        cuts = sorted_cuts(columns) if group[0].role is Role.DOWN else ()
        ranges: tuple[ColumnRange, ...] | BlockedColumns = tuple(
            ColumnRange(start, stop - start, shaped((sum(rows), stop - start), np.int8), np.ones(sum(rows), np.float32))
            for start, stop in pairwise((0, *cuts, columns))
        )
        if weight_bits == 4 and group[0].role is not Role.HEAD and columns % BLOCK == 0:
            ranges = _blocked_placeholder(shaped, sum(rows), columns)
        bias = shaped((sum(rows),), np.float32) if _has_bias(group) else None
        matmuls[group[0].group] = QuantizedMatmul(ranges, bias, rows)
    of_head = matmuls[groups(config)[-1][0].group].ranges
    assert not isinstance(of_head, BlockedColumns)
    head = of_head[0].weight
    table = head if config.head.tied else shaped((config.vocabulary, config.width), np.int8)
    embedding = EmbeddingRows(table, shaped((config.vocabulary,), np.float32))
    mapped = shaped((config.width, config.width), np.float32) if config.head.tied else None
    count, positions = config.embedding.positions, None
    if count:
        positions = EmbeddingRows(shaped((count, config.width), np.int8), shaped((count,), np.float32))
    basis = shaped((config.width, config.width), np.float32) if config.head.turned else None
    return PiConstants(
        matmuls,
        embedding,
        mapped,
        positions,
        shaped_ropes(config, context, shaped),
        shaped_gains(config),
        tuple(
            CacheConstants(np.zeros((block.attention.kv_heads, 1, block.attention.head_dim), np.float32), 1, 1)
            for block in config.blocks
        ),
        basis,
    )


def _blocked_placeholder(
    shaped: Callable[[tuple[int, ...], npt.DTypeLike], Constant], rows: int, columns: int
) -> BlockedColumns:
    per_block = (rows, columns // BLOCK)
    weight = replace(shaped((rows, columns), np.int8), int4=True)
    return BlockedColumns(weight, shaped(per_block, np.float16), shaped(per_block, np.int8), np.ones(rows, np.float32))


def _norms(weights: RotatedWeights | GridWeights, ranges: Sequence[CacheRange]) -> dict[str, FloatArray]:
    """Gains that are not folded; those of queries take in attention's scale, and what keys are divided by."""
    gains = unfolded_gains(weights)
    for i, (block, found) in enumerate(zip(weights.config.blocks, ranges, strict=True)):
        queries, keys = f"layers.{i}.q_norm.weight", f"layers.{i}.k_norm.weight"
        if queries in gains:
            factors = found.key_factors[0]  # the same for all heads
            gains[queries] = gains[queries] * (factors * np.float32(block.attention.score_scale))
            gains[keys] = gains[keys] / factors
    return gains
