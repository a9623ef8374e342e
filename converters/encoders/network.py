"""What an encoder or a translator consists of, and THE list of its tensors and matmuls.

Canonical tensor names, with i from 0 and SIDE `encoder` or `decoder`:

    embed.weight                          (vocabulary, width)
    SIDE.positions.weight                 (positions, width), token type 0 added where the family has token types
    SIDE.relative.weight                  (buckets, heads): what is added to scores, by distance (T5)
    SIDE.embed_norm.weight, .bias         (width,)
    SIDE.layers.{i}.q.weight, .k, .v, .o  (heads * head_dim, width), and .bias where the family has one
    SIDE.layers.{i}.attention_norm        (width,)
    SIDE.layers.{i}.cross_q, cross_k, cross_v, cross_o, cross_norm   the same, of attention to the encoder's rows
    SIDE.layers.{i}.gate, .up, .down      (ffn_width, width), down (width, ffn_width)
    SIDE.layers.{i}.ffn_norm              (width,)
    SIDE.final_norm                       (width,)
    dense.weight, .bias                   (width, width), between pooling and the labels
    head.weight, .bias                    (labels, width), or (vocabulary, width)
    head.look.weight                      (fields, width): what each field of an answer looks for in the middle rows
    head.near.weight                      (labels, width): what these rows say of the labels, beside the last ones
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from converters.network.config import Attention, FeedForward, Norm
from converters.network.tensors import Linear, Role

__all__ = [
    "Buckets",
    "EncoderConfig",
    "Pooling",
    "SentenceHead",
    "Stack",
    "TranslatorConfig",
    "linear",
    "linears",
    "tensor_shapes",
]

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Buckets:
    """T5's relative positions: one number for each head and bucket of distances."""

    count: int  # rows of `SIDE.relative.weight`
    longest: int  # distance from which on all are alike


@dataclass(frozen=True)
class Stack:
    """Layers that are alike, and what goes into them."""

    side: Literal["encoder", "decoder"]
    layers: int
    attention: Attention  # of each layer to its own rows, and in a decoder to the encoder's
    feed_forward: FeedForward
    norm: Norm
    norm_first: bool  # each part reads the normed stream; else the sum of stream and part is normed
    positions: int = 0  # rows of `SIDE.positions.weight`; 0: none
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    final_norm: bool = False
    buckets: Buckets | None = None

    @property
    def crosses(self) -> bool:
        """Whether each layer also attends to the encoder's rows."""
        return self.side == "decoder"


@dataclass(frozen=True)
class SentenceHead:
    """From the rows of a text to one vector, or to logits of labels."""

    pooling: Pooling
    dense: Literal["tanh", "relu"] | None = None  # activation of a matmul after pooling; None: there is none
    labels: int = 0  # rows of `head.weight`; 0: the pooled row is the result
    normalized: bool = True  # the result has length 1; not of logits
    fields: tuple[int, ...] = ()  # values of each field of an answer, `labels` in all; see `SentenceOps.look`


@dataclass(frozen=True)
class EncoderConfig:
    """A network that reads a whole text at once."""

    vocabulary: int
    width: int
    encoder: Stack
    head: SentenceHead
    max_tokens: int  # that it was trained for, those of the frame included

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """All of its stacks."""
        return (self.encoder,)

    @property
    def middle(self) -> int:
        """After how many layers the rows are that fields look at: there, each still says what its own token is."""
        return self.encoder.layers // 2


@dataclass(frozen=True)
class TranslatorConfig:
    """An encoder, and a decoder that attends to its rows."""

    vocabulary: int
    width: int
    encoder: Stack
    decoder: Stack
    tied: bool  # the head reads the embedding's rows
    head_bias: bool
    head_scale: float  # the decoder's rows are multiplied by this before the head
    start_id: int  # the decoder's first token
    max_tokens: int  # of a text and of its translation

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """All of its stacks."""
        return self.encoder, self.decoder


Config = EncoderConfig | TranslatorConfig


@lru_cache(maxsize=8)
def linears(config: Config) -> dict[str, Linear]:
    """Every matmul by its name; those that read one input have the same `group`."""
    found: dict[str, Linear] = {}
    group = 0

    def add(prefix: str, *parts: tuple[str, Role, int, int, bool]) -> None:
        nonlocal group
        first = f"{prefix}{parts[0][0]}.in"
        for name, role, rows, columns, bias in parts:
            found[prefix + name] = Linear(prefix + name, role, None, group, first, None, rows, columns, bias)
        group += 1

    width = config.width
    for stack in config.stacks:
        a, f = stack.attention, stack.feed_forward
        for i in range(stack.layers):
            prefix = f"{stack.side}.layers.{i}."
            q, kv, o = (a.q_width, width, a.bias), (a.kv_width, width, a.bias), (width, a.q_width, a.output_bias)
            add(prefix, ("q", Role.Q, *q), ("k", Role.K, *kv), ("v", Role.V, *kv))
            add(prefix, ("o", Role.O, *o))
            if stack.crosses:
                add(prefix, ("cross_q", Role.Q, *q))
                add(prefix, ("cross_k", Role.K, *kv), ("cross_v", Role.V, *kv))
                add(prefix, ("cross_o", Role.O, *o))
            gate = [("gate", Role.GATE, f.width, width, f.bias)] if f.gated else []
            add(prefix, *gate, ("up", Role.UP, f.width, width, f.bias))
            add(prefix, ("down", Role.DOWN, width, f.width, f.bias))
    if isinstance(config, TranslatorConfig):
        add("", ("head", Role.HEAD, config.vocabulary, width, config.head_bias))
    else:
        if config.head.dense is not None:
            add("", ("dense", Role.O, width, width, True))
        if config.head.fields:
            near = ("head.near", Role.HEAD, config.head.labels, width, False)
            add("", ("head.look", Role.HEAD, len(config.head.fields), width, False), near)
        if config.head.labels:
            add("", ("head", Role.HEAD, config.head.labels, width, True))
    return found


def linear(config: Config, name: str) -> Linear:
    """The matmul of this name."""
    return linears(config)[name]


@lru_cache(maxsize=8)
def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every canonical tensor with its shape."""
    return dict(_tensors(config))


def _tensors(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = config.width
    yield "embed.weight", (config.vocabulary, width)
    for stack in config.stacks:
        if stack.positions:
            yield f"{stack.side}.positions.weight", (stack.positions, width)
        if stack.buckets is not None:
            yield f"{stack.side}.relative.weight", (stack.buckets.count, stack.attention.heads)
        for name in _norm_names(stack):
            yield f"{name}.weight", (width,)
            if stack.norm.bias:
                yield f"{name}.bias", (width,)
    tied = isinstance(config, TranslatorConfig) and config.tied
    for matmul in linears(config).values():
        if not (matmul.role is Role.HEAD and tied):
            yield matmul.weight, (matmul.rows, matmul.columns)
        if matmul.bias:
            yield f"{matmul.name}.bias", (matmul.rows,)


def _norm_names(stack: Stack) -> Iterator[str]:
    if stack.embedding_norm:
        yield f"{stack.side}.embed_norm"
    for i in range(stack.layers):
        for part in ("attention", *(("cross",) if stack.crosses else ()), "ffn"):
            yield f"{stack.side}.layers.{i}.{part}_norm"
    if stack.final_norm:
        yield f"{stack.side}.final_norm"
