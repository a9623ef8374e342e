"""Ops that emit the `pi` profile: float32 between matmuls whose weights are int8 and per channel, or int4 in blocks.

The kernel quantizes each row of activations on the fly. One graph serves runs for one token, for a few and for many,
and a cache of any size: before a run its inputs are made as long as is needed. `tokens` come one after the other, at
`positions`; `rows` are the tokens whose logits are wanted; `k_0`, `v_0` … are the cache, and `slots` counts its
positions from one.

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

from converters.emit.tflite_write import Constant, Quantization, Subgraph, Tensor
from converters.network.config import Attention, NetworkConfig, Rope
from converters.network.weights import FloatArray
from converters.ops.tflite import Op
from converters.ops.tflite_pi_parts import PiParts, QuantizedMatmul, Value

__all__ = ["EmbeddingRows", "PiConstants", "PiOps"]


@dataclass(frozen=True)
class EmbeddingRows:
    """A table whose rows are looked up."""

    rows: Constant  # int8 (rows, width)
    scale: Constant  # float32 (rows,)


@dataclass(frozen=True)
class CacheConstants:
    """How a layer's keys and values are stored, see quantize/cache_ranges.py; the rest is part of the weights."""

    key_offset: FloatArray  # (kv_heads, 1, head_dim), taken away from the keys after RoPE
    key_scale: float
    value_scale: float


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
    cache: tuple[CacheConstants, ...]  # of each layer
    head_basis: Constant | None = None  # float32 (width, width): what is read by a head in a basis of its own


class PiOps(PiParts):
    """`Ops` over one signature."""

    SUPPORTS = PiParts.SUPPORTS | {"turned head"}

    any_rows = True

    def __init__(
        self, graph: Subgraph, constants: PiConstants, config: NetworkConfig, tokens: int, window: int, context: int
    ) -> None:
        """A graph for at most `tokens` tokens a run and `context` positions; `window` is what it is written with."""
        super().__init__(graph, constants.norms, constants.matmuls)
        self._constants = constants
        self._count, self._context = tokens, context
        self._tokens = graph.input("tokens", (tokens,), np.int32, resizable=0)
        self._positions = graph.input("positions", (tokens,), np.int32, resizable=0)
        self._rows = graph.input("rows", (1,), np.int32, resizable=0)
        slots = graph.input("slots", (window,), np.float32, resizable=0)
        self._cache = []
        for i, block in enumerate(config.blocks):
            shape = (1, block.attention.kv_heads, window, block.attention.head_dim)
            scales = (constants.cache[i].key_scale, constants.cache[i].value_scale)
            keys, values = (
                graph.input(f"{kind}_{i}", shape, np.int8, Quantization.per_tensor(scale), resizable=2)
                for kind, scale in zip("kv", scales, strict=True)
            )
            self._cache.append((keys, values))
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._by_head: dict[int, Tensor] = {}  # what `_heads` has made, by the tensor that it was made of
        self._fillings: dict[tuple[int, ...], Tensor] = {}  # zeros, by their shape
        self._masks: dict[tuple[int, int | None], Tensor] = {}  # by query heads a key head, and sliding window
        self._turns = {rope: self._rotation(*tables) for rope, tables in constants.ropes.items()}
        self._position = self._part(self._positions, 0, 0, 1, "position")
        self._mask_parts(slots)
        self._first_epsilon(config)

    # -- what all layers read ----------------------------------------------------------------------

    def _part(self, x: Tensor, axis: int, start: int, size: int, name: str = "") -> Tensor:
        """Says of the other axes only that they are taken whole, however long they are."""
        if (start, size) == (0, x.shape[axis]):
            return x
        return self._cut(x, axis, start, start + size, name)

    def _cut(self, x: Tensor, axis: int, start: int, stop: int | None, name: str) -> Tensor:
        """`start` to `stop`, or to the end, of one axis, and all of the others."""
        rank, shape = len(x.shape), list(x.shape)
        begin, end = [0] * rank, [0] * rank
        shape[axis] = (x.shape[axis] if stop is None else stop) - start
        begin[axis], end[axis] = start, stop or 0
        options = schema.StridedSliceOptionsT()
        options.beginMask = options.endMask = (1 << rank) - 1
        options.beginMask -= (start > 0) << axis
        options.endMask -= (stop is not None) << axis
        operands = [x, self._ints(begin), self._ints(end), self._ints([1] * rank)]
        return self._moved(Op.STRIDED_SLICE, operands, name or x.name, tuple(shape), options)

    def _rotation(self, cos_table: Constant, sin_table: Constant) -> tuple[Tensor, Tensor]:
        """cos and sin of these tokens' positions, (1, tokens, rotated)."""
        cos, sin = self._gather(cos_table, self._positions, "cos"), self._gather(sin_table, self._positions, "sin")
        shape = (1, self._count, cos_table.shape[1])
        return self._reshape(cos, shape, rows=1), self._reshape(sin, shape, rows=1)

    def _mask_parts(self, slots: Tensor) -> None:
        """What the masks of all layers are made of: ages, in positions."""
        here = self._cast(self._positions, "positions_float")
        rows = self._reshape(here, (1, 1, self._count, 1), rows=2)
        first = self._reshape(self._cast(self._position, "first_float"), (1, 1, 1, 1))
        self._behind_first = self._binary(Op.SUB, rows, first, "behind_first")  # (1, 1, tokens, 1)
        places = self._float("places", np.arange(self._count).reshape(1, 1, 1, -1))
        self._age_of_new = self._binary(Op.SUB, self._behind_first, places, "new_age")  # (1, 1, tokens, `tokens`)
        filled = self._reshape(slots, (1, 1, 1, slots.shape[0]), rows=3)
        self._age_of_old = self._binary(Op.SUB, first, filled, "slot_age")  # (1, 1, 1, window), of the first token

    def _mask_of(self, attention: Attention) -> Tensor:
        """What is added to scores, (1, 1, rows, `tokens` + window): against the new keys and against the cache.

        Rows are (query head of a key head, token).
        """
        sliding = attention.window
        if sliding is not None and sliding >= self._context:
            sliding = None
        heads = attention.heads // attention.kv_heads
        if (heads, sliding) not in self._masks:
            zeros = self._binary(Op.MUL, self._behind_first, self._float("zero", [0.0]), "no_mask")
            old = self._binary(Op.ADD, self._masked_below_zero(self._age_of_old), zeros, "mask_old")
            new = self._masked_below_zero(self._age_of_new)
            if sliding is not None:
                # The newest slot has age 0 and is one position before the first of these tokens.
                age = self._binary(Op.ADD, self._age_of_old, self._behind_first, "row_age")
                old = self._sliding_mask(old, age, sliding - 2)
                new = self._sliding_mask(new, self._age_of_new, sliding - 1)
            mask = self._concat([new, old], "mask_tokens")
            if heads > 1:
                options = schema.ConcatenationOptionsT()
                options.axis = 2
                shape = (1, 1, heads * self._count, mask.shape[3])
                mask = self._moved(Op.CONCATENATION, [mask] * heads, "mask", shape, options)
            self._masks[heads, sliding] = mask
        return self._masks[heads, sliding]

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
            positions = self._embed_rows(self._positions, c.positions.rows, c.positions.scale, "positions")
            x = self._binary(Op.ADD, x, positions, "embed_positions")
        return self._whole(x)

    def rope(self, q: Value, k: Value, attention: Attention) -> tuple[Value, Value]:
        """q and k turn together when they are neighbours in one tensor. The results are (heads, tokens, head_dim)."""
        if q.tensor is k.tensor and q.start + q.width == k.start:
            both = self._rotate(Value(q.tensor, q.start, q.width + k.width), attention)
            return Value(both, 0, q.width), Value(both, q.width, k.width)
        return Value(self._rotate(q, attention), 0, q.width), Value(self._rotate(k, attention), 0, k.width)

    def _heads(self, value: Value, head_dim: int) -> Tensor:
        """(heads, tokens, head_dim); all of the value's tensor is turned, once."""
        if len(value.tensor.shape) == 3:
            t = value.tensor
        elif value.tensor.index in self._by_head:
            t = self._by_head[value.tensor.index]
        else:
            apart = (self._count, value.tensor.shape[1] // head_dim, head_dim)
            t = self._heads_first(self._reshape(value.tensor, apart, rows=0))
            self._by_head[value.tensor.index] = t
        return self._part(t, 0, value.start // head_dim, value.width // head_dim)

    def _head_rows(self, value: Value, a: Attention) -> Tensor:
        """(1, kv_heads, heads / kv_heads * tokens, head_dim): what belongs to a key head, as rows (head, token)."""
        heads = value.width // a.head_dim
        target = (1, a.kv_heads, heads // a.kv_heads * self._count, a.head_dim)
        return self._reshape(self._heads(value, a.head_dim), target, rows=2)

    def _rotate(self, value: Value, a: Attention) -> Tensor:
        assert a.rope is not None
        return self._rotated_heads(self._heads(value, a.head_dim), *self._turns[a.rope])

    def attend(self, q: Value, k: Value, v: Value, attention: Attention, layer: int) -> Value:
        """Scores against the new keys and against the cache, one softmax over both.

        The new keys and values are used as the cache will have them, so that it does not matter how many tokens come in
        one run.

        A slice begins at a fixed place, and both parts may have any length: so the new keys are filled up with zeros,
        which the mask hides. The scale of the scores is part of the weights of q, or of its norm's gain if it has one.
        """
        c, name = attention, f"layers.{layer}"
        queries, keys, values = (self._head_rows(x, c) for x in (q, k, v))
        if c.qk_norm is not None and not c.qk_norm.gain:
            queries = self._binary(Op.MUL, queries, self._float("score_scale", [c.score_scale]), f"{name}.queries")
        keys = self._binary(Op.SUB, keys, self._float("key_offset", self._constants.cache[layer].key_offset), "keys")
        of_keys, of_values = self._cache[layer]
        stored_keys, stored_values = self._stored(keys, of_keys), self._stored(values, of_values)
        self._fresh.append((stored_keys, stored_values))
        keys, values = self._floats(stored_keys), self._floats(stored_values)
        cached_keys, cached_values = self._cached_floats(of_keys), self._cached_floats(of_values)
        new = self._batch_matmul(queries, self._filled_up(keys), True, f"{name}.scores_new")
        old = self._batch_matmul(queries, cached_keys, True, f"{name}.scores_old")  # (1, kv_heads, rows, window)
        scores = self._concat([new, old], f"{name}.scores")
        if c.softcap is not None:
            scores = self._softcap(scores, c.softcap, f"{name}.scores_capped")
        scores = self._binary(Op.ADD, scores, self._mask_of(c), f"{name}.scores_masked")
        weights = self._softmax(scores, f"{name}.probabilities")
        of_new = self._cut(weights, 3, 0, self._count, f"{name}.probabilities_new")
        of_old = self._cut(weights, 3, self._count, None, f"{name}.probabilities_old")
        from_new = self._batch_matmul(of_new, self._filled_up(values), False, f"{name}.from_new")
        from_old = self._batch_matmul(of_old, cached_values, False, f"{name}.from_old")
        mixed = self._binary(Op.ADD, from_old, from_new, f"{name}.attention")  # (1, kv_heads, rows, head_dim)
        mixed = self._heads_first(self._reshape(mixed, (c.heads, self._count, c.head_dim), rows=1))
        return self._whole(self._reshape(mixed, (self._count, c.q_width), rows=0))

    def _stored(self, x: Tensor, cache: Tensor) -> Tensor:
        """int8, with the cache's scale."""
        return self._op(
            Op.QUANTIZE, [x], f"{x.name}.stored", x.shape, schema.QuantizeOptionsT(), 2, np.int8, cache.quantization
        )

    def _floats(self, x: Tensor) -> Tensor:
        return self._op(Op.DEQUANTIZE, [x], f"{x.name}.floats", x.shape, schema.DequantizeOptionsT(), 2)

    def _cached_floats(self, cache: Tensor) -> Tensor:
        """The RESHAPE changes nothing, but without it XNNPACK 2.3 takes back the caches of all layers before the first
        layer, and has them and what it packs of them all at once: 32 MB for 12 of floats."""
        floats, options = self._floats(cache), schema.ReshapeOptionsT()
        written = [-1 if axis == 2 else size for axis, size in enumerate(cache.shape)]
        options.newShape = np.array(written, np.int32)
        return self._moved(Op.RESHAPE, [floats, self._ints(written)], floats.name, cache.shape, options)

    def _filled_up(self, x: Tensor) -> Tensor:
        """(1, kv_heads, tokens of a run, head_dim) and zeros, up to the most tokens that a run may have."""
        if x.shape not in self._fillings:
            self._fillings[x.shape] = self._float("filling", np.zeros(x.shape))
        options = schema.ConcatenationOptionsT()
        options.axis = 2
        longer = (*x.shape[:2], 2 * self._count, x.shape[3])
        both = self._moved(Op.CONCATENATION, [x, self._fillings[x.shape]], f"{x.name}.longer", longer, options)
        return self._cut(both, 2, 0, self._count, f"{x.name}.filled")

    def turn(self, x: Value, name: str) -> Value:
        """A matmul with float32 weights."""
        assert self._constants.head_basis is not None
        weight = self._graph.constant(f"{name}.weight", self._constants.head_basis)
        return self._whole(self._fully_connected(self._materialize(x), weight, None, name))

    def select_rows(self, x: Value) -> Value:
        """Only the rows that the input `rows` names go on to the head."""
        t = self._materialize(x)
        (chosen,) = self._graph.operator(
            Op.GATHER,
            [t, self._rows],
            [("chosen", (*self._rows.shape, t.shape[1]), np.float32, None)],
            schema.GatherOptionsT(),
        )
        return self._whole(chosen)

    def finish(self, logits: Value) -> None:
        """Declare the outputs: the logits, and the caches with the new rows in them."""
        self._outputs_with_cache(logits, self._position, self._fresh, self._cache)
