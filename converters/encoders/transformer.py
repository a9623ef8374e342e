"""Encoders and translators, written once: what reads them computes (`ops_numpy`) or emits a graph (`graphs`).

Activations have shape (tokens, width), as in converters/network/decoder.py; `network.py` lists tensors and matmuls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from converters.encoders.network import EncoderConfig, Pooling, Stack, TranslatorConfig, linear
from converters.network.config import ActivationKind, Norm
from converters.network.tensors import Linear

__all__ = [
    "DecoderOps",
    "KeepingOps",
    "SentenceOps",
    "StackOps",
    "cross_rows",
    "embedded",
    "encode",
    "encoder_layer",
    "final_rows",
    "next_logits",
    "sentence",
    "sentence_of",
]

Value = TypeVar("Value")


class StackOps(Protocol[Value]):
    """The seam between the network and its readings. `Value` is an array, or a tensor in a graph."""

    def embed(self, stack: Stack) -> Value:
        """Rows of `embed.weight` times the stack's scale, and of its positions: (tokens, width)."""

    def norm(self, x: Value, norm: Norm, name: str) -> Value:
        """`x`, normed over the last axis; same shape."""

    def linear(self, x: Value, *matmuls: Linear) -> tuple[Value, ...]:
        """x @ weight.T + bias, for each. One call names all the matmuls that read the same x."""

    def attend(self, q: Value, k: Value, v: Value, stack: Stack, layer: int) -> Value:
        """An encoder's rows see all rows of the text; a decoder's row sees those before it: (tokens, q_width)."""

    def activate(self, x: Value, kind: ActivationKind) -> Value:
        """activation(x): same shape."""

    def gated(self, gate: Value, up: Value, kind: ActivationKind) -> Value:
        """activation(gate) * up."""

    def add(self, x: Value, y: Value, name: str) -> Value:
        """The residual sum."""

    def scaled(self, x: Value, factor: float) -> Value:
        """x * factor."""


class SentenceOps(StackOps[Value], Protocol[Value]):
    """What the rows of a text need to become one vector."""

    def tanh(self, x: Value) -> Value:
        """By element."""

    def pool(self, x: Value, pooling: Pooling) -> Value:
        """The mean of the text's rows, or the first: (1, width)."""

    def look(self, scores: Value, values: Value, fields: Sequence[int]) -> Value:
        """The mean of the rows' logits, (1, labels): each field weighs the rows by the softmax of its own scores.

        Args:
            scores: (tokens, fields).
            values: (tokens, labels): the logits that each row would give by itself.
            fields: how many of the labels are whose, in order.
        """

    def unit(self, x: Value) -> Value:
        """x / |x|: (1, width)."""


class KeepingOps(StackOps[Value], Protocol[Value]):
    """What a translator's encoder needs."""

    def keep(self, k: Value, v: Value, layer: int) -> None:
        """Keys and values of the encoder's rows, computed once for a text."""


class DecoderOps(StackOps[Value], Protocol[Value]):
    """What its decoder needs."""

    def attend_kept(self, q: Value, stack: Stack, layer: int) -> Value:
        """Attention to what was kept: (tokens, q_width)."""


def embedded(ops: StackOps[Value], stack: Stack) -> Value:
    """What a stack's first layer reads, (tokens, width)."""
    x = ops.embed(stack)
    return ops.norm(x, stack.norm, f"{stack.side}.embed_norm") if stack.embedding_norm else x


def encode(ops: StackOps[Value], config: EncoderConfig | TranslatorConfig) -> Value:
    """The encoder's rows, (tokens, width)."""
    return final_rows(ops, config.encoder, _streams(ops, config)[-1])


def _streams(ops: StackOps[Value], config: EncoderConfig | TranslatorConfig) -> list[Value]:
    """The encoder's residual stream before its first layer and after each."""
    found = [embedded(ops, config.encoder)]
    for i in range(config.encoder.layers):
        found.append(encoder_layer(ops, config, i, found[-1]))
    return found


def encoder_layer(ops: StackOps[Value], config: EncoderConfig | TranslatorConfig, i: int, x: Value) -> Value:
    """The encoder's residual stream before and after one layer."""
    stack = config.encoder
    x = _part(ops, stack, i, "attention", x, lambda h: _attention(ops, config, stack, i, h))
    return _part(ops, stack, i, "ffn", x, lambda h: _feed_forward(ops, config, stack, i, h))


def sentence(ops: SentenceOps[Value], config: EncoderConfig) -> Value:
    """One vector of a text, or the logits of its labels: (1, width or labels)."""
    found = _streams(ops, config)
    return sentence_of(ops, config, found[-1], found[config.middle])


def sentence_of(ops: SentenceOps[Value], config: EncoderConfig, x: Value, middle: Value) -> Value:
    """The same, of the rows after the last layer and after `EncoderConfig.middle`.

    The last layers of a sentence encoder give all rows nearly the same vector, that of the whole text. So a field that
    is about one word (a room, a number) finds it in the middle, and what the whole is about at the end.
    """
    head, x = config.head, final_rows(ops, config.encoder, x)
    if head.fields:
        middle = final_rows(ops, config.encoder, middle)
        scores, near = ops.linear(middle, linear(config, "head.look"), linear(config, "head.near"))
        (whole,) = ops.linear(x, linear(config, "head"))
        return ops.look(scores, ops.add(whole, near, "head.values"), head.fields)
    x = ops.pool(x, head.pooling)
    if head.dense is not None:
        (x,) = ops.linear(x, linear(config, "dense"))
        x = ops.tanh(x) if head.dense == "tanh" else ops.activate(x, "relu")
    if head.labels:
        (x,) = ops.linear(x, linear(config, "head"))
        return x
    return ops.unit(x) if head.normalized else x


def cross_rows(ops: KeepingOps[Value], config: TranslatorConfig) -> None:
    """Read a text, and keep what every layer of the decoder reads of it."""
    x = encode(ops, config)
    for i in range(config.decoder.layers):
        name = f"decoder.layers.{i}"
        k, v = ops.linear(x, linear(config, f"{name}.cross_k"), linear(config, f"{name}.cross_v"))
        ops.keep(k, v, i)


def next_logits(ops: DecoderOps[Value], config: TranslatorConfig) -> Value:
    """The logits after the tokens of this reading, (tokens, vocabulary)."""
    x, stack = embedded(ops, config.decoder), config.decoder
    for i in range(stack.layers):
        x = _part(ops, stack, i, "attention", x, lambda h, i=i: _attention(ops, config, stack, i, h))  # type: ignore[misc]
        x = _part(ops, stack, i, "cross", x, lambda h, i=i: _cross(ops, config, stack, i, h))  # type: ignore[misc]
        x = _part(ops, stack, i, "ffn", x, lambda h, i=i: _feed_forward(ops, config, stack, i, h))  # type: ignore[misc]
    x = final_rows(ops, stack, x)
    if config.head_scale != 1:
        x = ops.scaled(x, config.head_scale)
    (logits,) = ops.linear(x, linear(config, "head"))
    return logits


def final_rows(ops: StackOps[Value], stack: Stack, x: Value) -> Value:
    """What a stack gives of the stream after its last layer."""
    return ops.norm(x, stack.norm, f"{stack.side}.final_norm") if stack.final_norm else x


def _part(ops: StackOps[Value], stack: Stack, i: int, part: str, x: Value, compute: Callable[[Value], Value]) -> Value:
    """The residual stream before and after one part of a layer."""
    layer = f"{stack.side}.layers.{i}"
    norm = f"{layer}.{part}_norm"
    y = compute(ops.norm(x, stack.norm, norm) if stack.norm_first else x)
    x = ops.add(x, y, f"{layer}.{part}_out")
    return x if stack.norm_first else ops.norm(x, stack.norm, norm)


def _attention(ops: StackOps[Value], config: EncoderConfig | TranslatorConfig, stack: Stack, i: int, h: Value) -> Value:
    name = f"{stack.side}.layers.{i}"
    q, k, v = ops.linear(h, *(linear(config, f"{name}.{part}") for part in "qkv"))
    (out,) = ops.linear(ops.attend(q, k, v, stack, i), linear(config, f"{name}.o"))
    return out


def _cross(ops: DecoderOps[Value], config: TranslatorConfig, stack: Stack, i: int, h: Value) -> Value:
    name = f"{stack.side}.layers.{i}"
    (q,) = ops.linear(h, linear(config, f"{name}.cross_q"))
    (out,) = ops.linear(ops.attend_kept(q, stack, i), linear(config, f"{name}.cross_o"))
    return out


def _feed_forward(
    ops: StackOps[Value], config: EncoderConfig | TranslatorConfig, stack: Stack, i: int, h: Value
) -> Value:
    f, name = stack.feed_forward, f"{stack.side}.layers.{i}"
    if f.gated:
        gate, up = ops.linear(h, linear(config, f"{name}.gate"), linear(config, f"{name}.up"))
        h = ops.gated(gate, up, f.activation)
    else:
        (up,) = ops.linear(h, linear(config, f"{name}.up"))
        h = ops.activate(up, f.activation)
    (out,) = ops.linear(h, linear(config, f"{name}.down"))
    return out
