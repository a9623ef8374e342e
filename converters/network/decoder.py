"""The decoder, written once.

`decoder` describes a network as calls on an `Ops` object. `ops.numpy` computes with it, an observer on top of that
records ranges, `ops.counting` counts, and `ops.tflite_*` emit a graph from it: the float reference and the graph are
readings of the same lines and cannot drift apart.

Activations have shape (tokens, width). Weights have shape (out, in), as in every checkpoint. What a block consists of
is said in `config.py`; the names of tensors, matmuls and activations are listed in `tensors.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, TypeVar

from converters.network.config import ActivationKind, Attention, Block, Feature, NetworkConfig, Norm, unsupported
from converters.network.tensors import Linear, Role, by_role, linears
from device_runtime.errors import ArchitectureError

__all__ = ["Ops", "attention", "block", "decoder", "feed_forward", "head", "head_input", "hidden", "require_support"]

Value = TypeVar("Value")


class Ops(Protocol[Value]):
    """The seam between the network and its readings. `Value` is an array, or a tensor in a graph."""

    @property
    def SUPPORTS(self) -> Collection[Feature]:
        """Kinds of parts that this reading can compute; `require_support` refuses the rest by name."""

    def embed(self) -> Value:
        """Rows of `embed.weight` for the tokens of this reading, and of `positions.weight`: (tokens, width)."""

    def norm(self, x: Value, norm: Norm, name: str, heads: int = 1) -> Value:
        """`x`, normed over the last axis, or over each of `heads` equal parts of it; same shape."""

    def linear(self, x: Value, *matmuls: Linear) -> tuple[Value, ...]:
        """x @ weight.T + bias, for each. One call names all the matmuls that read the same x."""

    def rope(self, q: Value, k: Value, attention: Attention) -> tuple[Value, Value]:
        """Rotary position embedding on (tokens, heads * head_dim) and (tokens, kv_heads * head_dim)."""

    def attend(self, q: Value, k: Value, v: Value, attention: Attention, layer: int) -> Value:
        """Causal attention over the cache and these tokens, which join the cache: (tokens, q_width)."""

    def activate(self, x: Value, kind: ActivationKind) -> Value:
        """activation(x): same shape."""

    def gated(self, gate: Value, up: Value, kind: ActivationKind) -> Value:
        """activation(gate) * up: (tokens, ffn_width)."""

    def add(self, x: Value, y: Value, name: str) -> Value:
        """The residual sum; `name` is its canonical name."""

    def scaled(self, x: Value, factor: float) -> Value:
        """x * factor."""

    def softcap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap)."""

    def turn(self, x: Value, name: str) -> Value:
        """x @ `name.weight`.T in float: (tokens, width) in another basis."""

    def select_rows(self, x: Value) -> Value:
        """The rows whose logits are wanted."""


def require_support(config: NetworkConfig, supported: Collection[Feature], reading: str) -> None:
    """Raise an `ArchitectureError` that names what `reading` cannot compute of a network, if there is anything."""
    if missing := unsupported(config, supported):
        raise ArchitectureError(
            f"{reading} cannot compute what this network has: {', '.join(missing)}. "
            "Convert it for another profile, or use another checkpoint."
        )


def decoder(ops: Ops[Value], config: NetworkConfig) -> Value:
    """Read the network with `ops`; returns logits, (rows, vocabulary)."""
    return head(ops, config, ops.select_rows(hidden(ops, config)))


def hidden(ops: Ops[Value], config: NetworkConfig) -> Value:
    """All layers, without the head: (tokens, width)."""
    x = ops.embed()  # (tokens, width)
    for i in range(config.layers):
        x = block(ops, config, i, x)
    return x


def block(ops: Ops[Value], config: NetworkConfig, i: int, x: Value) -> Value:
    """One layer: the residual stream before and after it, (tokens, width)."""
    b, layer = config.blocks[i], f"layers.{i}"
    h = x if b.attention_norm is None else ops.norm(x, b.attention_norm, f"{layer}.attention_norm")
    a = attention(ops, config, i, h)
    before, x = x, ops.add(x, a, f"{layer}.attention_out")
    if b.ffn_norm is not None:
        h = ops.norm(before if b.parallel else x, b.ffn_norm, f"{layer}.ffn_norm")
    elif not b.parallel:
        h = x
    h = feed_forward(ops, config, i, h)
    return ops.add(x, h, f"{layer}.out")


def attention(ops: Ops[Value], config: NetworkConfig, i: int, h: Value) -> Value:
    """What attention adds to the residual stream; `h` is normed: (tokens, width)."""
    a, matmuls, layer = config.blocks[i].attention, by_role(config, i), f"layers.{i}"
    q, k, v = ops.linear(h, matmuls[Role.Q], matmuls[Role.K], matmuls[Role.V])
    if a.qk_norm is not None:
        q = ops.norm(q, a.qk_norm, f"{layer}.q_norm", a.heads)
        k = ops.norm(k, a.qk_norm, f"{layer}.k_norm", a.kv_heads)
    if a.rope is not None:
        q, k = ops.rope(q, k, a)
    mixed = ops.attend(q, k, v, a, i)  # (tokens, q_width)
    (out,) = ops.linear(mixed, matmuls[Role.O])
    norm = config.blocks[i].attention_post_norm
    return _added(ops, config.blocks[i], out if norm is None else ops.norm(out, norm, f"{layer}.attention_post_norm"))


def feed_forward(ops: Ops[Value], config: NetworkConfig, i: int, h: Value) -> Value:
    """What the feed-forward part adds to the residual stream; `h` is normed: (tokens, width)."""
    f, matmuls = config.blocks[i].feed_forward, by_role(config, i)
    if f.gated:
        gate, up = ops.linear(h, matmuls[Role.GATE], matmuls[Role.UP])
        h = ops.gated(gate, up, f.activation)  # (tokens, ffn_width)
    else:
        (up,) = ops.linear(h, matmuls[Role.UP])
        h = ops.activate(up, f.activation)
    (out,) = ops.linear(h, matmuls[Role.DOWN])
    norm = config.blocks[i].ffn_post_norm
    return _added(ops, config.blocks[i], out if norm is None else ops.norm(out, norm, f"layers.{i}.ffn_post_norm"))


def _added(ops: Ops[Value], block: Block, out: Value) -> Value:
    return out if block.residual_scale == 1 else ops.scaled(out, block.residual_scale)


def head_input(ops: Ops[Value], config: NetworkConfig, x: Value) -> Value:
    """What the vocabulary matmul reads: (rows, width)."""
    if config.head.norm is not None:
        x = ops.norm(x, config.head.norm, "final_norm")
    return ops.turn(x, "head_basis") if config.head.turned else x


def head(ops: Ops[Value], config: NetworkConfig, x: Value) -> Value:
    """The final norm and the vocabulary matmul: (rows, vocabulary)."""
    (logits,) = ops.linear(head_input(ops, config, x), linears(config)[-1])
    if config.head.scale != 1:
        logits = ops.scaled(logits, config.head.scale)
    if config.head.softcap is not None:
        logits = ops.softcap(logits, config.head.softcap)
    return logits
