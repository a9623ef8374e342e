"""THE list of a network's tensors, matmuls and activations: everything that works on one of them reads it here.

Canonical tensor names, with i from 0:

    embed.weight                    (vocabulary, width)
    positions.weight                (positions, width), where the network learned them
    layers.{i}.attention_norm.weight  (width,)            and .bias where the norm has one
    layers.{i}.q.weight             (heads * head_dim, width)      and .bias where the family has one
    layers.{i}.k.weight, .v.weight  (kv_heads * head_dim, width)
    layers.{i}.q_norm.weight, .k_norm.weight  (head_dim,)
    layers.{i}.o.weight             (width, heads * head_dim)
    layers.{i}.attention_post_norm.weight  (width,)
    layers.{i}.ffn_norm.weight      (width,)
    layers.{i}.gate.weight, .up.weight  (ffn_width, width)
    layers.{i}.down.weight          (width, ffn_width)
    layers.{i}.ffn_post_norm.weight  (width,)
    final_norm.weight               (width,)
    head_basis.weight               (width, width), where the head reads another basis than the residual stream has
    head.weight                     (vocabulary, width), absent when the head is tied

q and k are in half-split RoPE order: dimension j of a head turns together with j + rotated / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal

from converters.network.config import NetworkConfig, Norm

__all__ = [
    "Activation",
    "Linear",
    "Role",
    "Tensor",
    "activations",
    "by_role",
    "groups",
    "linears",
    "matmul_weights",
    "residual_names",
    "tensors",
]


class Role(StrEnum):
    """What a matmul is for; the value is the last part of its name."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741  the field's name for it
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    HEAD = "head"


@dataclass(frozen=True)
class Linear:
    """One matmul."""

    name: str  # "layers.3.down"
    role: Role
    layer: int | None  # None: the head
    group: int  # matmuls of one group read the same input; groups are numbered as the decoder reads them
    input: str  # activation that it reads: `NAME.in`, under the name of the first of its group
    norm: str | None  # the norm whose result it reads, "layers.3.ffn_norm", and whose gain folds into it; None: none
    rows: int  # values of its result
    columns: int  # values of its input
    bias: bool

    @property
    def weight(self) -> str:
        """Name of the tensor."""
        return f"{self.name}.weight"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint."""

    stem: str  # "down", "attention_norm", "embed": what name tables of families are keyed by
    part: Literal["weight", "bias"]
    shape: tuple[int, ...]
    kind: Literal["embedding", "positions", "gain", "norm bias", "weight", "bias", "basis"]
    layer: int | None  # None: outside of the layers
    matmul: Linear | None = None  # whose weight or bias it is

    @property
    def name(self) -> str:
        """The canonical name, "layers.3.down.weight"."""
        layer = "" if self.layer is None else f"layers.{self.layer}."
        return f"{layer}{self.stem}.{self.part}"


@dataclass(frozen=True)
class Activation:
    """One named activation, as `NumpyOps` gives it to an observer."""

    name: str
    kind: Literal["input", "result", "queries", "keys", "values", "scores", "probabilities", "residual"]
    layer: int | None
    role: Role | None = None  # of the matmul that reads it (input) or makes it (result)
    last: bool = False  # the layer's last: the residual sum after the feed-forward part


@lru_cache(maxsize=8)
def tensors(config: NetworkConfig) -> tuple[Tensor, ...]:
    """Every canonical tensor of a network, in the order in which the decoder reads them."""
    return tuple(_tensors(config))


@lru_cache(maxsize=8)
def linears(config: NetworkConfig) -> tuple[Linear, ...]:
    """Every matmul, in the order in which the decoder reads them; the head is last."""
    return tuple(_linears(config))


@lru_cache(maxsize=8)
def groups(config: NetworkConfig) -> tuple[tuple[Linear, ...], ...]:
    """The matmuls that read one input, in the order in which the decoder calls `linear`."""
    found: dict[int, list[Linear]] = {}
    for matmul in linears(config):
        found.setdefault(matmul.group, []).append(matmul)
    return tuple(map(tuple, found.values()))


@lru_cache(maxsize=512)
def by_role(config: NetworkConfig, layer: int) -> dict[Role, Linear]:
    """The matmuls of one layer."""
    return {matmul.role: matmul for matmul in linears(config) if matmul.layer == layer}


@lru_cache(maxsize=8)
def activations(config: NetworkConfig) -> dict[str, Activation]:
    """Every named activation by its name."""
    return {activation.name: activation for activation in _activations(config)}


def residual_names(config: NetworkConfig) -> list[str]:
    """The residual stream after each attention and after each feed-forward part."""
    return [a.name for a in activations(config).values() if a.kind == "residual"]


def matmul_weights(config: NetworkConfig) -> int:
    """Weights that one token's step multiplies with: all matmuls, the head among them."""
    return sum(matmul.rows * matmul.columns for matmul in linears(config))


def _linears(config: NetworkConfig) -> Iterator[Linear]:
    group, first, width = -1, "", config.width
    for i, block in enumerate(config.blocks):
        a, f, layer = block.attention, block.feed_forward, f"layers.{i}"
        before_attention = f"{layer}.attention_norm" if block.attention_norm else None
        before_ffn = f"{layer}.ffn_norm" if block.ffn_norm else (before_attention if block.parallel else None)
        parts: list[tuple[Role, str | None, int, int, bool, bool]] = [
            (Role.Q, before_attention, a.q_width, width, a.bias, True),
            (Role.K, before_attention, a.kv_width, width, a.bias, False),
            (Role.V, before_attention, a.kv_width, width, a.bias, False),
            (Role.O, None, width, a.q_width, a.output_bias, True),
            *([(Role.GATE, before_ffn, f.width, width, f.bias, True)] if f.gated else []),
            (Role.UP, before_ffn, f.width, width, f.bias, not f.gated),
            (Role.DOWN, None, width, f.width, f.bias, True),
        ]
        for role, norm, rows, columns, bias, begins in parts:
            group += begins
            first = f"{layer}.{role}.in" if begins else first
            yield Linear(f"{layer}.{role}", role, i, group, first, norm, rows, columns, bias)
    norm = "final_norm" if config.head.norm else None
    yield Linear("head", Role.HEAD, None, group + 1, "head.in", norm, config.vocabulary, width, config.head.bias)


def _tensors(config: NetworkConfig) -> Iterator[Tensor]:
    width = config.width
    yield Tensor("embed", "weight", (config.vocabulary, width), "embedding", None)
    if config.embedding.positions:
        yield Tensor("positions", "weight", (config.embedding.positions, width), "positions", None)
    for i, block in enumerate(config.blocks):
        matmuls, qk = by_role(config, i), block.attention.qk_norm
        yield from _norm("attention_norm", block.attention_norm, width, i)
        for role in (Role.Q, Role.K, Role.V):
            yield from _matmul(matmuls[role])
        for name in ("q_norm", "k_norm"):
            yield from _norm(name, qk, block.attention.head_dim, i)
        yield from _matmul(matmuls[Role.O])
        yield from _norm("attention_post_norm", block.attention_post_norm, width, i)
        yield from _norm("ffn_norm", block.ffn_norm, width, i)
        for role in (Role.GATE, Role.UP, Role.DOWN):
            if role in matmuls:
                yield from _matmul(matmuls[role])
        yield from _norm("ffn_post_norm", block.ffn_post_norm, width, i)
    yield from _norm("final_norm", config.head.norm, width, None)
    if config.head.turned:
        yield Tensor("head_basis", "weight", (width, width), "basis", None)
    head = linears(config)[-1]
    if not config.head.tied:
        yield Tensor("head", "weight", (head.rows, head.columns), "weight", None, head)
    if head.bias:
        yield Tensor("head", "bias", (head.rows,), "bias", None, head)


def _norm(name: str, norm: Norm | None, width: int, layer: int | None) -> Iterator[Tensor]:
    if norm is not None and norm.gain:
        yield Tensor(name, "weight", (width,), "gain", layer)
    if norm is not None and norm.bias:
        yield Tensor(name, "bias", (width,), "norm bias", layer)


def _matmul(matmul: Linear) -> Iterator[Tensor]:
    yield Tensor(matmul.role.value, "weight", (matmul.rows, matmul.columns), "weight", matmul.layer, matmul)
    if matmul.bias:
        yield Tensor(matmul.role.value, "bias", (matmul.rows,), "bias", matmul.layer, matmul)


def _activations(config: NetworkConfig) -> Iterator[Activation]:
    for group in groups(config):
        first = group[0]
        yield Activation(first.input, "input", first.layer, first.role)
        for matmul in group:
            yield Activation(matmul.name, "result", matmul.layer, matmul.role)
        if first.role is Role.Q:
            for kind in ("queries", "keys", "values", "scores", "probabilities"):
                yield Activation(f"layers.{first.layer}.{kind}", kind, first.layer)
        if first.role is Role.O:
            yield Activation(f"layers.{first.layer}.attention_out", "residual", first.layer)
        if first.role is Role.DOWN:
            yield Activation(f"layers.{first.layer}.out", "residual", first.layer, last=True)
