"""Ops that emit the `micro` profile: integer matmuls with static ranges, float32 between them.

One reading emits the signature `decode`: one token in, its logits out. The same file runs in TFLite Micro,
tflite-runtime 2.14 and LiteRT, so only operators, types and operator versions that all three have are used.

    the matmuls       FULLY_CONNECTED, int8 weights per channel, int8 activations per tensor. With int4 weights in
                      blocks (`--weights int4`) only the C engine runs the file, through its model image
    o, down, the head the same weights with int16 activations (`params.INT16_ROLES`). Their sums are 32 bits wide in
                      LiteRT and in 2.14 unless there is an int64 bias, so they get one where they could overflow
    attention         FULLY_CONNECTED whose weights are the int8 kv_cache, with int16 queries and probabilities (no
                      runtime has a BATCH_MATMUL of int16 by int8). One chain of operators for each key head: its
                      scores are gone before the next head's are made. The softmax is float32
    kv_cache          variable tensors, both operand and result of DYNAMIC_UPDATE_SLICE: in place. Keys of a head are
                      (context, head_dim), values (head_dim, context): the weights of the two products
    the prefix        constants that every step writes to the start of the cache before its own row: a variable
                      tensor cannot have initial values, and no runtime has a way in that the others have too

Values are tensors; one that is not float32 is dequantized when a float32 operator reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, Quantization, Subgraph, Tensor
from converters.network.config import ActivationKind, Attention, NetworkConfig, Norm, Rope
from converters.network.tensors import Linear, Role
from converters.network.weights import FloatArray
from converters.ops.numpy import KvCache
from converters.ops.tflite import Op
from converters.ops.tflite_micro_parts import MicroMatmul, MicroParts, per_tensor
from converters.quantize.params import ParamsByName, down_ranges

_Int8Array = npt.NDArray[np.int8]

__all__ = ["MicroConstants", "MicroOps"]


@dataclass(frozen=True)
class MicroConstants:
    """What the graph is made of."""

    matmuls: Mapping[str, MicroMatmul]
    embedding: Constant  # int8 (vocabulary, width)
    embedding_scale: Constant  # float32 (vocabulary,)
    # (width, width): from a row of a tied head to that token's embedding, as the sum of these matmuls
    embedding_map: tuple[MicroMatmul, ...]
    positions: tuple[Constant, Constant] | None  # learned positions: int8 rows, and the scale of each
    ropes: Mapping[Rope, tuple[Constant, Constant]]  # cos and sin, float32 (context, rotated), see `rope_tables`
    norms: Mapping[str, FloatArray]  # gains that are not part of the weights, by tensor name
    prefix: KvCache  # one sequence, in float


class MicroOps(MicroParts):
    """`Ops` over the signature `decode`."""

    def __init__(
        self, graph: Subgraph, constants: MicroConstants, config: NetworkConfig, params: ParamsByName, context: int
    ) -> None:
        super().__init__(graph, constants.norms, params)
        self._config = config
        self._constants, self._context = constants, context
        self._token = graph.input("token", (1,), np.int32)
        self._position = graph.input("position", (1,), np.int32)
        self._first_epsilon(config)
        self._turns: dict[Rope, tuple[Tensor, Tensor]] = {}
        for rope, tables in constants.ropes.items():
            shape = (1, 1, tables[0].shape[1])
            cos, sin = (
                self._reshape(self._gather(table, self._position, name), shape)
                for table, name in zip(tables, ("cos", "sin"), strict=True)
            )
            self._turns[rope] = (cos, sin)
        self._masks: dict[int, Tensor] = {}  # of sliding windows, by their size
        self._mask = self._reshape(self._window_mask(self._position, context, newest=1), (1, context))
        zero = self._ints([0])
        self._key_start = self._concat([self._position, zero], "key_start")
        self._value_start = self._concat([zero, self._position], "value_start")

    # -- Ops ---------------------------------------------------------------------------------------

    def embed(self) -> Tensor:
        """int8 rows times their scales; a row that the head shares goes through a matmul into its own basis."""
        c = self._constants
        x = self._embed_rows(self._token, c.embedding, c.embedding_scale)
        if c.embedding_map:
            stored = self._stored(x, "embed.in")
            names = [f"embed.{i}" for i in range(len(c.embedding_map))]
            parts = [self._fully_connected(stored, n, m) for n, m in zip(names, c.embedding_map, strict=True)]
            x, *rest = [self._real(part, part.name) for part in parts]
            for part in rest:
                x = self._binary(Op.ADD, x, part, "embedding")
        if c.positions is not None:
            positions = self._embed_rows(self._position, *c.positions, "positions")
            x = self._binary(Op.ADD, x, positions, "embed_positions")
        return x

    def norm(self, x: Tensor, norm: Norm, name: str, heads: int = 1) -> Tensor:
        """As in `Ops`, float32; most gains are part of the weights."""
        return self._norm(x, norm, name) if heads == 1 else self._norm_heads(x, norm, name, heads)

    def linear(self, x: Tensor, *matmuls: Linear) -> tuple[Tensor, ...]:
        """One FULLY_CONNECTED for each, because each result has a range of its own."""
        first = matmuls[0]
        if first.role is Role.DOWN:
            return (self._down(x, first),)
        stored = x if first.role is Role.O else self._stored(x, first.input)  # `attend` gives o's input in integers
        results = [self._fully_connected(stored, m.name, self._constants.matmuls[m.name]) for m in matmuls]
        return tuple(
            r if self._stays_integer(m) else self._real(r, m.name) for m, r in zip(matmuls, results, strict=True)
        )

    def _stays_integer(self, matmul: Linear) -> bool:
        """Values go into the cache, and logits out, as they are."""
        head = self._config.head
        return matmul.role is Role.V or (matmul.role is Role.HEAD and head.softcap is None)

    def _down(self, x: Tensor, down: Linear) -> Tensor:
        """The sum over ranges of columns, each quantized by itself: channel scales are alike within a range."""
        name, total = down.name, None
        p = self._params[down.input]
        for i, (start, stop) in enumerate(down_ranges(x.shape[1])):
            scale = p.scale if p.scales is None else p.scale * float(p.scales[start])
            own = Quantization.per_tensor(scale)
            part, options = self._columns(x, start, stop - start, f"{name}.{i}.real"), schema.QuantizeOptionsT()
            stored = self._op(Op.QUANTIZE, [part], f"{name}.{i}.in", part.shape, options, 2, p.dtype, own)
            matmul = self._constants.matmuls[f"{name}.{i}"]
            real = self._real(self._fully_connected(stored, f"{name}.{i}", matmul), f"{name}.{i}")
            total = real if total is None else self._binary(Op.ADD, total, real, f"{name}.sum")
        assert total is not None
        return total

    def rope(self, q: Tensor, k: Tensor, attention: Attention) -> tuple[Tensor, Tensor]:
        """In float32, from a table's row."""
        return self._rotate(q, attention), self._rotate(k, attention)

    def _rotate(self, x: Tensor, attention: Attention) -> Tensor:
        dim = attention.head_dim
        assert attention.rope is not None
        heads = self._reshape(x, (1, x.shape[1] // dim, dim))
        turned = self._rotated_heads(heads, *self._turns[attention.rope], f"{x.name}.rope")
        return self._reshape(turned, x.shape)

    def _mask_of(self, attention: Attention) -> Tensor:
        if attention.window is None or attention.window >= self._context:
            return self._mask
        if attention.window not in self._masks:  # the slot of this token has age 0
            mask = self._reshape(self._mask, (1, 1, 1, self._context))
            sliding = self._sliding_mask(mask, self._age, attention.window - 1)
            self._masks[attention.window] = self._reshape(sliding, (1, self._context))
        return self._masks[attention.window]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention, layer: int) -> Tensor:
        """Query heads that share a key head are rows of one product. int16, as `o` reads it."""
        c, name = attention, f"layers.{layer}"
        group, dim = c.heads // c.kv_heads, c.head_dim
        queries = self._reshape(self._stored(q, f"{name}.queries"), (c.heads, dim))
        keys = self._reshape(self._stored(k, f"{name}.keys"), (c.kv_heads, dim))
        values = self._reshape(v, (c.kv_heads, dim))
        mixed = []
        for head in range(c.kv_heads):
            old = self._prefix_rows(layer, head)
            start = head * group
            mixed.append(
                self._attend_head(
                    f"{name}.head_{head}",
                    name,
                    attention,
                    self._part(queries, 0, start, group, f"{name}.head_{head}.queries"),
                    self._part(keys, 0, head, 1, f"{name}.head_{head}.new_key"),
                    self._reshape(self._part(values, 0, head, 1, f"{name}.head_{head}.new_value"), (dim, 1)),
                    old,
                )
            )
        return self._joined(mixed, f"{name}.o.in")

    def _attend_head(
        self,
        head: str,
        layer: str,
        attention: Attention,
        queries: Tensor,
        key: Tensor,
        value: Tensor,
        prefix: tuple[_Int8Array, _Int8Array],
    ) -> Tensor:
        """One key head: queries (group, head_dim) int16 -> (1, group * head_dim) int16, as `o` reads it."""
        dim, params = attention.head_dim, self._params
        keys = self._graph.variable(f"{head}.keys", (self._context, dim), np.int8, key.quantization)
        values = self._graph.variable(f"{head}.values", (dim, self._context), np.int8, value.quantization)
        for cache, rows in ((keys, prefix[0]), (values, prefix[1].T)):
            if rows.size:
                constant = self._graph.constant(f"{cache.name}.prefix", np.ascontiguousarray(rows), cache.quantization)
                self._update(cache, constant, self._ints([0, 0]))
        self._update(keys, key, self._key_start)
        self._update(values, value, self._value_start)
        scores = self._product(queries, keys, f"{head}.scores", params[f"{layer}.centered_scores"])
        real = self._op(Op.DEQUANTIZE, [scores], f"{head}.scores.real", scores.shape, schema.DequantizeOptionsT(), 2)
        if attention.softcap is not None:
            real = self._softcap(real, attention.softcap, f"{head}.scores.capped")
        masked = self._binary(Op.ADD, real, self._mask_of(attention), f"{head}.scores.masked")
        shares = self._softmax(masked, f"{head}.softmax")
        p = params[f"{layer}.probabilities"]
        options = schema.QuantizeOptionsT()
        stored = self._op(Op.QUANTIZE, [shares], f"{head}.shares", shares.shape, options, 2, p.dtype, per_tensor(p))
        mixed = self._product(stored, values, f"{head}.mixed", params[f"{layer}.o.in"])
        return self._reshape(mixed, (1, mixed.shape[0] * dim))

    def _prefix_rows(self, layer: int, head: int) -> tuple[_Int8Array, _Int8Array]:
        """The prefix's keys and values of one head as the cache stores them, (positions, head_dim) int8 each."""
        if not self._constants.prefix.positions:
            nothing = np.empty((0, self._config.blocks[layer].attention.head_dim), np.int8)
            return nothing, nothing
        rows = []
        for kind, tensor in zip(("keys", "v"), self._constants.prefix.layers[layer], strict=True):
            stored = self._params[f"layers.{layer}.{kind}"].quantize(tensor.reshape(tensor.shape[1], -1))
            rows.append(stored.reshape(tensor.shape[1:])[:, head].astype(np.int8))
        return rows[0], rows[1]

    def _update(self, cache: Tensor, rows: Tensor, start: Tensor) -> None:
        options = schema.DynamicUpdateSliceOptionsT()
        self._graph.operator(Op.DYNAMIC_UPDATE_SLICE, [cache, rows, start], [cache], options)

    def activate(self, x: Tensor, kind: ActivationKind) -> Tensor:
        """As in `Ops`, float32."""
        return self._activation(x, kind)

    def gated(self, gate: Tensor, up: Tensor, kind: ActivationKind) -> Tensor:
        """As in `Ops`, float32."""
        return self._binary(Op.MUL, self._activation(gate, kind), up, "gated")

    def scaled(self, x: Tensor, factor: float) -> Tensor:
        """As in `Ops`, float32."""
        return self._binary(Op.MUL, x, self._float("factor", [factor]), "scaled")

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """As in `Ops`, float32."""
        return self._softcap(x, cap, "capped")

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """The residual sum, float32."""
        return self._binary(Op.ADD, x, y, name)

    def turn(self, x: Tensor, name: str) -> Tensor:
        """Not supported: the head reads int16, whose steps are fine enough for channels of any size."""
        raise NotImplementedError

    def select_rows(self, x: Tensor) -> Tensor:
        """There is one."""
        return x

    def finish(self, logits: Tensor) -> None:
        """Declare the output."""
        self._graph.output("logits", logits)
