"""The graph of an encoder or a translator in the `pi` profile: its constants, its signatures, and its counts.

`encode_N` reads a text of up to N tokens. A translator has `decode_N` too, for one token of a translation of up to N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.emit.tflite_write import Constant, GraphWriter
from converters.encoders.graphs.ops_pi import DecoderPi, EncoderConstants, EncoderPi
from converters.encoders.network import Config, Stack, TranslatorConfig, linears, tensor_shapes
from converters.encoders.ops_numpy import bucket_of
from converters.encoders.transformer import cross_rows, next_logits, sentence
from converters.network.tensors import Linear, Role
from converters.network.weights import FloatArray, ReadTensor
from converters.ops.counting import CountingWriter, count_graph
from converters.ops.tflite_pi import EmbeddingRows
from converters.ops.tflite_pi_parts import ColumnRange, QuantizedMatmul
from converters.quantize.weights import quantize_rows
from device_runtime.bundle.manifest import ActivationPeak, GraphCounts

__all__ = ["count_encoder", "lengths_of", "write_encoder"]

_LENGTHS = (32, 128)  # tokens; a text is padded to the next of these, or to the context


def lengths_of(context: int) -> tuple[int, ...]:
    """Lengths with signatures of their own, ascending; the last is the context."""
    return (*(length for length in _LENGTHS if length < context), context)


def write_encoder(
    path: Path,
    config: Config,
    read: ReadTensor,
    context: int,
    smoothing: Mapping[int, FloatArray],
    progress: Callable[[float], None],
) -> None:
    """Quantize and write. Each tensor is read once, and not kept."""
    with GraphWriter(path.parent, external=True) as writer:
        constants = _Constants(config, context, read, writer.constant, progress, smoothing).all()
        for length in lengths_of(context):
            _emit(writer, constants, config, length)
        writer.write(path, f"stonechat pi profile, texts of up to {context} tokens")


def count_encoder(config: Config, context: int, smoothing: Mapping[int, FloatArray] | None = None) -> GraphCounts:
    """What the graph consists of. Activations are those of the longest texts: scores grow by the square."""
    shaped = CountingWriter().placeholder
    ones = {name: np.ones(shape, np.float32) for name, shape in tensor_shapes(config).items() if len(shape) == 1}

    def placeholder(values: FloatArray) -> Constant:
        return shaped(values.shape, values.dtype)

    def read(name: str) -> FloatArray:
        return ones[name] if name in ones else np.broadcast_to(np.float32(1), tensor_shapes(config)[name])

    constants = _Constants(config, context, read, placeholder, lambda share: None, smoothing or {}, True).all()
    half = -(-context // 2)
    counts = count_graph(lambda writer, length: _emit(writer, constants, config, length), half)
    peaks = tuple(
        (ActivationPeak(max(line.bytes + 2 * half * line.bytes_per_position for line in lines), 0),)
        for lines in counts.activations
    )
    return replace(counts, activations=peaks)


def _emit(writer: GraphWriter, constants: EncoderConstants, config: Config, length: int) -> None:
    """The signatures of one length."""
    graph = writer.subgraph(f"encode_{length}")
    if not isinstance(config, TranslatorConfig):
        ops = EncoderPi(graph, constants, length)
        ops.finish(sentence(ops, config))
        return
    cross_rows(EncoderPi(graph, constants, length, config.decoder.attention), config)
    step = DecoderPi(writer.subgraph(f"decode_{length}"), constants, config.decoder, length, length)
    step.finish(next_logits(step, config))


class _Constants:
    """Quantizes the weights, to the nearest."""

    def __init__(
        self,
        config: Config,
        context: int,
        read: ReadTensor,
        keep: Callable[[npt.NDArray[Any]], Constant],
        progress: Callable[[float], None],
        smoothing: Mapping[int, FloatArray],
        shapes_only: bool = False,
    ) -> None:
        self._config, self._context, self._read, self._keep = config, context, read, keep
        self._progress, self._smoothing, self._shapes_only = progress, smoothing, shapes_only

    def all(self) -> EncoderConstants:
        """Everything that the signatures share."""
        config = self._config
        groups: dict[int, list[Linear]] = {}
        for matmul in linears(config).values():
            groups.setdefault(matmul.group, []).append(matmul)
        embedding = self._rows("embed.weight")
        tied = isinstance(config, TranslatorConfig) and config.tied
        matmuls: dict[int, QuantizedMatmul] = {}
        for number, group in groups.items():
            shared = embedding if tied and group[0].role is Role.HEAD else None
            matmuls[number] = self._matmul(group, shared)
            self._progress((number + 1) / len(groups))
        gains = {name: self._read(name) for name, shape in tensor_shapes(config).items() if "norm." in name}
        positions: dict[str, _Rows] = {
            s.side: self._rows(f"{s.side}.positions.weight") for s in config.stacks if s.positions
        }
        distances: dict[str, Constant] = {s.side: self._distances(s) for s in config.stacks if s.buckets is not None}
        return EncoderConstants(
            matmuls, embedding.table, {k: v.table for k, v in positions.items()}, distances, gains, self._smoothing
        )

    def _rows(self, name: str) -> _Rows:
        values = self._read(name)
        if self._shapes_only:
            int8, scale = np.broadcast_to(np.int8(1), values.shape), np.ones(len(values), np.float32)
        else:
            (rows,) = quantize_rows(values)
            int8, scale = rows.values, rows.scale
        return _Rows(EmbeddingRows(self._keep(int8), self._keep(scale)), scale)

    def _matmul(self, group: Sequence[Linear], shared: _Rows | None) -> QuantizedMatmul:
        rows, columns = tuple(matmul.rows for matmul in group), group[0].columns
        factors = np.concatenate([np.full(m.rows, self._score_scale(m), np.float32) for m in group])
        bias = None
        if group[0].bias:
            biases = np.concatenate([self._read(f"{matmul.name}.bias") for matmul in group])
            bias = self._keep((biases * factors).astype(np.float32))
        if shared is not None:
            return QuantizedMatmul((ColumnRange(0, columns, shared.table.rows, shared.scale),), bias, rows)
        if self._shapes_only:
            weight: npt.NDArray[np.int8] = np.broadcast_to(np.int8(1), (sum(rows), columns))
            scale = np.ones(sum(rows), np.float32)
        else:
            columns_by = self._smoothing.get(group[0].group, np.ones(columns, np.float32))
            parts = [quantize_rows(self._read(matmul.weight) * columns_by)[0] for matmul in group]
            weight = np.concatenate([part.values for part in parts])
            scale = np.concatenate([part.scale for part in parts])
        return QuantizedMatmul((ColumnRange(0, columns, self._keep(weight), scale * factors),), bias, rows)

    def _score_scale(self, matmul: Linear) -> float:
        """Attention's scale is part of q, at no cost."""
        if matmul.role is not Role.Q:
            return 1.0
        side = matmul.name.partition(".")[0]
        return next(stack.attention.score_scale for stack in self._config.stacks if stack.side == side)

    def _distances(self, stack: Stack) -> Constant:
        """What is added to scores by key - query, (heads, 2 * context - 1)."""
        assert stack.buckets is not None
        found = bucket_of(np.arange(1 - self._context, self._context), stack.buckets, both_ways=not stack.crosses)
        table = self._read(f"{stack.side}.relative.weight")[found]
        return self._keep(np.ascontiguousarray(table.T, np.float32))


class _Rows:
    """A table of rows, and its scales as they are."""

    def __init__(self, table: EmbeddingRows, scale: FloatArray) -> None:
        self.table, self.scale = table, scale
