"""What every profile emits alike: small operators, and the float32 parts between the matmuls.

A profile is a subclass that adds the methods of `Ops`. All operators here exist in TFLite Micro, in
tflite-runtime 2.14 and in LiteRT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, Quantization, Subgraph, Tensor
from converters.network.decoder import NetworkConfig

__all__ = ["MASKED", "Op", "TfliteOps", "rope_tables"]

Op = schema.BuiltinOperator
MASKED = 30_000.0  # a score this far below the others is 0 after softmax


def rope_tables(config: NetworkConfig, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """cos and sin for half-split RoPE, (positions, head_dim) each; the first half of sin is negated."""
    angles = np.outer(np.arange(positions, dtype=np.float64), np.array(config.rope_frequencies))
    cos, sin = np.cos(angles) * config.rope_magnitude, np.sin(angles) * config.rope_magnitude
    return np.hstack([cos, cos]).astype(np.float32), np.hstack([-sin, sin]).astype(np.float32)


class TfliteOps:
    """Helpers over one subgraph. Results are float32 unless a quantization is given."""

    _epsilon: Tensor  # float32 (1,), of the norms; a subclass makes it

    def __init__(self, graph: Subgraph, config: NetworkConfig) -> None:
        self._graph, self._config = graph, config

    # -- constants ---------------------------------------------------------------------------------

    def _float(self, name: str, values: npt.ArrayLike) -> Tensor:
        return self._graph.constant(name, np.array(values, np.float32))

    def _ints(self, values: npt.ArrayLike) -> Tensor:
        return self._graph.constant("shape", np.array(values, np.int32))

    # -- one operator ------------------------------------------------------------------------------

    def _op(
        self,
        code: int,
        inputs: list[Tensor],
        name: str,
        shape: tuple[int, ...],
        options: object = None,
        version: int = 1,
        dtype: npt.DTypeLike = np.float32,
        quantization: Quantization | None = None,
    ) -> Tensor:
        (out,) = self._graph.operator(code, inputs, [(name, shape, dtype, quantization)], options, version)
        return out

    def _moved(
        self, code: int, inputs: list[Tensor], name: str, shape: tuple[int, ...], options: object, version: int = 1
    ) -> Tensor:
        """An operator that moves elements about: type and quantization stay those of the first operand."""
        x = inputs[0]
        return self._op(code, inputs, name, shape, options, version, x.dtype, x.quantization)

    def _reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        if x.shape == shape:
            return x
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        return self._moved(Op.RESHAPE, [x, self._ints(shape)], x.name, shape, options)

    def _columns(self, x: Tensor, start: int, size: int, name: str = "") -> Tensor:
        """Elements start … start + size of the last axis."""
        return self._part(x, len(x.shape) - 1, start, size, name)

    def _part(self, x: Tensor, axis: int, start: int, size: int, name: str = "") -> Tensor:
        """Elements start … start + size of one axis."""
        if (start, size) == (0, x.shape[axis]):
            return x
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        begin = [start if i == axis else 0 for i in range(len(shape))]
        operands = [x, self._ints(begin), self._ints(shape)]
        return self._moved(Op.SLICE, operands, name or x.name, shape, schema.SliceOptionsT())

    def _concat(self, parts: list[Tensor], name: str) -> Tensor:
        options = schema.ConcatenationOptionsT()
        options.axis = len(parts[0].shape) - 1
        shape = (*parts[0].shape[:-1], sum(p.shape[-1] for p in parts))
        return self._moved(Op.CONCATENATION, parts, name, shape, options)

    def _binary(self, code: int, x: Tensor, y: Tensor, name: str) -> Tensor:
        options = {Op.MUL: schema.MulOptionsT, Op.ADD: schema.AddOptionsT, Op.SUB: schema.SubOptionsT}.get(code)
        shape = tuple(np.broadcast_shapes(x.shape, y.shape))
        return self._op(code, [x, y], name, shape, options() if options else None)

    def _batch_matmul(
        self, x: Tensor, y: Tensor, transpose_y: bool, name: str, quantization: Quantization | None = None
    ) -> Tensor:
        options = schema.BatchMatMulOptionsT()
        options.adjY = transpose_y
        shape = (*x.shape[:-1], y.shape[-2 if transpose_y else -1])
        version = 1 if x.dtype == np.float32 else 2
        return self._op(Op.BATCH_MATMUL, [x, y], name, shape, options, version, x.dtype, quantization)

    def _gather(self, table: Constant, rows: Tensor, name: str) -> Tensor:
        operands = [self._graph.constant(name, table), rows]
        shape = (*rows.shape, *table.shape[1:])
        return self._op(Op.GATHER, operands, name, shape, schema.GatherOptionsT(), dtype=table.dtype)

    def _cast(self, x: Tensor, name: str) -> Tensor:
        return self._op(Op.CAST, [x], name, x.shape, schema.CastOptionsT())

    def _softmax(self, x: Tensor, name: str) -> Tensor:
        options: Any = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self._op(Op.SOFTMAX, [x], name, x.shape, options)

    # -- parts of the network ----------------------------------------------------------------------

    def _embed_rows(self, tokens: Tensor, rows: Constant, scale: Constant) -> Tensor:
        """int8 rows times their scales: (tokens, width)."""
        floats = self._cast(self._gather(rows, tokens, "embed_rows"), "embed_float")
        scales = self._reshape(self._gather(scale, tokens, "embed_scale"), (*tokens.shape, 1))
        return self._binary(Op.MUL, floats, scales, "embed")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """Five operators, all float32. Gains are part of the weights that read it."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        square = self._binary(Op.MUL, x, x, f"{name}.square")
        mean = self._op(Op.MEAN, [square, self._ints([1])], f"{name}.mean", (x.shape[0], 1), options)
        scale = self._binary(Op.ADD, mean, self._epsilon, f"{name}.variance")
        scale = self._op(Op.RSQRT, [scale], f"{name}.rsqrt", scale.shape)
        return self._binary(Op.MUL, x, scale, name)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor, name: str = "rope") -> Tensor:
        """RoPE. x: (tokens, heads, head_dim); cos, sin: (tokens, 1, head_dim), see `rope_tables`."""
        half = x.shape[-1] // 2
        swapped = self._concat([self._columns(x, half, half), self._columns(x, 0, half)], "rope.swap")
        across = self._binary(Op.MUL, swapped, sin, "rope.sin")
        return self._binary(Op.ADD, self._binary(Op.MUL, x, cos, "rope.cos"), across, name)

    def _window_mask(self, position: Tensor, window: int, newest: int) -> Tensor:
        """0 where the cache holds a position up to `position - 1 + newest`, far below 0 after: (1, 1, 1, window)."""
        here = self._cast(position, "position_float")
        slots = self._float("slots", np.arange(1 - newest, window + 1 - newest).reshape(1, 1, 1, -1))
        behind = self._binary(Op.SUB, self._reshape(here, (1, 1, 1, 1)), slots, "slot_age")
        options = schema.MaximumMinimumOptionsT()
        clipped = self._op(Op.MINIMUM, [behind, self._float("zero", [0.0])], "slot_future", behind.shape, options)
        return self._binary(Op.MUL, clipped, self._float("masked", [MASKED]), "mask")

    def _silu_product(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate * sigmoid(gate) * up."""
        sigmoid = self._op(Op.LOGISTIC, [gate], "sigmoid", gate.shape)
        return self._binary(Op.MUL, self._binary(Op.MUL, gate, sigmoid, "silu"), up, "gated")
