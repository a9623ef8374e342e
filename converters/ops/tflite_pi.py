"""Ops that emit the `pi` profile: float32 between matmuls whose weights are int8 and per channel, or int4 in blocks.

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
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, Subgraph, Tensor
from converters.network.config import Attention, NetworkConfig, Rope
from converters.network.weights import FloatArray
from converters.ops.tflite import MASKED, Op
from converters.ops.tflite_pi_parts import PiParts, QuantizedMatmul, Value

__all__ = ["EmbeddingRows", "PiConstants", "PiOps"]


@dataclass(frozen=True)
class EmbeddingRows:
    """A table whose rows are looked up."""

    rows: Constant  # int8 (rows, width)
    scale: Constant  # float32 (rows,)


@dataclass(frozen=True)
class PiConstants:
    """What all signatures of a model share."""

    matmuls: Mapping[int, QuantizedMatmul]  # by the number of the group
    embedding: EmbeddingRows
    # From a row of a head that shares its rows to its embedding: float32 (width, width), or (width,) by channel.
    embedding_map: Constant | None
    positions: EmbeddingRows | None  # learned positions
    ropes: Mapping[Rope, tuple[Constant, Constant]]  # cos and sin, float32 (positions, rotated), see `rope_tables`
    norms: Mapping[str, FloatArray]  # gains that are not part of the weights, by tensor name
    head_basis: Constant | None = None  # float32 (width, width): what is read by a head in a basis of its own


class PiOps(PiParts):
    """`Ops` over one signature."""

    SUPPORTS = PiParts.SUPPORTS | {"turned head"}

    def __init__(
        self,
        graph: Subgraph,
        constants: PiConstants,
        config: NetworkConfig,
        tokens: int,
        window: int,
        every_row: bool = False,
    ) -> None:
        """`every_row` gives logits of all tokens, not of the one that the input `row` names."""
        super().__init__(graph, constants.norms, constants.matmuls)
        self._constants = constants
        self._count, self._window = tokens, window
        self._tokens = graph.input("tokens", (tokens,), np.int32)
        self._position = graph.input("position", (1,), np.int32)
        self._row = graph.input("row", (1,), np.int32) if tokens > 1 and not every_row else None
        self._cache = []
        for i, block in enumerate(config.blocks):
            shape = (1, block.attention.kv_heads, window, block.attention.head_dim)
            keys, values = (graph.input(f"{kind}_{i}", shape, np.float32) for kind in "kv")
            self._cache.append((keys, values))
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._rows = self._positions() if config.ropes or config.embedding.positions else None
        self._turns = {rope: self._rotation(*tables) for rope, tables in constants.ropes.items()}
        self._mask = self._window_mask(self._position, window, newest=0)
        self._masks: dict[int, Tensor] = {}  # of sliding windows, by their size
        self._first_epsilon(config)

    # -- what all layers read ----------------------------------------------------------------------

    def _positions(self) -> Tensor:
        """The positions of these tokens, int32 (tokens,)."""
        if self._count == 1:
            return self._position
        offsets = self._graph.constant("offsets", np.arange(self._count, dtype=np.int32))
        (rows,) = self._graph.operator(
            Op.ADD, [self._position, offsets], [("positions", (self._count,), np.int32, None)], schema.AddOptionsT()
        )
        return rows

    def _rotation(self, cos_table: Constant, sin_table: Constant) -> tuple[Tensor, Tensor]:
        """cos and sin of these tokens' positions, (tokens, 1, rotated)."""
        assert self._rows is not None
        cos, sin = self._gather(cos_table, self._rows, "cos"), self._gather(sin_table, self._rows, "sin")
        shape = (self._count, 1, cos_table.shape[1])
        return self._reshape(cos, shape), self._reshape(sin, shape)

    def _mask_of(self, attention: Attention) -> Tensor:
        """What is added to scores against the cache."""
        if attention.window is None or attention.window >= self._window + self._count:
            return self._mask
        if attention.window not in self._masks:
            # The newest slot has age 0 and is one position before the first of these tokens.
            group = attention.heads // attention.kv_heads
            offsets = np.tile(np.arange(self._count, dtype=np.float32), group)[:, None]
            self._masks[attention.window] = self._sliding_mask(
                self._mask, attention.window - 2, offsets if self._count > 1 else None
            )
        return self._masks[attention.window]

    # -- Ops ---------------------------------------------------------------------------------------

    def embed(self) -> Value:
        """int8 rows times their scales."""
        c = self._constants
        x = self._embed_rows(self._tokens, c.embedding.rows, c.embedding.scale)
        if c.embedding_map is not None and len(c.embedding_map.shape) == 1:
            x = self._binary(Op.MUL, x, self._graph.constant("embed_map", c.embedding_map), "embed")
        elif c.embedding_map is not None:
            x = self._fully_connected(x, self._graph.constant("embed_map", c.embedding_map), None, "embed")
        if c.positions is not None:
            assert self._rows is not None
            positions = self._embed_rows(self._rows, c.positions.rows, c.positions.scale, "positions")
            x = self._binary(Op.ADD, x, positions, "embed_positions")
        return self._whole(x)

    def rope(self, q: Value, k: Value, attention: Attention) -> tuple[Value, Value]:
        """q and k turn together when they are neighbours in one tensor."""
        if q.tensor is k.tensor and q.start + q.width == k.start:
            both = self._rotate(Value(q.tensor, q.start, q.width + k.width), attention)
            return Value(both, 0, q.width), Value(both, q.width, k.width)
        return Value(self._rotate(q, attention), 0, q.width), Value(self._rotate(k, attention), 0, k.width)

    def _head_rows(self, value: Value, heads: int, a: Attention) -> Tensor:
        """(1, kv_heads, heads / kv_heads * tokens, head_dim): what belongs to a key head, as rows (head, token)."""
        target = (1, a.kv_heads, heads // a.kv_heads * self._count, a.head_dim)
        if len(value.tensor.shape) == 3:
            t = self._part(value.tensor, 1, value.start // a.head_dim, heads)
        else:
            t = self._materialize(value)
        if self._count > 1:  # one token's heads are in order already
            t = self._heads_first(self._reshape(t, (self._count, heads, a.head_dim)))
        return self._reshape(t, target)

    def _rotate(self, value: Value, a: Attention) -> Tensor:
        x = self._reshape(self._materialize(value), (self._count, value.width // a.head_dim, a.head_dim))
        assert a.rope is not None
        return self._rotated_heads(x, *self._turns[a.rope])

    def attend(self, q: Value, k: Value, v: Value, attention: Attention, layer: int) -> Value:
        """Scores against the cache and against the new keys, one softmax over both.

        The scale of the scores is part of the weights of q, or of its norm's gain.
        """
        c, name = attention, f"layers.{layer}"
        rows = self._count * c.heads // c.kv_heads  # queries that share a key head
        queries = self._head_rows(q, c.heads, c)
        keys, values = self._head_rows(k, c.kv_heads, c), self._head_rows(v, c.kv_heads, c)
        self._fresh.append((keys, values))
        cached_keys, cached_values = self._cache[layer]
        old = self._batch_matmul(queries, cached_keys, True, f"{name}.scores_old")  # (1, kv_heads, rows, window)
        if c.softcap is not None:
            old = self._softcap(old, c.softcap, f"{name}.scores_capped")
        old = self._binary(Op.ADD, old, self._mask_of(c), f"{name}.scores_masked")
        new = self._batch_matmul(queries, keys, True, f"{name}.scores_new")  # (1, kv_heads, rows, tokens)
        if c.softcap is not None:
            new = self._softcap(new, c.softcap, f"{name}.new_capped")
        if self._count > 1:
            causal = np.triu(np.full((self._count, self._count), -MASKED, np.float32), 1)
            if c.window is not None:
                causal += np.tril(np.full((self._count, self._count), -MASKED, np.float32), -c.window)
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

    def turn(self, x: Value, name: str) -> Value:
        """A matmul with float32 weights."""
        assert self._constants.head_basis is not None
        weight = self._graph.constant(f"{name}.weight", self._constants.head_basis)
        return self._whole(self._fully_connected(self._materialize(x), weight, None, name))

    def select_rows(self, x: Value) -> Value:
        """Where the graph has the input `row`, only the row that it names goes on to the head."""
        if self._row is None:
            return x
        t = self._materialize(x)
        (row,) = self._graph.operator(
            Op.GATHER, [t, self._row], [("last", (1, t.shape[1]), np.float32, None)], schema.GatherOptionsT()
        )
        return self._whole(row)

    def finish(self, logits: Value) -> None:
        """Declare the outputs: the logits, and the caches with the new rows in them."""
        self._outputs_with_cache(logits, self._position, self._fresh, self._cache)
