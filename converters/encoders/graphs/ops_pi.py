"""Ops that emit encoders and translators in the `pi` profile, for texts of one padded length.

What comes after the text's end is masked: far below 0 in scores, and 0 in the mean. A translator's decoder has one
signature for one token; its keys and values of the text, made once by the encoder's signature, are inputs, and its own
kv_cache is updated in place at the end of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import Constant, Subgraph, Tensor
from converters.encoders.network import Pooling, Stack
from converters.network.config import Attention, Norm
from converters.network.tensors import Linear
from converters.network.weights import FloatArray
from converters.ops.tflite import Op
from converters.ops.tflite_pi import EmbeddingRows
from converters.ops.tflite_pi_parts import PiParts, QuantizedMatmul, Value

__all__ = ["DecoderPi", "EncoderConstants", "EncoderPi"]


@dataclass(frozen=True)
class EncoderConstants:
    """What all signatures of a model share."""

    matmuls: Mapping[int, QuantizedMatmul]  # by the number of the group; attention's scale is part of q
    embedding: EmbeddingRows
    positions: Mapping[str, EmbeddingRows]  # by side
    distances: Mapping[str, Constant]  # by side, float32 (heads, 2 * most - 1): what is added to scores, by key - query
    norms: Mapping[str, FloatArray]  # gains and biases, by tensor name
    smoothing: Mapping[int, FloatArray]  # by group: what its weights are multiplied by, and its input divided


class _Attending(PiParts):
    """What an encoder's signature and a decoder's have in common."""

    def __init__(self, graph: Subgraph, constants: EncoderConstants) -> None:
        super().__init__(graph, constants.norms, constants.matmuls)
        self._constants = constants

    def _embedded(self, tokens: Tensor, positions: Tensor, stack: Stack) -> Value:
        """int8 rows times their scales."""
        c = self._constants
        x = self._embed_rows(tokens, c.embedding.rows, c.embedding.scale)
        if stack.embedding_scale != 1:
            x = self._binary(Op.MUL, x, self._float("embed_factor", [stack.embedding_scale]), "embed_scaled")
        if stack.positions:
            table = c.positions[stack.side]
            rows = self._embed_rows(positions, table.rows, table.scale, "positions")
            x = self._binary(Op.ADD, x, rows, "embed_positions")
        return self._whole(x)

    def norm(self, x: Value, norm: Norm, name: str, heads: int = 1) -> Value:
        """float32, with gain and bias: the residual stream itself is normed, so they fold into nothing."""
        return self._whole(self._whole_norm(self._materialize(x), norm, name))

    def linear(self, x: Value, *matmuls: Linear) -> tuple[Value, ...]:
        """As in `StackOps`; see `smoothing.py`."""
        factors = self._constants.smoothing.get(matmuls[0].group)
        if factors is not None:
            name = f"{matmuls[0].name}.smooth"
            x = self._whole(self._binary(Op.MUL, self._materialize(x), self._float(name, 1 / factors), name))
        return super().linear(x, *matmuls)

    def _split(self, value: Value, a: Attention) -> Tensor:
        """(1, heads, tokens, head_dim)."""
        t = self._materialize(value)
        tokens = t.shape[0]
        if tokens > 1:
            t = self._heads_first(self._reshape(t, (tokens, a.heads, a.head_dim)))
        return self._reshape(t, (1, a.heads, tokens, a.head_dim))

    def _joined(self, mixed: Tensor, a: Attention) -> Value:
        """(1, heads, tokens, head_dim) -> (tokens, heads * head_dim)."""
        tokens = mixed.shape[2]
        if tokens > 1:
            mixed = self._heads_first(self._reshape(mixed, (a.heads, tokens, a.head_dim)))
        return self._whole(self._reshape(mixed, (tokens, a.q_width)))

    def _by_distance(self, stack: Stack, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What is added to scores, for these columns of the table by distance."""
        table = self._constants.distances[stack.side]
        options = schema.GatherOptionsT()
        options.axis = 1
        picked = (table.shape[0], rows.shape[0])
        near = self._op(Op.GATHER, [self._graph.constant("near", table), rows], "near_picked", picked, options)
        return self._reshape(near, shape)

    def tanh(self, x: Value) -> Value:
        """As in `StackOps`."""
        t = self._materialize(x)
        return self._whole(self._op(Op.TANH, [t], "tanh", t.shape))


class EncoderPi(_Attending):
    """`SentenceOps` or `KeepingOps` over one signature: a text of up to `count` tokens.

    Args:
        cross: of the decoder that reads the encoder's rows; None where there is none.
    """

    def __init__(
        self, graph: Subgraph, constants: EncoderConstants, count: int, cross: Attention | None = None
    ) -> None:
        super().__init__(graph, constants)
        self._count, self._cross = count, cross
        self._tokens = graph.input("tokens", (count,), np.int32)
        self._length = graph.input("length", (1,), np.int32)  # of the text; tokens after it are padding
        self._mask = self._window_mask(self._length, count, newest=0)  # (1, 1, 1, count)
        self._distance_rows: Tensor | None = None

    def embed(self, stack: Stack) -> Value:
        """As in `StackOps`."""
        rows = self._graph.constant("rows", np.arange(self._count, dtype=np.int32))
        return self._embedded(self._tokens, rows, stack)

    def attend(self, q: Value, k: Value, v: Value, stack: Stack, layer: int) -> Value:
        """As in `StackOps`. The scale of the scores is part of the weights of q."""
        a, name = stack.attention, f"{stack.side}.layers.{layer}"
        queries, keys, values = (self._split(x, a) for x in (q, k, v))
        scores = self._batch_matmul(queries, keys, True, f"{name}.scores")
        if stack.buckets is not None:
            scores = self._binary(Op.ADD, scores, self._distances(stack), f"{name}.scores_near")
        scores = self._binary(Op.ADD, scores, self._mask, f"{name}.scores_masked")
        shares = self._softmax(scores, f"{name}.probabilities")
        return self._joined(self._batch_matmul(shares, values, False, f"{name}.attention"), a)

    def _distances(self, stack: Stack) -> Tensor:
        """(1, heads, tokens, tokens), once for all layers."""
        if self._distance_rows is None:
            count, most = self._count, (self._constants.distances[stack.side].shape[1] + 1) // 2
            rows = np.arange(count)[None] - np.arange(count)[:, None] + most - 1
            index = self._graph.constant("distances", rows.reshape(-1).astype(np.int32))
            self._distance_rows = self._by_distance(stack, index, (1, stack.attention.heads, count, count))
        return self._distance_rows

    def pool(self, x: Value, pooling: Pooling) -> Value:
        """As in `StackOps`; a row of padding has share 0 of the mean."""
        t = self._materialize(x)
        if pooling == "cls":
            return self._whole(self._part(t, 0, 0, 1, "first"))
        shares = self._shares_of_text(self._length, self._count)
        rows = self._reshape(t, (1, 1, *t.shape))
        mean = self._batch_matmul(self._reshape(shares, (1, 1, 1, self._count)), rows, False, "mean")
        return self._whole(self._reshape(mean, (1, t.shape[1])))

    def look(self, scores: Value, values: Value, fields: Sequence[int]) -> Value:
        """As in `SentenceOps`."""
        mask = self._reshape(self._mask, (1, self._count))
        return self._whole(self._looked(self._materialize(scores), self._materialize(values), mask, fields))

    def unit(self, x: Value) -> Value:
        """As in `StackOps`."""
        return self._whole(self._unit(self._materialize(x)))

    def finish(self, result: Value) -> None:
        """Declare the output, (1, width or labels)."""
        self._graph.output("result", self._materialize(result))

    def keep(self, k: Value, v: Value, layer: int) -> None:
        """As in `transformer.py`: outputs `cross_k_0` …, (1, heads, tokens, head_dim)."""
        assert self._cross is not None
        for kind, value in (("k", k), ("v", v)):
            self._graph.output(f"cross_{kind}_{layer}", self._split(value, self._cross))


class DecoderPi(_Attending):
    """`DecoderOps` over one signature: one token of a translation.

    Args:
        count: rows of the text's keys and values.
        window: positions of the kv_cache.
    """

    def __init__(self, graph: Subgraph, constants: EncoderConstants, stack: Stack, count: int, window: int) -> None:
        super().__init__(graph, constants)
        a = stack.attention
        self._tokens = graph.input("tokens", (1,), np.int32)
        self._position = graph.input("position", (1,), np.int32)
        length = graph.input("length", (1,), np.int32)

        def inputs(name: str, positions: int) -> list[tuple[Tensor, Tensor]]:
            shape = (1, a.heads, positions, a.head_dim)
            return [
                (graph.input(f"{name}k_{i}", shape, np.float32), graph.input(f"{name}v_{i}", shape, np.float32))
                for i in range(stack.layers)
            ]

        self._kept, self._cache = inputs("cross_", count), inputs("", window)
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._mask = self._window_mask(self._position, window, newest=0)
        self._kept_mask = self._window_mask(length, count, newest=0)
        self._window = window
        self._near: Tensor | None = None

    def embed(self, stack: Stack) -> Value:
        """As in `StackOps`."""
        return self._embedded(self._tokens, self._position, stack)

    def attend(self, q: Value, k: Value, v: Value, stack: Stack, layer: int) -> Value:
        """Against the cache as it was, and against the new key; see converters/ops/tflite_pi.py."""
        a, name = stack.attention, f"{stack.side}.layers.{layer}"
        queries, keys, values = (self._split(x, a) for x in (q, k, v))
        self._fresh.append((keys, values))
        cached_keys, cached_values = self._cache[layer]
        old = self._batch_matmul(queries, cached_keys, True, f"{name}.scores_old")
        new = self._batch_matmul(queries, keys, True, f"{name}.scores_new")
        if stack.buckets is not None:
            old = self._binary(Op.ADD, old, self._behind(stack), f"{name}.scores_near")
            table = self._graph.constant("near", self._constants.distances[stack.side])
            here = self._reshape(self._part(table, 1, self._most(stack) - 1, 1), (1, a.heads, 1, 1))
            new = self._binary(Op.ADD, new, here, f"{name}.scores_here")
        old = self._binary(Op.ADD, old, self._mask, f"{name}.scores_masked")
        shares = self._softmax(self._concat([old, new], f"{name}.scores"), f"{name}.probabilities")
        from_old = self._batch_matmul(self._columns(shares, 0, self._window), cached_values, False, f"{name}.from_old")
        from_new = self._batch_matmul(self._columns(shares, self._window, 1), values, False, f"{name}.from_new")
        return self._joined(self._binary(Op.ADD, from_old, from_new, f"{name}.attention"), a)

    def _most(self, stack: Stack) -> int:
        return (self._constants.distances[stack.side].shape[1] + 1) // 2

    def _behind(self, stack: Stack) -> Tensor:
        """(1, heads, 1, window): for each slot of the cache, of its distance; once for all layers."""
        if self._near is None:
            slots = self._graph.constant("slots", np.arange(self._window, dtype=np.int32) + self._most(stack) - 1)
            (rows,) = self._graph.operator(
                Op.SUB, [slots, self._position], [("distances", (self._window,), np.int32, None)], schema.SubOptionsT()
            )
            self._near = self._by_distance(stack, rows, (1, stack.attention.heads, 1, self._window))
        return self._near

    def attend_kept(self, q: Value, stack: Stack, layer: int) -> Value:
        """As in `transformer.py`."""
        a, name = stack.attention, f"{stack.side}.layers.{layer}.cross"
        keys, values = self._kept[layer]
        scores = self._batch_matmul(self._split(q, a), keys, True, f"{name}.scores")
        scores = self._binary(Op.ADD, scores, self._kept_mask, f"{name}.scores_masked")
        shares = self._softmax(scores, f"{name}.probabilities")
        return self._joined(self._batch_matmul(shares, values, False, f"{name}.attention"), a)

    def finish(self, logits: Value) -> None:
        """Declare the outputs: the logits, and the caches with the new rows in them."""
        self._outputs_with_cache(logits, self._position, self._fresh, self._cache)
