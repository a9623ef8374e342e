"""Ops that emit sentence encoders in the `micro` profile: a text of up to so many tokens, in one run.

int8 weights per channel. Activations are int16 wherever a matmul reads or makes them, and float32 between: an encoder
reads a text once, so twice the bytes of a few rows cost little, and no range has to be fought for. Attention is a
FULLY_CONNECTED of int16 rows by int8 keys or values, one head at a time, as in tflite_micro.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, Subgraph, Tensor
from converters.encoders.network import Pooling, Stack
from converters.network.config import ActivationKind, Norm
from converters.network.tensors import Linear
from converters.network.weights import FloatArray
from converters.ops.tflite import Op
from converters.ops.tflite_micro_parts import MicroMatmul, MicroParts, per_tensor
from converters.quantize.params import ParamsByName
from device_runtime.errors import ArchitectureError

__all__ = ["EncoderMicro", "EncoderMicroConstants"]


@dataclass(frozen=True)
class EncoderMicroConstants:
    """What the graph is made of."""

    matmuls: Mapping[str, MicroMatmul]  # attention's scale is part of q
    embedding: tuple[Constant, Constant]  # int8 rows, and the scale of each
    positions: tuple[Constant, FloatArray] | None  # int8 rows of the first positions, and the scale of each
    norms: Mapping[str, FloatArray]  # gains and biases, by tensor name


class EncoderMicro(MicroParts):
    """`SentenceOps` over the signature `encode_N`, a text of up to `count` tokens."""

    def __init__(self, graph: Subgraph, constants: EncoderMicroConstants, params: ParamsByName, count: int) -> None:
        super().__init__(graph, constants.norms, params)
        self._constants, self._count = constants, count
        self._tokens = graph.input("tokens", (count,), np.int32)
        self._length = graph.input("length", (1,), np.int32)  # of the text; tokens after it are padding
        self._mask = self._reshape(self._window_mask(self._length, count, newest=0), (1, count))

    def embed(self, stack: Stack) -> Tensor:
        """As in `StackOps`: int8 rows times their scales."""
        x = self._embed_rows(self._tokens, *self._constants.embedding)
        if stack.embedding_scale != 1:
            x = self._binary(Op.MUL, x, self._float("embed_factor", [stack.embedding_scale]), "embed_scaled")
        if self._constants.positions is not None:
            rows, scale = self._constants.positions
            floats = self._cast(self._graph.constant("positions_rows", rows), "positions_float")
            positions = self._binary(Op.MUL, floats, self._float("positions_scale", scale[:, None]), "positions")
            x = self._binary(Op.ADD, x, positions, "embed_positions")
        return x

    def norm(self, x: Tensor, norm: Norm, name: str) -> Tensor:
        """As in `StackOps`, float32."""
        return self._whole_norm(x, norm, name)

    def linear(self, x: Tensor, *matmuls: Linear) -> tuple[Tensor, ...]:
        """int16 in and out; what attention reads stays int16."""
        stored = self._stored(x, matmuls[0].input) if x.dtype == np.float32 else x
        results = [self._fully_connected(stored, m.name, self._constants.matmuls[m.name]) for m in matmuls]
        if len(matmuls) == 3:  # q, k and v
            return tuple(results)
        return tuple(self._real(r, m.name) for m, r in zip(matmuls, results, strict=True))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, stack: Stack, layer: int) -> Tensor:
        """As in `StackOps`. int16, as `o` reads it."""
        if stack.buckets is not None:
            raise ArchitectureError("The profile micro has no relative positions; convert with --profile pi.")
        name, dim = f"{stack.side}.layers.{layer}", stack.attention.head_dim
        keys, values = self._in_int8(k, f"{name}.keys"), self._in_int8(v, f"{name}.values")
        columns = self._moved(
            Op.TRANSPOSE, [values, self._ints([1, 0])], f"{name}.values.columns", values.shape[::-1],
            schema.TransposeOptionsT(),
        )  # fmt: skip
        mixed = [
            self._head(
                f"{name}.head_{head}",
                name,
                self._columns(q, head * dim, dim, f"{name}.head_{head}.queries"),
                self._columns(keys, head * dim, dim, f"{name}.head_{head}.keys"),
                self._part(columns, 0, head * dim, dim, f"{name}.head_{head}.values"),
            )
            for head in range(stack.attention.heads)
        ]
        return self._joined(mixed, f"{name}.o.in")

    def _in_int8(self, x: Tensor, name: str) -> Tensor:
        p = self._params[name]
        return self._op(Op.QUANTIZE, [x], name, x.shape, schema.QuantizeOptionsT(), 2, p.dtype, per_tensor(p))

    def _head(self, head: str, layer: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(count, head_dim) int16 queries, int8 keys, (head_dim, count) int8 values -> (count, head_dim) int16."""
        scores = self._product(queries, keys, f"{head}.scores", self._params[f"{layer}.scores"])
        real = self._op(Op.DEQUANTIZE, [scores], f"{head}.scores.real", scores.shape, schema.DequantizeOptionsT(), 2)
        masked = self._binary(Op.ADD, real, self._mask, f"{head}.scores.masked")
        shares = self._softmax(masked, f"{head}.softmax")
        p = self._params["probabilities"]
        options = schema.QuantizeOptionsT()
        stored = self._op(Op.QUANTIZE, [shares], f"{head}.shares", shares.shape, options, 2, p.dtype, per_tensor(p))
        return self._product(stored, values, f"{head}.mixed", self._params[f"{layer}.o.in"])

    def activate(self, x: Tensor, kind: ActivationKind) -> Tensor:
        """As in `StackOps`, float32."""
        return self._activation(x, kind)

    def gated(self, gate: Tensor, up: Tensor, kind: ActivationKind) -> Tensor:
        """As in `StackOps`, float32."""
        return self._binary(Op.MUL, self._activation(gate, kind), up, "gated")

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """The residual sum, float32."""
        return self._binary(Op.ADD, x, y, name)

    def scaled(self, x: Tensor, factor: float) -> Tensor:
        """As in `StackOps`."""
        return self._binary(Op.MUL, x, self._float("factor", [factor]), "scaled")

    def tanh(self, x: Tensor) -> Tensor:
        """As in `SentenceOps`."""
        return self._op(Op.TANH, [x], "tanh", x.shape)

    def pool(self, x: Tensor, pooling: Pooling) -> Tensor:
        """As in `SentenceOps`; a row of padding has share 0 of the mean."""
        if pooling == "cls":
            return self._part(x, 0, 0, 1, "first")
        shares = self._reshape(self._shares_of_text(self._length, self._count), (self._count, 1))
        return self._sum_of_rows(self._binary(Op.MUL, x, shares, "mean.parts"), "mean")

    def look(self, scores: Tensor, values: Tensor, fields: Sequence[int]) -> Tensor:
        """As in `SentenceOps`."""
        return self._looked(scores, values, self._mask, fields)

    def unit(self, x: Tensor) -> Tensor:
        """As in `SentenceOps`."""
        return self._unit(x)

    def finish(self, result: Tensor) -> None:
        """Declare the output, float32 (1, width or labels)."""
        self._graph.output("result", result)
