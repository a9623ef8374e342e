"""Write the `pi` graph: one signature per window of the cache, for one token and for a chunk of many.

The kv_cache of a signature has the size of its window. The runtime starts in the smallest and moves to the
next when it is full, so both time and memory follow the tokens in use and not the capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from converters.flatbuffer import Constant, GraphWriter
from converters.network import NetworkConfig, decoder
from converters.ops_numpy import FloatArray, ReadTensor
from converters.ops_tflite_pi import PiConstants, PiOps, QuantizedMatmul, rope_tables
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
    embedding_divisor: FloatArray | None,
    context: int,
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Quantize the weights and write the graph.

    Args:
        read: smoothed tensors by canonical name; `head.weight` too, even if the head is tied.
        embedding_divisor: (width,), by which the rows of a tied head are divided when they serve as embedding.
        progress: called with the name of each matmul group that is done.
    """
    with GraphWriter(path.parent, external=True) as writer:
        constants = _constants(writer, config, read, embedding_divisor, context, progress)
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
    embedding_divisor: FloatArray | None,
    context: int,
    progress: Callable[[str], None],
) -> PiConstants:
    matmuls: dict[tuple[str, ...], QuantizedMatmul] = {}
    for group in matmul_groups(config):
        matmuls[group] = _quantize_group(writer, config, read, group)
        progress(group[0])
    if config.tied_head:
        head = matmuls[("head",)]
        embedding, embedding_scale = head.weight, writer.constant(head.scale)
    else:
        rows, scale = quantize_rows(read("embed.weight"))
        embedding, embedding_scale = writer.constant(rows), writer.constant(scale)
    progress("embed")
    norms = [f"layers.{i}.{kind}" for i in range(config.layers) for kind in ("attention_norm", "ffn_norm")]
    gains = {name: writer.constant(read(f"{name}.weight")) for name in (*norms, "final_norm")}
    divisor: Constant | None = None
    if config.tied_head and embedding_divisor is not None:
        divisor = writer.constant(1 / embedding_divisor)
    # The last chunk may be padded past the context; its padding needs rows too.
    cos, sin = (writer.constant(table) for table in rope_tables(config, context + PREFILL_TOKENS))
    return PiConstants(matmuls, embedding, embedding_scale, divisor, gains, cos, sin)


def _quantize_group(
    writer: GraphWriter, config: NetworkConfig, read: ReadTensor, group: tuple[str, ...]
) -> QuantizedMatmul:
    weights, scales, biases, rows = [], [], [], []
    for name in group:
        quantized, scale = quantize_rows(read(f"{name}.weight"))
        bias = read(f"{name}.bias") if config.has_bias(name) else np.zeros(len(scale), np.float32)
        if name.endswith(".q"):  # attention's 1 / sqrt(head_dim), at no cost
            scale, bias = scale * np.float32(config.head_dim**-0.5), bias * np.float32(config.head_dim**-0.5)
        weights.append(quantized)
        scales.append(scale)
        biases.append(bias)
        rows.append(len(scale))
    stacked = weights[0] if len(weights) == 1 else np.concatenate(weights)
    has_bias = any(config.has_bias(name) for name in group)
    return QuantizedMatmul(
        writer.constant(stacked),
        np.concatenate(scales),
        writer.constant(np.concatenate(biases)) if has_bias else None,
        tuple(rows),
    )
