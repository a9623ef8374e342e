"""Ops that emit the `micro` profile: integer matmuls with static grids, float32 between them.

One reading emits the signature `decode`: one token in, its logits out. The same file runs in TFLite Micro,
tflite-runtime 2.14 and LiteRT, so only operators, types and operator versions that all three have are used.

    the matmuls       FULLY_CONNECTED, int8 weights per channel, int8 activations per tensor
    o, down, the head the same weights with int16 activations (`INT16_MATMULS`). Their sums are 32 bits wide in
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
from converters.network.decoder import NetworkConfig
from converters.ops.numpy import FloatArray, KvCache
from converters.ops.tflite import Op, TfliteOps
from converters.quantize.activations import down_ranges
from converters.quantize.grids import Grid, Grids

_Int8Array = npt.NDArray[np.int8]

__all__ = ["MicroConstants", "MicroMatmul", "MicroOps"]

_FULLY_CONNECTED_VERSION = 9  # the highest that tflite-runtime 2.14 registers; its kernel does per-channel weights
_MOST_CONCATENATED = 10  # operands of one CONCATENATION in TFLite Micro


@dataclass(frozen=True)
class MicroMatmul:
    """One matmul. Attention's 1 / sqrt(head_dim) is already in the scale and the bias of `q`."""

    weight: Constant  # int8 (out, in); its columns are multiplied by the factors of the input's grid
    scale: FloatArray  # (out,)
    # (out,), with what the centers of the input add and those of the result take away; it is quantized when the
    # input's scale is known
    bias: FloatArray | None
    largest_sum: int  # max over rows of the sum of |weight|


@dataclass(frozen=True)
class MicroConstants:
    """What the graph is made of."""

    matmuls: Mapping[str, MicroMatmul]
    embedding: Constant  # int8 (vocabulary, width)
    embedding_scale: Constant  # float32 (vocabulary,)
    # (width, width): from a row of a tied head to that token's embedding, as the sum of these matmuls
    embedding_map: tuple[MicroMatmul, ...]
    cos: Constant  # float32 (context, head_dim)
    sin: Constant  # float32 (context, head_dim); see `rope_tables`
    prefix: KvCache  # one sequence, in float


class MicroOps(TfliteOps):
    """`Ops` over the signature `decode`."""

    def __init__(
        self, graph: Subgraph, constants: MicroConstants, config: NetworkConfig, grids: Grids, context: int
    ) -> None:
        super().__init__(graph, config)
        self._constants, self._grids, self._context = constants, grids, context
        self._token = graph.input("token", (1,), np.int32)
        self._position = graph.input("position", (1,), np.int32)
        self._epsilon = self._float("epsilon", [config.norm_epsilon])
        shape = (1, 1, config.head_dim)
        self._cos = self._reshape(self._gather(constants.cos, self._position, "cos"), shape)
        self._sin = self._reshape(self._gather(constants.sin, self._position, "sin"), shape)
        self._mask = self._reshape(self._window_mask(self._position, context, newest=1), (1, context))
        zero = self._ints([0])
        self._key_start = self._concat([self._position, zero], "key_start")
        self._value_start = self._concat([zero, self._position], "value_start")

    # -- between float32 and integers --------------------------------------------------------------

    def _stored(self, x: Tensor, name: str) -> Tensor:
        """float32 -> integers on the grid of `name`."""
        grid = self._grids[name]
        if grid.centers is not None:
            x = self._binary(Op.SUB, x, self._float(f"{name}.centers", grid.centers), f"{name}.centered")
        if grid.factors is not None:
            x = self._binary(Op.MUL, x, self._float(f"{name}.inverse", 1 / grid.factors), f"{name}.even")
        version = 1 if grid.dtype == np.int8 else 2
        return self._op(
            Op.QUANTIZE, [x], name, x.shape, schema.QuantizeOptionsT(), version, grid.dtype, grid.quantization
        )

    def _real(self, x: Tensor, name: str) -> Tensor:
        """Integers on the grid of `name` -> float32."""
        grid = self._grids[name]
        real = self._op(Op.DEQUANTIZE, [x], f"{name}.real", x.shape, schema.DequantizeOptionsT(), 2)
        if grid.factors is not None:
            real = self._binary(Op.MUL, real, self._float(f"{name}.factors", grid.factors), f"{name}.whole")
        if grid.centers is not None:
            real = self._binary(Op.ADD, real, self._float(f"{name}.centers", grid.centers), f"{name}.moved")
        return real

    # -- Ops ---------------------------------------------------------------------------------------

    def embed(self) -> Tensor:
        """int8 rows times their scales; a row that the head shares goes through a matmul into its own basis."""
        c = self._constants
        row = self._embed_rows(self._token, c.embedding, c.embedding_scale)
        if not c.embedding_map:
            return row
        stored = self._stored(row, "embed.in")
        names = [f"embed.{i}" for i in range(len(c.embedding_map))]
        parts = [self._fully_connected(stored, n, m) for n, m in zip(names, c.embedding_map, strict=True)]
        total, *rest = [self._real(part, part.name) for part in parts]
        for part in rest:
            total = self._binary(Op.ADD, total, part, "embedding")
        return total

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        """As in `Ops`, float32; the gains are part of the weights."""
        return self._norm(x, name)

    def linear(self, x: Tensor, *names: str) -> tuple[Tensor, ...]:
        """One FULLY_CONNECTED for each name, because each result has a grid of its own."""
        if names[0].endswith(".down"):
            return (self._down(x, names[0]),)
        stored = x if names[0].endswith(".o") else self._stored(x, f"{names[0]}.in")
        results = [self._fully_connected(stored, name, self._constants.matmuls[name]) for name in names]
        kept = (".v", "head")  # values go into the cache, and logits out, as they are
        return tuple(r if r.name.endswith(kept) else self._real(r, r.name) for r in results)

    def _down(self, x: Tensor, name: str) -> Tensor:
        """The sum over ranges of columns, each on a grid of its own: `factors` are alike within a range."""
        grid, total = self._grids[f"{name}.in"], None
        for i, (start, stop) in enumerate(down_ranges(x.shape[1])):
            scale = grid.scale if grid.factors is None else grid.scale * float(grid.factors[start])
            own = Quantization.per_tensor(scale)
            part, options = self._columns(x, start, stop - start, f"{name}.{i}.real"), schema.QuantizeOptionsT()
            stored = self._op(Op.QUANTIZE, [part], f"{name}.{i}.in", part.shape, options, 2, grid.dtype, own)
            matmul = self._constants.matmuls[f"{name}.{i}"]
            real = self._real(self._fully_connected(stored, f"{name}.{i}", matmul), f"{name}.{i}")
            total = real if total is None else self._binary(Op.ADD, total, real, f"{name}.sum")
        assert total is not None
        return total

    def _fully_connected(self, x: Tensor, name: str, m: MicroMatmul) -> Tensor:
        grid = self._grids[name]
        scale = m.scale if grid.factors is None else m.scale / grid.factors  # the result comes out divided
        weight = self._graph.constant(f"{name}.weight", m.weight, Quantization.per_channel(scale))
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        (out,) = self._graph.operator(
            Op.FULLY_CONNECTED,
            [x, weight, self._bias(x, name, m, scale)],
            [(name, (1, m.weight.shape[0]), grid.dtype, grid.quantization)],
            options,
            _FULLY_CONNECTED_VERSION,
        )
        return out

    def _bias(self, x: Tensor, name: str, m: MicroMatmul, scale: FloatArray) -> Tensor | None:
        """The bias on the grid of the sums: int32, or int64 where 32 bits may not hold a sum of int16 products."""
        assert x.quantization is not None
        wide = x.dtype == np.int16 and m.largest_sum * 32768 >= 2**31
        if m.bias is None and not wide:
            return None
        step = x.quantization.scale[0]
        # Factors divide the bias and its grid alike, so they do not change the stored numbers.
        bias = np.zeros(len(scale)) if m.bias is None else np.rint(m.bias / (m.scale * step).astype(np.float64))
        limits = np.iinfo(np.int64 if x.dtype == np.int16 else np.int32)
        values = np.clip(bias, limits.min / 2, limits.max / 2).astype(limits.dtype)
        return self._graph.constant(f"{name}.bias", values, Quantization.per_channel(scale * step))

    def rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """In float32, from a table's row."""
        return self._rotate(q), self._rotate(k)

    def _rotate(self, x: Tensor) -> Tensor:
        dim = self._config.head_dim
        heads = self._reshape(x, (1, x.shape[1] // dim, dim))
        return self._reshape(self._turned(heads, self._cos, self._sin, f"{x.name}.rope"), x.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Query heads that share a key head are rows of one product. int16, as `o` reads it."""
        c, name = self._config, f"layers.{layer}"
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
                    self._part(queries, 0, start, group, f"{name}.head_{head}.queries"),
                    self._part(keys, 0, head, 1, f"{name}.head_{head}.new_key"),
                    self._reshape(self._part(values, 0, head, 1, f"{name}.head_{head}.new_value"), (dim, 1)),
                    old,
                )
            )
        while len(mixed) > 1:
            parts = [mixed[i : i + _MOST_CONCATENATED] for i in range(0, len(mixed), _MOST_CONCATENATED)]
            mixed = [self._concat(part, f"{name}.o.in") if len(part) > 1 else part[0] for part in parts]
        return mixed[0]

    def _attend_head(
        self, head: str, layer: str, queries: Tensor, key: Tensor, value: Tensor, prefix: tuple[_Int8Array, _Int8Array]
    ) -> Tensor:
        """One key head: queries (group, head_dim) int16 -> (1, group * head_dim) int16, on the grid of `o.in`."""
        dim, grids = self._config.head_dim, self._grids
        keys = self._graph.variable(f"{head}.keys", (self._context, dim), np.int8, key.quantization)
        values = self._graph.variable(f"{head}.values", (dim, self._context), np.int8, value.quantization)
        for cache, rows in ((keys, prefix[0]), (values, prefix[1].T)):
            if rows.size:
                constant = self._graph.constant(f"{cache.name}.prefix", np.ascontiguousarray(rows), cache.quantization)
                self._update(cache, constant, self._ints([0, 0]))
        self._update(keys, key, self._key_start)
        self._update(values, value, self._value_start)
        scores = self._product(queries, keys, f"{head}.scores", grids[f"{layer}.centered_scores"])
        real = self._op(Op.DEQUANTIZE, [scores], f"{head}.scores.real", scores.shape, schema.DequantizeOptionsT(), 2)
        shares = self._softmax(self._binary(Op.ADD, real, self._mask, f"{head}.scores.masked"), f"{head}.softmax")
        on_shares = grids[f"{layer}.probabilities"]
        options = schema.QuantizeOptionsT()
        stored = self._op(
            Op.QUANTIZE, [shares], f"{head}.shares", shares.shape, options, 2, on_shares.dtype, on_shares.quantization
        )
        mixed = self._product(stored, values, f"{head}.mixed", grids[f"{layer}.o.in"])
        return self._reshape(mixed, (1, mixed.shape[0] * dim))

    def _product(self, x: Tensor, cache: Tensor, name: str, grid: Grid) -> Tensor:
        """int16 rows by the int8 cache: FULLY_CONNECTED with weights that change."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        shape, quantization = (x.shape[0], cache.shape[0]), grid.quantization
        return self._op(
            Op.FULLY_CONNECTED, [x, cache], name, shape, options, _FULLY_CONNECTED_VERSION, grid.dtype, quantization
        )

    def _prefix_rows(self, layer: int, head: int) -> tuple[_Int8Array, _Int8Array]:
        """The prefix's keys and values of one head as the cache stores them, (positions, head_dim) int8 each."""
        if not self._constants.prefix.positions:
            nothing = np.empty((0, self._config.head_dim), np.int8)
            return nothing, nothing
        rows = []
        for kind, tensor in zip(("keys", "v"), self._constants.prefix.layers[layer], strict=True):
            stored = self._grids[f"layers.{layer}.{kind}"].stored(tensor.reshape(tensor.shape[1], -1))
            rows.append(stored.reshape(tensor.shape[1:])[:, head].astype(np.int8))
        return rows[0], rows[1]

    def _update(self, cache: Tensor, rows: Tensor, start: Tensor) -> None:
        options = schema.DynamicUpdateSliceOptionsT()
        self._graph.operator(Op.DYNAMIC_UPDATE_SLICE, [cache, rows, start], [cache], options)

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """As in `Ops`, float32."""
        return self._silu_product(gate, up)

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """The residual sum, float32."""
        return self._binary(Op.ADD, x, y, name)

    def select_rows(self, x: Tensor) -> Tensor:
        """There is one."""
        return x

    def finish(self, logits: Tensor) -> None:
        """Declare the output."""
        self._graph.output("logits", logits)
