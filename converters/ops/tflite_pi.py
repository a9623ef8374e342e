"""Ops that emit the `pi` profile: float32 between matmuls whose weights are int8 and per channel.

The kernel quantizes each row of activations on the fly. One reading emits one signature, for a fixed
number of tokens and a fixed window of the cache; all signatures of a model share their constants.

Attention reads the cache as it was before these tokens and the new keys and values beside it, and the
cache is updated only at the end of the graph. So everything up to the logits is one unbroken stretch
for XNNPACK, which cannot run DYNAMIC_UPDATE_SLICE itself: a cache updated inside each layer would cut
the stretch in two places a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, Quantization, Subgraph, Tensor
from converters.network.decoder import NetworkConfig
from converters.ops.tflite import MASKED, Op, TfliteOps, rope_tables

__all__ = ["ColumnRange", "PiConstants", "PiOps", "QuantizedMatmul", "rope_tables"]


@dataclass(frozen=True)
class ColumnRange:
    """Some columns of the weights of a matmul, and so some channels of what it reads, quantized on their own."""

    start: int
    size: int
    weight: Constant  # int8 (sum of rows, size)
    scale: npt.NDArray[np.float32]  # (sum of rows,)


@dataclass(frozen=True)
class QuantizedMatmul:
    """Weights of one or more matmuls that read the same input, stacked by rows."""

    ranges: tuple[ColumnRange, ...]  # of all columns, in order
    bias: Constant | None  # float32 (sum of rows,)
    rows: tuple[int, ...]  # of each matmul


@dataclass(frozen=True)
class PiConstants:
    """What all signatures of a model share."""

    matmuls: Mapping[tuple[str, ...], QuantizedMatmul]  # by the names in one call of `Ops.linear`
    embedding: Constant  # int8 (vocabulary, width)
    embedding_scale: Constant  # float32 (vocabulary,)
    embedding_map: Constant | None  # float32 (width, width): from a row of a head that shares its rows to its embedding
    cos: Constant  # float32 (positions, head_dim)
    sin: Constant  # float32 (positions, head_dim); the first half negated, as `rope` needs it


@dataclass(frozen=True)
class _Value:
    """A tensor of shape (tokens, width), or some columns of one; after RoPE it is (tokens, heads, head_dim)."""

    tensor: Tensor
    start: int = 0
    width: int = 0


class PiOps(TfliteOps):
    """`Ops` over one signature."""

    def __init__(
        self, graph: Subgraph, constants: PiConstants, config: NetworkConfig, tokens: int, window: int
    ) -> None:
        super().__init__(graph, config)
        self._constants = constants
        self._count, self._window = tokens, window
        self._tokens = graph.input("tokens", (tokens,), np.int32)
        self._position = graph.input("position", (1,), np.int32)
        self._row = graph.input("row", (1,), np.int32) if tokens > 1 else None
        cache_shape = (1, config.kv_heads, window, config.head_dim)
        self._cache = [
            (graph.input(f"k_{i}", cache_shape, np.float32), graph.input(f"v_{i}", cache_shape, np.float32))
            for i in range(config.layers)
        ]
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._cos, self._sin = self._rotation()
        self._mask = self._window_mask(self._position, window, newest=0)
        self._epsilon = self._float("epsilon", [config.norm_epsilon])

    # -- small things ------------------------------------------------------------------------------

    def _heads_first(self, x: Tensor) -> Tensor:
        """(tokens, heads, head_dim) -> (heads, tokens, head_dim), or back."""
        tokens, heads, dim = x.shape
        return self._op(
            Op.TRANSPOSE, [x, self._ints([1, 0, 2])], x.name, (heads, tokens, dim), schema.TransposeOptionsT()
        )

    def _materialize(self, value: _Value) -> Tensor:
        return self._columns(value.tensor, value.start, value.width)

    def _whole(self, tensor: Tensor) -> _Value:
        return _Value(tensor, 0, tensor.shape[-1])

    # -- what all layers read ----------------------------------------------------------------------

    def _rotation(self) -> tuple[Tensor, Tensor]:
        """cos and sin of these tokens' positions, (tokens, 1, head_dim)."""
        rows = self._position
        if self._count > 1:
            offsets = self._graph.constant("offsets", np.arange(self._count, dtype=np.int32))
            (rows,) = self._graph.operator(
                Op.ADD, [rows, offsets], [("positions", (self._count,), np.int32, None)], schema.AddOptionsT()
            )
        shape = (self._count, 1, self._config.head_dim)
        cos, sin = self._gather(self._constants.cos, rows, "cos"), self._gather(self._constants.sin, rows, "sin")
        return self._reshape(cos, shape), self._reshape(sin, shape)

    # -- Ops ---------------------------------------------------------------------------------------

    def embed(self) -> _Value:
        """int8 rows times their scales."""
        c = self._constants
        rows = self._embed_rows(self._tokens, c.embedding, c.embedding_scale)
        if c.embedding_map is None:
            return self._whole(rows)
        return self._whole(
            self._fully_connected(rows, self._graph.constant("embed_map", c.embedding_map), None, "embed")
        )

    def rms_norm(self, x: _Value, name: str) -> _Value:
        """Five operators, all float32; the gain is part of the weights that read the result."""
        return self._whole(self._norm(self._materialize(x), name))

    def linear(self, x: _Value, *names: str) -> tuple[_Value, ...]:
        """One FULLY_CONNECTED for all names, or a sum of some; each result is a range of its columns."""
        m = self._constants.matmuls[names]
        t = self._materialize(x)
        bias = None if m.bias is None else self._graph.constant(f"{names[0]}.bias", m.bias)
        total: Tensor | None = None
        for part in m.ranges:
            quantization = Quantization.per_channel(part.scale)
            weight = self._graph.constant(f"{names[0]}.weight", part.weight, quantization)
            product = self._fully_connected(self._columns(t, part.start, part.size), weight, bias, "+".join(names))
            total = product if total is None else self._binary(Op.ADD, total, product, "+".join(names))
            bias = None
        assert total is not None
        starts = np.cumsum([0, *m.rows])
        return tuple(_Value(total, int(start), rows) for start, rows in zip(starts, m.rows, strict=False))

    def _fully_connected(self, x: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
        """x @ weight.T + bias; with int8 weights each row of x is quantized as it comes."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        options.asymmetricQuantizeInputs = True
        shape = (x.shape[0], weight.shape[0])
        (out,) = self._graph.operator(
            Op.FULLY_CONNECTED, [x, weight, bias], [(name, shape, np.float32, None)], options, 9
        )
        return out

    def rope(self, q: _Value, k: _Value) -> tuple[_Value, _Value]:
        """q and k turn together when they are neighbours in one tensor."""
        if q.tensor is k.tensor and q.start + q.width == k.start:
            both = self._rotate(_Value(q.tensor, q.start, q.width + k.width))
            return _Value(both, 0, q.width), _Value(both, q.width, k.width)
        return _Value(self._rotate(q), 0, q.width), _Value(self._rotate(k), 0, k.width)

    def _head_rows(self, value: _Value, heads: int) -> Tensor:
        """(1, kv_heads, heads / kv_heads * tokens, head_dim): what belongs to a key head, as rows (head, token)."""
        c = self._config
        target = (1, c.kv_heads, heads // c.kv_heads * self._count, c.head_dim)
        if len(value.tensor.shape) == 3:
            t = self._part(value.tensor, 1, value.start // c.head_dim, heads)
        else:
            t = self._materialize(value)
        if self._count > 1:  # one token's heads are in order already
            t = self._heads_first(self._reshape(t, (self._count, heads, c.head_dim)))
        return self._reshape(t, target)

    def _rotate(self, value: _Value) -> Tensor:
        dim = self._config.head_dim
        x = self._reshape(self._materialize(value), (self._count, value.width // dim, dim))
        return self._turned(x, self._cos, self._sin)

    def attend(self, q: _Value, k: _Value, v: _Value, layer: int) -> _Value:
        """Scores against the cache and against the new keys, one softmax over both."""
        c, name = self._config, f"layers.{layer}"
        rows = self._count * c.heads // c.kv_heads  # queries that share a key head
        queries = self._head_rows(q, c.heads)
        keys, values = self._head_rows(k, c.kv_heads), self._head_rows(v, c.kv_heads)
        self._fresh.append((keys, values))
        cached_keys, cached_values = self._cache[layer]
        old = self._batch_matmul(queries, cached_keys, True, f"{name}.scores_old")  # (1, kv_heads, rows, window)
        old = self._binary(Op.ADD, old, self._mask, f"{name}.scores_masked")
        new = self._batch_matmul(queries, keys, True, f"{name}.scores_new")  # (1, kv_heads, rows, tokens)
        if self._count > 1:
            causal = np.triu(np.full((self._count, self._count), -MASKED, np.float32), 1)
            tiled = np.tile(causal, (rows // self._count, 1))  # rows are (query head, token)
            new = self._binary(Op.ADD, new, self._float("causal", tiled[None, None]), f"{name}.scores_causal")
        scores = self._concat([old, new], f"{name}.scores")
        weights = self._softmax(scores, f"{name}.probabilities")
        from_old = self._batch_matmul(self._columns(weights, 0, self._window), cached_values, False, f"{name}.from_old")
        from_new = self._batch_matmul(
            self._columns(weights, self._window, self._count), values, False, f"{name}.from_new"
        )
        mixed = self._binary(Op.ADD, from_old, from_new, f"{name}.attention")  # (1, kv_heads, rows, head_dim)
        if self._count > 1:
            mixed = self._reshape(mixed, (c.heads, self._count, c.head_dim))
            mixed = self._heads_first(mixed)
        return self._whole(self._reshape(mixed, (self._count, c.q_width)))

    def gated_silu(self, gate: _Value, up: _Value) -> _Value:
        """gate * sigmoid(gate) * up."""
        return self._whole(self._silu_product(self._materialize(gate), self._materialize(up)))

    def add(self, x: _Value, y: _Value, name: str) -> _Value:
        """The residual sum."""
        return self._whole(self._binary(Op.ADD, self._materialize(x), self._materialize(y), name))

    def select_rows(self, x: _Value) -> _Value:
        """Of many tokens only the row named by the input `row` goes on to the head."""
        if self._row is None:
            return x
        t = self._materialize(x)
        (row,) = self._graph.operator(
            Op.GATHER, [t, self._row], [("last", (1, t.shape[1]), np.float32, None)], schema.GatherOptionsT()
        )
        return self._whole(row)

    def finish(self, logits: _Value) -> None:
        """Declare the outputs: the logits, and the caches with the new rows in them."""
        self._graph.output("logits", self._materialize(logits))
        start = self._graph.operator(
            Op.CONCATENATION,
            [self._ints([0, 0]), self._position, self._ints([0])],
            [("cache_start", (4,), np.int32, None)],
            schema.ConcatenationOptionsT(),
        )[0]
        for i, (fresh, cached) in enumerate(zip(self._fresh, self._cache, strict=True)):
            for kind, rows, cache in zip("kv", fresh, cached, strict=True):
                (out,) = self._graph.operator(
                    Op.DYNAMIC_UPDATE_SLICE, [cache, rows, start], [(f"{kind}_{i}", cache.shape, np.float32, None)],
                    schema.DynamicUpdateSliceOptionsT(), 2,
                )  # fmt: skip
                self._graph.output(f"{kind}_{i}", out)
