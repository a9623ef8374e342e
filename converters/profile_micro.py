"""Write the `micro` graph: one signature, `decode`, whose kv_cache lies inside the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from converters.flatbuffer import Constant, GraphWriter
from converters.network import NetworkConfig, decoder
from converters.ops_numpy import FloatArray, KvCache, ReadTensor
from converters.ops_tflite import rope_tables
from converters.ops_tflite_micro import MicroConstants, MicroMatmul, MicroOps
from converters.quantize.ranges import Ranges, calibrate
from converters.quantize.smoothing import matmul_groups
from converters.quantize.weights import quantize_rows

__all__ = ["calibrate", "write_micro"]


def write_micro(
    path: Path,
    config: NetworkConfig,
    read: ReadTensor,
    prefix: KvCache,
    ranges: Ranges,
    context: int,
    embedding_divisor: FloatArray | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Quantize the weights and write the graph.

    Args:
        read: smoothed tensors by canonical name; `head.weight` too, even if the head is tied.
        prefix: keys and values of the first positions, smoothed like `read`; empty for none.
        ranges: from `calibrate`, of the same tensors.
        context: positions that the kv_cache holds, those of the prefix included.
        embedding_divisor: (width,), by which the rows of a tied head are divided when they serve as embedding.
        progress: called with the name of each matmul group that is done.
    """
    with GraphWriter(path.parent, external=False) as writer:
        constants = _constants(writer, config, read, prefix, context, embedding_divisor, progress)
        ops = MicroOps(writer.subgraph("decode"), constants, config, ranges, context)
        ops.finish(decoder(ops, config))
        writer.write(path, f"stonechat micro profile, context {context}")


def _constants(
    writer: GraphWriter,
    config: NetworkConfig,
    read: ReadTensor,
    prefix: KvCache,
    context: int,
    embedding_divisor: FloatArray | None,
    progress: Callable[[str], None],
) -> MicroConstants:
    matmuls: dict[str, MicroMatmul] = {}
    for group in matmul_groups(config):
        for name in group:
            matmuls[name] = _quantize_matmul(writer, config, read, name)
        progress(group[0])
    factor: Constant | None = None
    if config.tied_head:
        embedding, embedding_scale = matmuls["head"].weight, writer.constant(matmuls["head"].scale)
        if embedding_divisor is not None:
            factor = writer.constant(1 / embedding_divisor)
    else:
        (rows,) = quantize_rows(read("embed.weight"))
        embedding, embedding_scale = writer.constant(rows.values), writer.constant(rows.scale)
    progress("embed")
    norms = [f"layers.{i}.{kind}" for i in range(config.layers) for kind in ("attention_norm", "ffn_norm")]
    gains = {name: writer.constant(read(f"{name}.weight")) for name in (*norms, "final_norm")}
    cos, sin = (writer.constant(table) for table in rope_tables(config, context))
    return MicroConstants(matmuls, embedding, embedding_scale, factor, gains, cos, sin, prefix)


def _quantize_matmul(writer: GraphWriter, config: NetworkConfig, read: ReadTensor, name: str) -> MicroMatmul:
    (rows,) = quantize_rows(read(f"{name}.weight"))
    quantized, scale = rows.values, rows.scale
    bias = read(f"{name}.bias") if config.has_bias(name) else None
    if name.endswith(".q"):  # attention's 1 / sqrt(head_dim), at no cost
        factor = np.float32(config.head_dim**-0.5)
        scale = scale * factor
        bias = None if bias is None else bias * factor
    # In blocks of rows: |weight| in 32 bits is four times the weight.
    blocks = (quantized[start : start + 4096] for start in range(0, len(quantized), 4096))
    largest_sum = max(int(np.abs(block.astype(np.int32)).sum(axis=1).max()) for block in blocks)
    return MicroMatmul(writer.constant(quantized), scale, bias, largest_sum)
