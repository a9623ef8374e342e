"""What follows from the position alone, computed for every position.

A graph may make its mask, and say where the cache is written, in any way: what counts is what comes out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.emit.c.lowering.operators import refused, some
from converters.emit.tflite_read import GraphTensor, Operator, SubgraphReader
from device_runtime.errors import GraphError

__all__ = ["PositionValues"]


class PositionValues:
    """The tensors of a graph that its input `position` decides."""

    def __init__(self, graph: SubgraphReader, operators: Sequence[Operator], position: GraphTensor) -> None:
        self._graph, self._position = graph, position
        self._made_by = {op.results[0].index: op for op in operators}
        self._found = {position.index}
        for op in operators:
            operands = [t for t in op.operands if t is not None and not t.constant]
            if operands and all(t.index in self._found for t in operands) and not any(t.variable for t in op.results):
                self._found.update(t.index for t in op.results)

    def __contains__(self, t: object) -> bool:
        """Whether a tensor is one of them."""
        return isinstance(t, GraphTensor) and t.index in self._found

    def at(self, t: GraphTensor, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """What a tensor of the position alone is at each of `positions`: (positions, *shape)."""
        if t.constant:
            return np.broadcast_to(self._graph.values(t), (len(positions), *t.shape))
        if t.index == self._position.index:
            return positions.astype(np.int32)[:, None]
        op = self._made_by[t.index]
        x = [self.at(o, positions) for o in op.operands if o is not None]
        compute: dict[str, Callable[[], Any]] = {
            "CAST": lambda: x[0].astype(np.dtype(t.type)),
            "RESHAPE": lambda: x[0].reshape(len(positions), *t.shape),
            "ADD": lambda: _aligned_ranks(x, np.add),
            "SUB": lambda: _aligned_ranks(x, np.subtract),
            "MUL": lambda: _aligned_ranks(x, np.multiply),
            "MINIMUM": lambda: _aligned_ranks(x, np.minimum),
            "MAXIMUM": lambda: _aligned_ranks(x, np.maximum),
            "CONCATENATION": lambda: np.concatenate(x, axis=1 + op.options.axis if op.options.axis >= 0 else -1),
            "GATHER": lambda: self._graph.values(some(op.operands[0]))[x[1][:, 0]][:, None],
        }
        if op.name not in compute:
            raise refused(op, "it computes with the position, and only a few operators may")
        return np.asarray(compute[op.name]()).reshape(len(positions), *t.shape)

    @functools.cache  # noqa: B019  # lives as long as its owner
    def mask(self, index: int, context: int) -> tuple[int, float]:
        """The window of a mask, which is held against it at every position, and the highest value outside of it."""
        mask, positions = self._graph.tensor(index), np.arange(context)
        rows = self.at(mask, positions).reshape(context, -1)
        window = int((rows[-1] == 0).sum())
        age = positions[:, None] - positions[None, :]
        visible = (age >= 0) & (age < window)
        if rows.shape[1] != context or not window or rows[visible].any():
            raise GraphError(f"{mask.name} is no mask of the newest positions; the engine has no call for another one.")
        return window, float(rows[~visible].max(initial=-np.inf))


def _aligned_ranks(x: list[npt.NDArray[Any]], compute: Callable[[Any, Any], Any]) -> Any:
    """Broadcast after the first axis, which is the position."""
    rank = max(v.ndim for v in x)
    a, b = (v.reshape(len(v), *[1] * (rank - v.ndim), *v.shape[1:]) for v in x)
    return compute(a, b)
