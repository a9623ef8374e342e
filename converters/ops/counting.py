"""Counts of a graph, by emitting it without writing it: what a manifest says, and what memory is computed from.

A profile emits all signatures of one kv_cache window, once with few positions and once with twice as many. What differs
grows with the positions; the rest does not. Weights may be real constants or placeholders of their shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, GraphWriter, Subgraph
from device_runtime.bundle.manifest import ActivationPeak, GraphCounts

__all__ = ["CountingWriter", "count_graph"]

_ALIGNMENT = 16  # bytes, of each activation in an arena
_OWN = 1 << 40  # buffers of this writer are numbered from here, apart from those of constants that another one made
_BITS = {
    schema.TensorType.FLOAT32: 32,
    schema.TensorType.FLOAT16: 16,
    schema.TensorType.INT32: 32,
    schema.TensorType.INT8: 8,
    schema.TensorType.INT4: 4,
    schema.TensorType.INT16: 16,
    schema.TensorType.INT64: 64,
    schema.TensorType.BOOL: 8,
}


class CountingWriter(GraphWriter):
    """Takes a graph as a `GraphWriter` does, and keeps no constant's bytes. It cannot be written."""

    def __init__(self) -> None:
        super().__init__(Path(), external=False)
        self._count = 0

    def constant(self, value: npt.NDArray[Any]) -> Constant:
        """As `GraphWriter.constant`: small equal values share a buffer."""
        key = (value.tobytes(), value.dtype.str) if value.nbytes <= 4096 else None
        if key is None or key not in self._small:
            made = self.placeholder(value.shape, value.dtype)
            if key is None:
                return made
            self._small[key] = made.buffer
        return Constant(self._small[key], value.shape, value.dtype)

    def placeholder(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Constant:
        """A constant of which only the shape is known."""
        self._count += 1
        return Constant(_OWN + self._count, shape, np.dtype(dtype))

    @property
    def graphs(self) -> list[Subgraph]:
        """The signatures so far."""
        return self._subgraphs


def count_graph(emit: Callable[[GraphWriter, int], None], positions: int) -> GraphCounts:
    """Count the signatures of one kv_cache window.

    Args:
        emit: adds them to a writer, for a window of this many positions.
        positions: of the smaller of the two windows that are compared.
    """
    small, large = CountingWriter(), CountingWriter()
    emit(small, positions)
    emit(large, 2 * positions)
    graphs = small.graphs
    matmuls, scales, tables, others = _constants(graphs)
    lookups = {k: v for k, v in tables.items() if k not in matmuls}
    # Tables of float rows have one for each position; rows of integers are embeddings, single floats their scales.
    angles = [t for t in lookups.values() if _is_float(t) and len(t.shape) == 2]
    per_position = sum(int(t.shape[1]) * _BITS[t.type] // 8 for t in angles)
    embeddings = sum(_bytes(t) for t in lookups.values()) - sum(map(_bytes, angles))
    *_, larger = _constants(large.graphs)
    constants, more = (sum(map(_bytes, found.values())) for found in (others, larger))
    grows = (more - constants) // positions
    return GraphCounts(
        signatures=len(graphs),
        operators=sum(len(graph.operators) for graph in graphs),
        tensors=sum(len(graph.tensors) for graph in graphs),
        rows=sum(int(t.shape[0]) for t in matmuls.values()),
        matmul_bytes=sum(map(_bytes, (*matmuls.values(), *scales.values()))),
        largest_matmul_bytes=max(map(_bytes, matmuls.values())),
        embedding_bytes=embeddings,
        constant_bytes_per_position=per_position + grows,
        kv_cache_bytes_per_position=(_cache(large.graphs[:1]) - _cache(graphs[:1])) // positions,
        activations=tuple(_peaks(one, two, positions) for one, two in zip(graphs, large.graphs, strict=True)),
    )


def _constants(graphs: list[Subgraph]) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Constants by their buffer: weights of matmuls, scales of their blocks, tables that are looked up, and others."""
    matmuls: dict[int, Any] = {}
    of_blocks: dict[int, Any] = {}
    tables: dict[int, Any] = {}
    others: dict[int, Any] = {}
    for graph in graphs:
        for code, operator in graph.coded_operators:
            for place, index in enumerate(operator.inputs):
                tensor = graph.tensors[index]
                if index < 0 or not tensor.buffer:
                    continue
                if code == schema.BuiltinOperator.FULLY_CONNECTED and place == 1:
                    matmuls[tensor.buffer] = tensor
                    details = None if tensor.quantization is None else tensor.quantization.details
                    if details is not None:  # scales of blocks are read with the weights
                        scales = graph.tensors[details.scales]
                        of_blocks[scales.buffer] = scales
                elif code == schema.BuiltinOperator.GATHER and place == 0:
                    tables[tensor.buffer] = tensor
                else:
                    others[tensor.buffer] = tensor
    return matmuls, of_blocks, tables, others


def _peaks(small: Subgraph, large: Subgraph, positions: int) -> tuple[ActivationPeak, ...]:
    """What activations take at their most, as lines over the positions; none is below another everywhere."""
    found: set[tuple[int, int]] = set()
    for one, two in zip(_alive(small), _alive(large), strict=True):
        slope = (two - one) // positions
        found.add((one - slope * positions, slope))
    kept: list[tuple[int, int]] = []
    for line in sorted(found, key=lambda line: (-line[1], -line[0])):
        if not kept or line[0] > max(fixed for fixed, _ in kept):
            kept.append(line)
    return tuple(ActivationPeak(fixed, slope) for fixed, slope in kept)


def _alive(graph: Subgraph) -> Iterator[int]:
    """For each operator, the bytes of all activations that are alive while it runs."""
    first: dict[int, int] = {t.index: 0 for t in graph.inputs.values()}
    last: dict[int, int] = {t.index: len(graph.operators) - 1 for t in graph.outputs.values()}
    for step, operator in enumerate(graph.operators):
        for index in operator.outputs:
            first.setdefault(int(index), step)
            last.setdefault(int(index), step)
        for index in operator.inputs:
            if index >= 0 and int(index) in first:
                last[int(index)] = max(step, last.get(int(index), step))
    changes = [0] * (len(graph.operators) + 1)
    caches = {t.index for t in graph.inputs.values() if len(t.shape) == 4}
    updated = {t.index for t in graph.outputs.values() if len(t.shape) == 4}
    for index, start in first.items():
        tensor = graph.tensors[index]
        if tensor.buffer or tensor.isVariable or index in caches or index in updated:
            continue
        size = -(-_bytes(tensor) // _ALIGNMENT) * _ALIGNMENT
        changes[start] += size
        changes[last.get(index, start) + 1] -= size
    total = 0
    for change in changes[:-1]:
        total += change
        yield total


def _cache(graphs: list[Subgraph]) -> int:
    """Bytes of the kv_cache: variables, or inputs of four dimensions."""
    total = 0
    for graph in graphs:
        total += sum(_bytes(t) for t in graph.tensors if t.isVariable)
        total += sum(_bytes(graph.tensors[t.index]) for t in graph.inputs.values() if len(t.shape) == 4)
    return total


def _is_float(tensor: Any) -> bool:
    return bool(tensor.type == schema.TensorType.FLOAT32)


def _bytes(tensor: Any) -> int:
    return math.prod(int(n) for n in tensor.shape) * _BITS[tensor.type] // 8
