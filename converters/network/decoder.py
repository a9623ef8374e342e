"""The decoder, written once.

`decoder` describes a Llama-family network as calls on an `Ops` object. `ops_numpy` computes with it,
an observer on top of that records ranges, and `ops_tflite` emits a graph from it: the float reference
and the graph are two readings of the same lines and cannot drift apart.

Activations have shape (tokens, width). Weights have shape (out, in), as in every checkpoint.
Canonical tensor names, with i from 0:

    embed.weight                    (vocabulary, width)
    layers.{i}.attention_norm.weight  (width,)
    layers.{i}.q.weight             (heads * head_dim, width)      and .bias where the family has one
    layers.{i}.k.weight, .v.weight  (kv_heads * head_dim, width)
    layers.{i}.o.weight             (width, heads * head_dim)
    layers.{i}.ffn_norm.weight      (width,)
    layers.{i}.gate.weight, .up.weight  (ffn_width, width)
    layers.{i}.down.weight          (width, ffn_width)
    final_norm.weight               (width,)
    head.weight                     (vocabulary, width), absent when `tied_head`

q and k are in half-split RoPE order: dimension j of a head turns together with j + head_dim / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

__all__ = ["NetworkConfig", "Ops", "decoder", "head", "hidden", "matmul_groups", "tensor_shapes"]


@dataclass(frozen=True)
class NetworkConfig:
    """What a decoder looks like. Every architecture maps its own configuration onto this."""

    vocabulary: int  # rows of the embedding
    width: int  # of the residual stream
    layers: int
    heads: int  # query heads
    kv_heads: int  # key and value heads; each serves heads / kv_heads query heads
    head_dim: int
    ffn_width: int
    norm_epsilon: float
    rope_frequencies: tuple[float, ...]  # radians per position, head_dim / 2 of them, scaling applied
    rope_magnitude: float  # cos and sin are multiplied by this (YaRN's attention factor), else 1
    max_context: int  # positions that the checkpoint was trained for
    tied_head: bool  # the head reads the embedding's rows
    attention_bias: bool = False  # q, k, v (and o, when `output_bias`) add a bias
    output_bias: bool = False
    ffn_bias: bool = False

    @property
    def matmul_weights(self) -> int:
        """Weights that one token's step multiplies with: all matmuls, the head among them."""
        attention = self.width * (2 * self.q_width + 2 * self.kv_width)
        return self.layers * (attention + 3 * self.width * self.ffn_width) + self.vocabulary * self.width

    def has_bias(self, matmul: str) -> bool:
        """Whether the matmul of this canonical name (`layers.3.q`) adds a bias."""
        kind = matmul.rsplit(".", 1)[-1]
        if kind in ("q", "k", "v"):
            return self.attention_bias
        return {"o": self.output_bias, "head": False}.get(kind, self.ffn_bias)

    @property
    def kv_width(self) -> int:
        """Columns of k and of v for one position."""
        return self.kv_heads * self.head_dim

    @property
    def q_width(self) -> int:
        """Columns of q for one position."""
        return self.heads * self.head_dim


Value = TypeVar("Value")


class Ops(Protocol[Value]):
    """The seam between the network and its readings. `Value` is an array, or a tensor in a graph."""

    def embed(self) -> Value:
        """Rows of `embed.weight` for the tokens of this reading: (tokens, width)."""

    def rms_norm(self, x: Value, name: str) -> Value:
        """x / sqrt(mean(x², last axis) + epsilon) * gain: (tokens, width)."""

    def linear(self, x: Value, *names: str) -> tuple[Value, ...]:
        """x @ weight.T + bias, for each name. One call names all the matmuls that read the same x."""

    def rope(self, q: Value, k: Value) -> tuple[Value, Value]:
        """Rotary position embedding on (tokens, heads * head_dim) and (tokens, kv_heads * head_dim)."""

    def attend(self, q: Value, k: Value, v: Value, layer: int) -> Value:
        """Causal attention over the cache and these tokens, which join the cache: (tokens, q_width)."""

    def gated_silu(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up: (tokens, ffn_width)."""

    def add(self, x: Value, y: Value, name: str) -> Value:
        """The residual sum; `name` is its canonical name."""

    def select_rows(self, x: Value) -> Value:
        """The rows whose logits are wanted."""


def decoder(ops: Ops[Value], config: NetworkConfig) -> Value:
    """Read the network with `ops`; returns logits, (rows, vocabulary)."""
    return head(ops, ops.select_rows(hidden(ops, config)))


def hidden(ops: Ops[Value], config: NetworkConfig) -> Value:
    """All layers, without the head: (tokens, width)."""
    x = ops.embed()  # (tokens, width)
    for i in range(config.layers):
        layer = f"layers.{i}"
        h = ops.rms_norm(x, f"{layer}.attention_norm")
        q, k, v = ops.linear(h, f"{layer}.q", f"{layer}.k", f"{layer}.v")
        q, k = ops.rope(q, k)
        a = ops.attend(q, k, v, i)  # (tokens, q_width)
        (a,) = ops.linear(a, f"{layer}.o")
        x = ops.add(x, a, f"{layer}.attention_out")
        h = ops.rms_norm(x, f"{layer}.ffn_norm")
        gate, up = ops.linear(h, f"{layer}.gate", f"{layer}.up")
        h = ops.gated_silu(gate, up)  # (tokens, ffn_width)
        (h,) = ops.linear(h, f"{layer}.down")
        x = ops.add(x, h, f"{layer}.out")
    return x


def head(ops: Ops[Value], x: Value) -> Value:
    """The final norm and the vocabulary matmul: (rows, vocabulary)."""
    x = ops.rms_norm(x, "final_norm")
    (logits,) = ops.linear(x, "head")
    return logits


def tensor_shapes(config: NetworkConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every canonical tensor of a network and its shape, in the order in which `decoder` reads them."""
    c = config
    yield "embed.weight", (c.vocabulary, c.width)
    for i in range(c.layers):
        layer = f"layers.{i}"
        yield f"{layer}.attention_norm.weight", (c.width,)
        for kind, rows, columns in [
            ("q", c.q_width, c.width),
            ("k", c.kv_width, c.width),
            ("v", c.kv_width, c.width),
            ("o", c.width, c.q_width),
            ("gate", c.ffn_width, c.width),
            ("up", c.ffn_width, c.width),
            ("down", c.width, c.ffn_width),
        ]:
            if kind == "gate":
                yield f"{layer}.ffn_norm.weight", (c.width,)
            yield f"{layer}.{kind}.weight", (rows, columns)
            if c.has_bias(f"{layer}.{kind}"):
                yield f"{layer}.{kind}.bias", (rows,)
    yield "final_norm.weight", (c.width,)
    if not c.tied_head:
        yield "head.weight", (c.vocabulary, c.width)


def matmul_groups(config: NetworkConfig) -> list[tuple[str, ...]]:
    """The names of the matmuls that read one input, in the order in which `decoder` calls `linear`."""
    groups: list[tuple[str, ...]] = []
    for i in range(config.layers):
        p = f"layers.{i}"
        groups += [(f"{p}.q", f"{p}.k", f"{p}.v"), (f"{p}.o",), (f"{p}.gate", f"{p}.up"), (f"{p}.down",)]
    return [*groups, ("head",)]
