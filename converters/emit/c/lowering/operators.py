"""Small questions about operators of a graph, and the error for one that the engine cannot take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.emit.c.constants import packed_multiplier
from converters.emit.tflite_read import GraphTensor, Operator
from device_runtime.errors import GraphError

__all__ = ["is_contiguous", "product_scale", "refused", "require_plain", "scale_of", "some", "tensor_scale"]


def some(t: GraphTensor | None) -> GraphTensor:
    """An operand that has to be there."""
    if t is None:
        raise GraphError("An operator lacks an operand that the engine needs; the graph is damaged.")
    return t


def scale_of(t: GraphTensor) -> float:
    """The scale of an activation."""
    if t.grid is None:
        raise GraphError(f"{t.name} has {t.scale.size} scales; an activation has one.")
    return t.grid[0]


def tensor_scale(x: GraphTensor, weight: GraphTensor, result: GraphTensor) -> float:
    """With one scale for all weights the kernels multiply the first two in float32."""
    return float(np.float64(np.float32(scale_of(x)) * np.float32(scale_of(weight))) / np.float64(scale_of(result)))


def product_scale(op: Operator) -> int:
    """Of a matmul of int16 activations with one scale for all weights, packed."""
    x, weight = (some(t) for t in op.operands[:2])
    return packed_multiplier(tensor_scale(x, weight, op.results[0]))


def require_plain(op: Operator) -> None:
    """No fused activation function."""
    if op.options is not None and op.options.fusedActivationFunction:
        raise refused(op, "it has an activation function of its own")


def is_contiguous(shape: Sequence[int], part: Sequence[int]) -> bool:
    """Whether a part of a tensor of `shape` is one run of elements: full axes after the first that is cut."""
    cut = next((i for i, (n, m) in enumerate(zip(shape, part, strict=True)) if n != m), len(shape))
    return all(m == n for n, m in zip(shape[cut + 1 :], part[cut + 1 :], strict=True)) and all(
        n == 1 for n in shape[:cut]
    )


def refused(op: Operator, why: str) -> GraphError:
    """An error that names the operator and says why."""
    where = op.results[0].name if op.results else "no result"
    return GraphError(f"The C engine cannot take {op.name}, {where}: {why}.")
