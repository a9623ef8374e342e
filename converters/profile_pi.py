"""Write the `pi` graph: one signature per window of the cache, for one token and for a chunk of many.

The kv_cache of a signature has the size of its window. The runtime starts in the smallest and moves to the
next when it is full, so both time and memory follow the tokens in use and not the capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converters.flatbuffer import GraphWriter
from converters.network import NetworkConfig, decoder
from converters.ops_numpy import FloatArray, ReadTensor
from converters.ops_tflite_pi import ColumnRange, PiConstants, PiOps, QuantizedMatmul, rope_tables
from converters.quantize.smoothing import matmul_groups
from converters.quantize.weights import quantize_rows

__all__ = ["PREFILL_TOKENS", "cache_windows", "write_pi"]

PREFILL_TOKENS = 64  # measured best of 32, 64 and 128: per token, and in the memory of one pass
_SMALLEST_WINDOW = 256  # below this, attention is a small part of a step


def cache_windows(context: int) -> tuple[int, ...]:
    """256, 1,024, 4,096 … up to the context, which is always the last."""
    windows = []
    window = _SMALLEST_WINDOW
    while window < context:
        windows.append(window)
        window *= 4
    return (*windows, context)


def write_pi(
    path: Path,
    config: NetworkConfig,
    read: ReadTensor,
    embedding_map: FloatArray | None,
    context: int,
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Quantize the weights and write the graph.

    Args:
        read: rotated tensors by canonical name, with norm gains of 1; `head.weight` too, even if the head is tied.
        embedding_map: (width, width), which takes a row of a tied head to that token's embedding.
        progress: called with the name of each matmul group that is done.
    """
    with GraphWriter(path.parent, external=True) as writer:
        constants = _constants(writer, config, read, embedding_map, context, progress)
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
    progress: Callable[[str], None],
) -> PiConstants:
    matmuls: dict[tuple[str, ...], QuantizedMatmul] = {}
    for group in matmul_groups(config):
        matmuls[group] = _quantize_group(writer, config, read, group)
        progress(group[0])
    if config.tied_head:
        head = matmuls[("head",)]
        embedding, embedding_scale = head.ranges[0].weight, writer.constant(head.ranges[0].scale)
    else:
        rows, scale = quantize_rows(read("embed.weight"))
        embedding, embedding_scale = writer.constant(rows), writer.constant(scale)
    progress("embed")
    mapped = writer.constant(embedding_map) if config.tied_head and embedding_map is not None else None
    # The last chunk may be padded past the context; its padding needs rows too.
    cos, sin = (writer.constant(table) for table in rope_tables(config, context + PREFILL_TOKENS))
    return PiConstants(matmuls, embedding, embedding_scale, mapped, cos, sin)


def _quantize_group(
    writer: GraphWriter, config: NetworkConfig, read: ReadTensor, group: tuple[str, ...]
) -> QuantizedMatmul:
    cuts = _sorted_cuts(config.ffn_width) if group[0].endswith(".down") else ()
    parts: list[list[tuple[npt.NDArray[np.int8], FloatArray]]] = []  # by matmul, then by range of columns
    biases = []
    for name in group:
        # Attention's 1 / sqrt(head_dim) is part of q, at no cost.
        factor = np.float32(config.head_dim**-0.5 if name.endswith(".q") else 1)
        columns = np.split(read(f"{name}.weight"), cuts, axis=1)
        parts.append([(quantized, scale * factor) for quantized, scale in map(quantize_rows, columns)])
        rows = len(columns[0])
        biases.append(read(f"{name}.bias") * factor if config.has_bias(name) else np.zeros(rows, np.float32))
    ranges, start = [], 0
    for same_columns in zip(*parts, strict=True):
        weight = same_columns[0][0] if len(group) == 1 else np.concatenate([w for w, _ in same_columns])
        scale = np.concatenate([s for _, s in same_columns])
        ranges.append(ColumnRange(start, weight.shape[1], writer.constant(weight), scale))
        start += weight.shape[1]
    has_bias = any(config.has_bias(name) for name in group)
    bias = writer.constant(np.concatenate(biases)) if has_bias else None
    return QuantizedMatmul(tuple(ranges), bias, tuple(map(len, biases)))


def _sorted_cuts(width: int) -> tuple[int, ...]:
    """Where the sorted feed-forward channels are cut: the largest 1/24, the next 7/24, and the rest.

    Of the cuts tried on SmolLM2 these left the smallest error; each range costs two small operators.
    """
    if width < 256:
        return ()
    return tuple(width * share // 24 // 32 * 32 for share in (16, 23))
