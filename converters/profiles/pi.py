"""Write the `pi` graph: one signature per window of the cache, for one token and for a chunk of many.

The kv_cache of a signature has the size of its window. The runtime starts in the smallest and moves to the
next when it is full, so both time and memory follow the tokens in use and not the capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from converters.emit.tflite_write import GraphWriter
from converters.network.decoder import NetworkConfig, decoder, matmul_groups
from converters.ops.numpy import FloatArray, Observe, ReadTensor
from converters.ops.tflite_pi import ColumnRange, PiConstants, PiOps, QuantizedMatmul, rope_tables
from converters.quantize.weights import InputProducts, quantize_rows
from device_runtime.machine.memory import PREFILL_TOKENS, cache_windows

__all__ = ["write_pi"]


def write_pi(
    path: Path,
    config: NetworkConfig,
    read: ReadTensor,
    embedding_map: FloatArray | None,
    context: int,
    calibrate: Callable[[Observe], None] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Quantize the weights and write the graph.

    Args:
        read: rotated tensors by canonical name, with norm gains of 1; `head.weight` too, even if the head is tied.
        embedding_map: (width, width), which takes a row of a tied head to that token's embedding.
        calibrate: reads calibration text with the same `read` and an observer; rounding errors are then compensated
            for what it saw. None rounds to the nearest.
        progress: called with the name of each matmul group that is done.
    """
    with GraphWriter(path.parent, external=True) as writer:
        constants = _constants(writer, config, read, embedding_map, context, calibrate, progress)
        for window in cache_windows(context):
            for tokens in (1, min(PREFILL_TOKENS, window)):
                name = f"decode_{window}" if tokens == 1 else f"prefill_{window}"
                ops = PiOps(writer.subgraph(name), constants, config, tokens, window)
                ops.finish(decoder(ops, config))
        writer.write(path, f"stonechat pi profile, context {context}")


def _constants(
    writer: GraphWriter,
    config: NetworkConfig,
    read: ReadTensor,
    embedding_map: FloatArray | None,
    context: int,
    calibrate: Callable[[Observe], None] | None,
    progress: Callable[[str], None],
) -> PiConstants:
    groups = {group[0]: group for group in matmul_groups(config)}
    matmuls: dict[tuple[str, ...], QuantizedMatmul] = {}

    def quantize(first: str, products: InputProducts | None) -> None:
        matmuls[groups[first]] = _quantize_group(writer, config, read, groups[first], products)
        progress(first)

    def quantize_as_read(name: str, values: FloatArray) -> None:
        first = name.removesuffix(".in")
        # The rows of a tied head are embeddings too, for which compensation would only add error.
        if first != name and not (first == "head" and config.tied_head):
            quantize(first, InputProducts(values))

    if calibrate is not None:
        calibrate(quantize_as_read)  # one layer's inputs are in memory at a time
    for first, group in groups.items():
        if group not in matmuls:
            quantize(first, None)
    if config.tied_head:
        head = matmuls[("head",)]
        embedding, embedding_scale = head.ranges[0].weight, writer.constant(head.ranges[0].scale)
    else:
        (rows,) = quantize_rows(read("embed.weight"))
        embedding, embedding_scale = writer.constant(rows.values), writer.constant(rows.scale)
    progress("embed")
    mapped = writer.constant(embedding_map) if config.tied_head and embedding_map is not None else None
    # The last chunk may be padded past the context; its padding needs rows too.
    cos, sin = (writer.constant(table) for table in rope_tables(config, context + PREFILL_TOKENS))
    return PiConstants(matmuls, embedding, embedding_scale, mapped, cos, sin)


def _quantize_group(
    writer: GraphWriter,
    config: NetworkConfig,
    read: ReadTensor,
    group: tuple[str, ...],
    products: InputProducts | None,
) -> QuantizedMatmul:
    cuts = _sorted_cuts(config.ffn_width) if group[0].endswith(".down") else ()
    parts = [quantize_rows(read(f"{name}.weight"), cuts, products) for name in group]
    # Attention's 1 / sqrt(head_dim) is part of q, at no cost.
    factors = [np.float32(config.head_dim**-0.5 if name.endswith(".q") else 1) for name in group]
    ranges, start = [], 0
    for same_columns in zip(*parts, strict=True):
        weight = np.concatenate([part.values for part in same_columns]) if len(group) > 1 else same_columns[0].values
        scale = np.concatenate([part.scale * factor for part, factor in zip(same_columns, factors, strict=True)])
        ranges.append(ColumnRange(start, weight.shape[1], writer.constant(weight), scale))
        start += weight.shape[1]
    rows = tuple(len(part[0].scale) for part in parts)
    bias = None
    if any(config.has_bias(name) for name in group):
        biases = [
            read(f"{name}.bias") * factor if config.has_bias(name) else np.zeros(count, np.float32)
            for name, factor, count in zip(group, factors, rows, strict=True)
        ]
        bias = writer.constant(np.concatenate(biases))
    return QuantizedMatmul(tuple(ranges), bias, rows)


def _sorted_cuts(width: int) -> tuple[int, ...]:
    """Where the sorted feed-forward channels are cut: the largest 1/24, the next 2/24, then 5, 8 and 8.

    Of the cuts tried on SmolLM2 these left the smallest error; each range costs two small operators.
    """
    if width < 256:
        return ()
    return tuple(sorted({width * share // 24 // 32 * 32 for share in (8, 16, 21, 23)}))  # two may fall on one column
