"""The parts of a network that compute row by row, as the `pi` profile emits them: what decoders and encoders share.

float32 between matmuls whose weights are int8 and per channel, or int4 in blocks; the kernel quantizes each row of
activations on the fly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import BlockQuantization, Constant, Quantization, Subgraph, Tensor
from converters.network.config import ActivationKind, Norm
from converters.network.tensors import Linear
from converters.network.weights import FloatArray
from converters.ops.tflite import Op, TfliteOps

__all__ = ["BlockedColumns", "ColumnRange", "PiParts", "QuantizedMatmul", "Value"]


@dataclass(frozen=True)
class ColumnRange:
    """Some columns of the weights of a matmul, and so some channels of what it reads, quantized on their own."""

    start: int
    size: int
    weight: Constant  # int8 (sum of rows, size)
    scale: npt.NDArray[np.float32]  # (sum of rows,)


@dataclass(frozen=True)
class BlockedColumns:
    """All columns in int4: values * scale + offset, see quantize/blocks.py."""

    weight: Constant  # int4 (sum of rows, columns)
    scale: Constant  # float16 (sum of rows, columns / block)
    offset: Constant  # int8 (sum of rows, columns / block): what the mean of each block of the input is multiplied by
    offset_scale: npt.NDArray[np.float32]  # (sum of rows,)


@dataclass(frozen=True)
class QuantizedMatmul:
    """Weights of one or more matmuls that read the same input, stacked by rows."""

    ranges: tuple[ColumnRange, ...] | BlockedColumns  # of all columns, in order
    bias: Constant | None  # float32 (sum of rows,)
    rows: tuple[int, ...]  # of each matmul


@dataclass(frozen=True)
class Value:
    """A tensor of shape (tokens, width), or some columns of one; after RoPE it is (tokens, heads, head_dim)."""

    tensor: Tensor
    start: int = 0
    width: int = 0


class PiParts(TfliteOps):
    """Everything of `Ops` that knows neither positions nor a kv_cache, over one signature."""

    def __init__(
        self, graph: Subgraph, norms: Mapping[str, FloatArray], matmuls: Mapping[int, QuantizedMatmul]
    ) -> None:
        super().__init__(graph, norms)
        self._matmuls = matmuls

    # -- small things ------------------------------------------------------------------------------

    def _heads_first(self, x: Tensor) -> Tensor:
        """(tokens, heads, head_dim) -> (heads, tokens, head_dim), or back."""
        tokens, heads, dim = x.shape
        return self._op(
            Op.TRANSPOSE, [x, self._ints([1, 0, 2])], x.name, (heads, tokens, dim), schema.TransposeOptionsT()
        )

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The halves of the last axis, by one operator."""
        half = (*x.shape[:-1], x.shape[-1] // 2)
        options = schema.SplitOptionsT()
        options.numSplits = 2
        axis = self._graph.constant("axis", np.array(len(half) - 1, np.int32))
        outputs = [(f"{x.name}.{name}", half, x.dtype, None) for name in ("first", "second")]
        first, second = self._graph.operator(Op.SPLIT, [axis, x], outputs, options)
        return first, second

    def _swapped(self, x: Tensor) -> Tensor:
        return self._concat([*reversed(self._halves(x))], "rope.swap")

    def _materialize(self, value: Value) -> Tensor:
        return self._columns(value.tensor, value.start, value.width)

    def _whole(self, tensor: Tensor) -> Value:
        return Value(tensor, 0, tensor.shape[-1])

    def norm(self, x: Value, norm: Norm, name: str, heads: int = 1) -> Value:
        """As in `Ops`, float32; most gains are part of the weights that read the result."""
        t = self._materialize(x)
        return self._whole(self._norm(t, norm, name) if heads == 1 else self._norm_heads(t, norm, name, heads))

    def linear(self, x: Value, *matmuls: Linear) -> tuple[Value, ...]:
        """One FULLY_CONNECTED for all of them, or a sum of some; each result is a range of its columns."""
        m, names = self._matmuls[matmuls[0].group], [matmul.name for matmul in matmuls]
        t = self._materialize(x)
        bias = None if m.bias is None else self._graph.constant(f"{names[0]}.bias", m.bias)
        if isinstance(m.ranges, BlockedColumns):
            total = self._blocked(t, m.ranges, bias, "+".join(names))
        else:
            total = self._sum_of_ranges(t, m.ranges, bias, names)
        starts = np.cumsum([0, *m.rows])
        return tuple(Value(total, int(start), rows) for start, rows in zip(starts, m.rows, strict=False))

    def _sum_of_ranges(
        self, t: Tensor, ranges: tuple[ColumnRange, ...], bias: Tensor | None, names: list[str]
    ) -> Tensor:
        total: Tensor | None = None
        for part in ranges:
            quantization = Quantization.per_channel(part.scale)
            weight = self._graph.constant(f"{names[0]}.weight", part.weight, quantization)
            product = self._fully_connected(self._columns(t, part.start, part.size), weight, bias, "+".join(names))
            total = product if total is None else self._binary(Op.ADD, total, product, "+".join(names))
            bias = None
        assert total is not None
        return total

    def _blocked(self, t: Tensor, columns: BlockedColumns, bias: Tensor | None, name: str) -> Tensor:
        """int4 weights, and their offsets times the mean of each block of the input."""
        blocks = columns.scale.shape[1]
        block = t.shape[1] // blocks
        weight = self._graph.constant(f"{name}.weight", columns.weight, BlockQuantization(columns.scale, block))
        product = self._fully_connected(t, weight, bias, name, version=12)
        parts = self._reshape(t, (t.shape[0], blocks, block), rows=0)
        means = self._op(
            Op.MEAN, [parts, self._ints([2])], f"{name}.means", (t.shape[0], blocks), schema.ReducerOptionsT()
        )
        offset = self._graph.constant(f"{name}.offset", columns.offset, Quantization.per_channel(columns.offset_scale))
        return self._binary(Op.ADD, product, self._fully_connected(means, offset, None, f"{name}.offsets"), name)

    def _fully_connected(self, x: Tensor, weight: Tensor, bias: Tensor | None, name: str, version: int = 9) -> Tensor:
        """x @ weight.T + bias; with integer weights each row of x is quantized as it comes."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        options.asymmetricQuantizeInputs = True
        shape = (x.shape[0], weight.shape[0])
        (out,) = self._graph.operator(
            Op.FULLY_CONNECTED, [x, weight, bias], [(name, shape, np.float32, None)], options, version
        )
        return out

    def activate(self, x: Value, kind: ActivationKind) -> Value:
        """As in `Ops`, float32."""
        return self._whole(self._activation(self._materialize(x), kind))

    def gated(self, gate: Value, up: Value, kind: ActivationKind) -> Value:
        """As in `Ops`, float32."""
        if gate.tensor is up.tensor and gate.width == up.width == gate.tensor.shape[-1] / 2:
            g, u = self._halves(gate.tensor)  # the gate comes first, see `Role`
        else:
            g, u = self._materialize(gate), self._materialize(up)
        return self._whole(self._binary(Op.MUL, self._activation(g, kind), u, "gated"))

    def _gelu(self, x: Tensor, kind: ActivationKind) -> Tensor:
        """LiteRT has an operator for it."""
        options = schema.GeluOptionsT()
        options.approximate = kind == "gelu_tanh"
        return self._op(Op.GELU, [x], kind, x.shape, options)

    def scaled(self, x: Value, factor: float) -> Value:
        """As in `Ops`."""
        return self._whole(self._binary(Op.MUL, self._materialize(x), self._float("factor", [factor]), "scaled"))

    def softcap(self, x: Value, cap: float) -> Value:
        """As in `Ops`."""
        return self._whole(self._softcap(self._materialize(x), cap, "capped"))

    def add(self, x: Value, y: Value, name: str) -> Value:
        """The residual sum."""
        return self._whole(self._binary(Op.ADD, self._materialize(x), self._materialize(y), name))

    def _outputs_with_cache(
        self,
        logits: Value,
        position: Tensor,
        fresh: Sequence[tuple[Tensor, Tensor]],
        cache: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Declare the logits as output, and each layer's cached keys and values with the fresh rows at `position`."""
        self._graph.output("logits", self._materialize(logits))
        start = self._graph.operator(
            Op.CONCATENATION,
            [self._ints([0, 0]), position, self._ints([0])],
            [("cache_start", (4,), np.int32, None)],
            schema.ConcatenationOptionsT(),
        )[0]
        for i, (rows_of_layer, kept) in enumerate(zip(fresh, cache, strict=True)):
            for kind, rows, whole in zip("kv", rows_of_layer, kept, strict=True):
                (out,) = self._graph.operator(
                    Op.DYNAMIC_UPDATE_SLICE, [whole, rows, start],
                    [(f"{kind}_{i}", whole.shape, whole.dtype, whole.quantization)],
                    schema.DynamicUpdateSliceOptionsT(), 2,
                )  # fmt: skip
                self._graph.output(f"{kind}_{i}", out)
