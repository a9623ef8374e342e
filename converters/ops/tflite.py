"""What every profile emits alike: small operators, and the float32 parts between the matmuls.

A profile is a subclass that adds the methods of `Ops`. All operators here exist in TFLite Micro, in
tflite-runtime 2.14 and in LiteRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, Quantization, Subgraph, Tensor
from converters.network.config import ActivationKind, Feature, NetworkConfig, Norm, Rope
from converters.network.weights import FloatArray

__all__ = ["MASKED", "Op", "TfliteOps", "rope_tables"]

Op = schema.BuiltinOperator
MASKED = 30_000.0  # a score this far below the others is 0 after softmax


def rope_tables(rope: Rope, positions: int) -> tuple[FloatArray, FloatArray]:
    """cos and sin for half-split RoPE, (positions, 2 * frequencies) each; the first half of sin is negated."""
    angles = np.outer(np.arange(positions, dtype=np.float64), np.array(rope.frequencies))
    cos, sin = np.cos(angles) * rope.magnitude, np.sin(angles) * rope.magnitude
    return np.hstack([cos, cos]).astype(np.float32), np.hstack([-sin, sin]).astype(np.float32)


class TfliteOps:
    """Helpers over one subgraph. Results are float32 unless a quantization is given.

    Args:
        norms: gains and biases of the norms that are not folded, by tensor name, float32.
    """

    # Everything that a rotated network (quantize/rotation.py) can have; a profile leaves out what it cannot.
    SUPPORTS: frozenset[Feature] = frozenset(
        {
            "norm gain", "post-norm", "q/k norm", "soft-capped attention", "soft-capped logits", "sliding window",
            "partial RoPE", "layers without RoPE", "several RoPE tables", "learned positions", "parallel block",
            "feed-forward without a gate", "activation gelu", "activation gelu_tanh", "activation relu",
            "activation relu_squared", "scaled residual",
        }
    )  # fmt: skip

    any_rows = False  # whether a run may have more or fewer rows than the shapes here say

    def __init__(self, graph: Subgraph, norms: Mapping[str, FloatArray]) -> None:
        self._graph, self._norms = graph, norms

    def _first_epsilon(self, config: NetworkConfig) -> None:
        """The constant that most norms read comes before the layers."""
        norms = (*(block.attention_norm for block in config.blocks), config.head.norm)
        if first := next((norm for norm in norms if norm is not None), None):
            self._float("epsilon", [first.epsilon])

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

    def _reshape(self, x: Tensor, shape: tuple[int, ...], rows: int | None = None) -> Tensor:
        """`rows` is the axis of `shape` whose size follows the rows of a run, where there may be any number of them."""
        if x.shape == shape:
            return x
        written = [-1 if self.any_rows and axis == rows else size for axis, size in enumerate(shape)]
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(written, np.int32)
        return self._moved(Op.RESHAPE, [x, self._ints(written)], x.name, shape, options)

    def _columns(self, x: Tensor, start: int, size: int, name: str = "") -> Tensor:
        """Elements start … start + size of the last axis."""
        return self._part(x, len(x.shape) - 1, start, size, name)

    def _swapped(self, x: Tensor) -> Tensor:
        """The halves of the last axis, the second before the first."""
        half = x.shape[-1] // 2
        return self._concat([self._columns(x, half, half), self._columns(x, 0, half)], "rope.swap")

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

    def _embed_rows(self, tokens: Tensor, rows: Constant, scale: Constant, name: str = "embed") -> Tensor:
        """int8 rows times their scales: (tokens, width)."""
        floats = self._cast(self._gather(rows, tokens, f"{name}_rows"), f"{name}_float")
        scales = self._reshape(self._gather(scale, tokens, f"{name}_scale"), (*tokens.shape, 1), rows=0)
        return self._binary(Op.MUL, floats, scales, name)

    def _norm(self, x: Tensor, norm: Norm, name: str) -> Tensor:
        """Five operators over the last axis, all float32; a gain that is not part of the weights is a sixth."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        last = len(x.shape) - 1
        square = self._binary(Op.MUL, x, x, f"{name}.square")
        mean = self._op(Op.MEAN, [square, self._ints([last])], f"{name}.mean", (*x.shape[:-1], 1), options)
        scale = self._binary(Op.ADD, mean, self._float("epsilon", [norm.epsilon]), f"{name}.variance")
        scale = self._op(Op.RSQRT, [scale], f"{name}.rsqrt", scale.shape)
        normed = self._binary(Op.MUL, x, scale, f"{name}.whole" if norm.gain else name)
        if norm.gain:
            gain = f"{name}.weight"
            normed = self._binary(Op.MUL, normed, self._float(gain, self._norms[gain]), name)
        return normed

    def _whole_norm(self, x: Tensor, norm: Norm, name: str) -> Tensor:
        """With mean, gain and bias, where the norm has them: of a residual stream that is itself normed."""
        if norm.kind == "layer":
            options = schema.ReducerOptionsT()
            options.keepDims = True
            axis = self._ints([len(x.shape) - 1])
            mean = self._op(Op.MEAN, [x, axis], f"{name}.centre", (*x.shape[:-1], 1), options)
            x = self._binary(Op.SUB, x, mean, f"{name}.centred")
        x = self._norm(x, Norm(norm.epsilon, gain=norm.gain), name)
        if norm.bias:
            x = self._binary(Op.ADD, x, self._float(f"{name}.bias", self._norms[f"{name}.bias"]), f"{name}.out")
        return x

    def _unit(self, x: Tensor) -> Tensor:
        """x / |x|: (1, width)."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        square = self._binary(Op.MUL, x, x, "unit.square")
        total = self._op(Op.SUM, [square, self._ints([1])], "unit.sum", (1, 1), options)
        return self._binary(Op.MUL, x, self._op(Op.RSQRT, [total], "unit.rsqrt", (1, 1)), "unit")

    def _shares_of_text(self, length: Tensor, count: int) -> Tensor:
        """1 / length for each row of a text, and 0 for each row of padding: (count,)."""
        real = self._cast(length, "length_float")
        left = self._binary(Op.SUB, real, self._float("places", np.arange(count)), "places_left")
        clipped = schema.MaximumMinimumOptionsT()
        some = self._op(Op.MINIMUM, [left, self._float("one", [1.0])], "places_some", left.shape, clipped)
        there = self._op(Op.MAXIMUM, [some, self._float("zero", [0.0])], "places_there", left.shape, clipped)
        return self._op(Op.DIV, [there, real], "shares", left.shape, schema.DivOptionsT())

    def _sum_of_rows(self, x: Tensor, name: str) -> Tensor:
        """(1, columns)."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        return self._op(Op.SUM, [x, self._ints([0])], name, (1, x.shape[1]), options)

    def _looked(self, scores: Tensor, values: Tensor, mask: Tensor, fields: Sequence[int]) -> Tensor:
        """The mean of the rows of `values`, (tokens, labels), by shares that are each field's own: (1, labels).

        Args:
            scores: (tokens, fields).
            mask: (1, tokens), far below 0 after the text's end.
        """
        tokens, start, found = scores.shape[0], 0, []
        for i, size in enumerate(fields):
            name = f"field_{i}"
            of_rows = self._reshape(self._columns(scores, i, 1, f"{name}.scores"), (1, tokens))
            shares = self._softmax(self._binary(Op.ADD, of_rows, mask, f"{name}.masked"), f"{name}.shares")
            own = self._columns(values, start, size, f"{name}.values")
            parts = self._binary(Op.MUL, own, self._reshape(shares, (tokens, 1)), f"{name}.parts")
            found.append(self._sum_of_rows(parts, f"{name}.logits"))
            start += size
        return self._concat(found, "fields")

    def _norm_heads(self, x: Tensor, norm: Norm, name: str, heads: int) -> Tensor:
        """(tokens, heads * size), each head normed by itself."""
        parts = self._reshape(x, (x.shape[0], heads, x.shape[1] // heads), rows=0)
        return self._reshape(self._norm(parts, norm, name), x.shape, rows=0)

    def _rotated_heads(self, x: Tensor, cos: Tensor, sin: Tensor, name: str = "rope") -> Tensor:
        """RoPE. x: (tokens, heads, head_dim); cos, sin: (tokens, 1, rotated), see `rope_tables`; or all of them with
        the heads first."""
        size = cos.shape[-1]
        if size < x.shape[-1]:  # what lies after it stays as it is
            rest = self._columns(x, size, x.shape[-1] - size, "rope.rest")
            first = self._rotated_heads(self._columns(x, 0, size, "rope.part"), cos, sin, "rope.rotated")
            return self._concat([first, rest], name)
        across = self._binary(Op.MUL, self._swapped(x), sin, "rope.sin")
        return self._binary(Op.ADD, self._binary(Op.MUL, x, cos, "rope.cos"), across, name)

    def _window_mask(self, position: Tensor, window: int, newest: int) -> Tensor:
        """0 where the cache holds a position up to `position - 1 + newest`, far below 0 after: (1, 1, 1, window)."""
        here = self._cast(position, "position_float")
        slots = self._float("slots", np.arange(1 - newest, window + 1 - newest).reshape(1, 1, 1, -1))
        self._age = self._binary(Op.SUB, self._reshape(here, (1, 1, 1, 1)), slots, "slot_age")
        return self._masked_below_zero(self._age)

    def _sliding_mask(self, mask: Tensor, age: Tensor, visible: int) -> Tensor:
        """`mask`, and far below 0 where `age` (see `_window_mask`) is above `visible`."""
        left = self._binary(Op.SUB, self._float("visible", [visible]), age, "slot_left")
        return self._binary(Op.ADD, self._masked_below_zero(left), mask, "mask_sliding")

    def _masked_below_zero(self, x: Tensor) -> Tensor:
        """0 where `x`, which holds whole numbers, is not below 0, and far below 0 where it is."""
        options = schema.MaximumMinimumOptionsT()
        below = self._op(Op.MINIMUM, [x, self._float("zero", [0.0])], f"{x.name}.below", x.shape, options)
        return self._binary(Op.MUL, below, self._float("masked", [MASKED]), f"{x.name}.masked")

    def _activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        """The activation function, by element."""
        if kind in ("relu", "relu_squared"):
            positive = self._op(
                Op.MAXIMUM, [x, self._float("zero", [0.0])], "relu", x.shape, schema.MaximumMinimumOptionsT()
            )
            return positive if kind == "relu" else self._binary(Op.MUL, positive, positive, "relu_squared")
        if kind in ("gelu", "gelu_tanh"):
            return self._gelu(x, kind)
        sigmoid = self._op(Op.LOGISTIC, [x], "sigmoid", x.shape)
        return self._binary(Op.MUL, x, sigmoid, "silu")

    def _gelu(self, x: Tensor, kind: ActivationKind) -> Tensor:
        """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³))) / 2, of operators that every runtime has.

        Of `gelu`, which is written with erf, it is at most 5e-4 off: less than a step of any integer that reads it.
        """
        square = self._binary(Op.MUL, x, x, "gelu.square")
        root = (2 / np.pi) ** 0.5
        inner = self._binary(Op.MUL, square, self._float("gelu.third", [0.044715 * root]), "gelu.power")
        inner = self._binary(Op.ADD, inner, self._float("gelu.first", [root]), "gelu.sum")
        tanh = self._op(Op.TANH, [self._binary(Op.MUL, x, inner, "gelu.inner")], "gelu.tanh", x.shape)
        half = self._binary(Op.MUL, x, self._float("half", [0.5]), "gelu.half")
        return self._binary(Op.ADD, half, self._binary(Op.MUL, half, tanh, "gelu.half_tanh"), kind)

    def _softcap(self, x: Tensor, cap: float, name: str) -> Tensor:
        """cap * tanh(x / cap)."""
        inner = self._binary(Op.MUL, x, self._float("cap.inverse", [1 / cap]), f"{name}.inner")
        tanh = self._op(Op.TANH, [inner], f"{name}.tanh", x.shape)
        return self._binary(Op.MUL, tanh, self._float("cap", [cap]), name)
