"""What a network looks like: blocks, each of a few parts, every part with its kinds.

A family (converters/architectures) maps its own configuration onto these dataclasses, one `Block` for each layer, so
layers may differ. Nothing else is known of a family: whatever reads a network reads this and `tensors.py`.

Not every reading can compute every kind. One that cannot names it: see `unsupported` and `Ops.SUPPORTS`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "ActivationKind",
    "Attention",
    "Block",
    "Embedding",
    "Feature",
    "FeedForward",
    "Head",
    "NetworkConfig",
    "Norm",
    "Rope",
    "features",
    "unsupported",
]

ActivationKind = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"]


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis."""

    epsilon: float
    kind: Literal["rms", "layer"] = "rms"  # x / rms(x), or (x - mean(x)) / std(x)
    gain: bool = True  # times `NAME.weight`; a family whose checkpoints store gain - 1 adds the 1 when it reads them
    bias: bool = False  # plus `NAME.bias`


@dataclass(frozen=True)
class Rope:
    """Rotary positions of the first `2 * len(frequencies)` values of a head, in half-split order."""

    frequencies: tuple[float, ...]  # radians per position, scaling applied
    magnitude: float = 1.0  # cos and sin are multiplied by this (YaRN's attention factor)
    long: tuple[float, ...] | None = None  # LongRoPE: those of contexts above `original_context`
    original_context: int = 0

    def for_context(self, context: int) -> Rope:
        """The same with the frequencies of one context only."""
        if self.long is None:
            return self
        return Rope(self.long if context > self.original_context else self.frequencies, self.magnitude)


@dataclass(frozen=True)
class Attention:
    """Causal attention with a kv_cache."""

    heads: int  # query heads
    kv_heads: int  # key and value heads; each serves heads / kv_heads query heads
    head_dim: int
    rope: Rope | None  # None: this layer knows no positions
    bias: bool = False  # q, k and v add a bias
    output_bias: bool = False  # o does
    qk_norm: Norm | None = None  # of each head of q and of k, before RoPE: `q_norm`, `k_norm`, (head_dim,)
    scale: float | None = None  # of the scores; None: head_dim ** -0.5
    window: int | None = None  # a token sees itself and window - 1 before it; None: all
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)

    @property
    def q_width(self) -> int:
        """Columns of q for one position."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of k and of v for one position."""
        return self.kv_heads * self.head_dim

    @property
    def score_scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return float(self.head_dim**-0.5) if self.scale is None else self.scale


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate."""

    width: int
    activation: ActivationKind = "silu"
    gated: bool = True
    bias: bool = False  # all of its matmuls add one


@dataclass(frozen=True)
class Block:
    """One layer: attention and feed-forward, each added to the residual stream."""

    attention: Attention
    feed_forward: FeedForward
    attention_norm: Norm | None  # of what attention reads; None: it reads the residual stream as it is
    ffn_norm: Norm | None  # of what the feed-forward part reads; None in a parallel block: what attention reads
    attention_post_norm: Norm | None = None  # of what attention adds
    ffn_post_norm: Norm | None = None
    residual_scale: float = 1.0  # times what each part adds
    parallel: bool = False  # both parts read the same residual stream, the one before attention


@dataclass(frozen=True)
class Embedding:
    """Tokens, and positions where the network learned them, to the residual stream."""

    scale: float = 1.0  # times the rows of the table
    positions: int = 0  # rows of `positions.weight`, which are added; 0: none


@dataclass(frozen=True)
class Head:
    """The residual stream to logits."""

    tied: bool  # it reads the embedding's rows
    norm: Norm | None  # `final_norm`
    turned: bool = False  # what it reads is multiplied by `head_basis.weight`, (width, width), after the norm
    bias: bool = False
    scale: float = 1.0  # logits are multiplied by this
    softcap: float | None = None  # and become softcap * tanh(logits / softcap)


@dataclass(frozen=True)
class NetworkConfig:
    """A decoder. Every architecture maps its own configuration onto this."""

    vocabulary: int  # rows of the embedding
    width: int  # of the residual stream
    blocks: tuple[Block, ...]  # one for each layer
    head: Head
    max_context: int  # positions that the checkpoint was trained for
    embedding: Embedding = Embedding()

    @property
    def layers(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    def for_context(self, context: int) -> NetworkConfig:
        """The network that a kv_cache of this many positions is filled by: LongRoPE has two."""
        if not any(rope.long for rope in self.ropes):
            return self

        def block(b: Block) -> Block:
            rope = b.attention.rope
            return b if rope is None else replace(b, attention=replace(b.attention, rope=rope.for_context(context)))

        return replace(self, blocks=tuple(map(block, self.blocks)))

    @property
    def largest_ffn_width(self) -> int:
        """Of the widest feed-forward part: what an activation takes of memory follows it."""
        return max(block.feed_forward.width for block in self.blocks)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different RoPE tables, in the order of the layers."""
        return tuple(dict.fromkeys(b.attention.rope for b in self.blocks if b.attention.rope is not None))


Feature = Literal[
    "layer norm", "norm gain", "norm bias", "post-norm", "q/k norm", "soft-capped attention", "soft-capped logits",
    "scaled logits", "sliding window", "partial RoPE", "layers without RoPE", "several RoPE tables",
    "learned positions", "scaled embedding", "parallel block", "feed-forward without a gate", "activation gelu",
    "activation gelu_tanh", "activation relu", "activation relu_squared", "heads that differ by layer",
    "scaled residual", "turned head",
]  # fmt: skip


def features(config: NetworkConfig) -> Iterator[Feature]:
    """What a network has beyond RMS norms, RoPE, grouped attention, a gated SiLU and biases."""
    for block in config.blocks:
        a, f = block.attention, block.feed_forward
        norms = (block.attention_norm, block.ffn_norm, block.attention_post_norm, block.ffn_post_norm, a.qk_norm)
        yield from _norm_features(*norms)
        if block.attention_post_norm or block.ffn_post_norm:
            yield "post-norm"
        if a.qk_norm:
            yield "q/k norm"
        if a.softcap is not None:
            yield "soft-capped attention"
        if a.window is not None:
            yield "sliding window"
        if a.rope is None:
            yield "layers without RoPE"
        elif 2 * len(a.rope.frequencies) != a.head_dim:
            yield "partial RoPE"
        if block.parallel:
            yield "parallel block"
        if block.residual_scale != 1:
            yield "scaled residual"
        if not f.gated:
            yield "feed-forward without a gate"
        if f.activation != "silu":
            yield f"activation {f.activation}"  # type: ignore[misc]  # one of the literals
        first = config.blocks[0].attention
        if (a.kv_heads, a.head_dim) != (first.kv_heads, first.head_dim):
            yield "heads that differ by layer"
    yield from _norm_features(config.head.norm)
    if len(config.ropes) > 1:
        yield "several RoPE tables"
    if config.embedding.positions:
        yield "learned positions"
    if config.embedding.scale != 1:
        yield "scaled embedding"
    if config.head.turned:
        yield "turned head"
    if config.head.scale != 1:
        yield "scaled logits"
    if config.head.softcap is not None:
        yield "soft-capped logits"


def _norm_features(*norms: Norm | None) -> Iterator[Feature]:
    for norm in norms:
        if norm is not None and norm.kind == "layer":
            yield "layer norm"
        if norm is not None and norm.gain:
            yield "norm gain"
        if norm is not None and norm.bias:
            yield "norm bias"


def unsupported(config: NetworkConfig, supported: Collection[Feature]) -> list[Feature]:
    """What a network has that a reading with these features cannot compute, each once."""
    return [feature for feature in dict.fromkeys(features(config)) if feature not in supported]
