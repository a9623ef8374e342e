"""The layers of a checkpoint on JAX: those below, which are read once, and those above, which are tuned.

Blocks that are alike and follow each other are compiled once and run in a loop (`jax.lax.scan`) over their stacked
weights; a network whose blocks differ is a few such loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from converters.network.config import NetworkConfig
from converters.network.decoder import block, head
from converters.network.tensors import linears, tensors
from converters.network.weights import CanonicalWeights
from toolkit.train.tune.jax_parts import Tensors
from toolkit.train.tune.ops_jax import JaxOps, Sequences

__all__ = ["Adapter", "Run", "above", "head_weights", "initial", "logits", "merged", "read_below", "runs_of", "stacked"]

Array = npt.NDArray[np.float32]
Trained = list[dict[str, jax.Array]]  # of each run, by the name within a layer; stacked


@dataclass(frozen=True)
class Adapter:
    """What is trained of each matmul."""

    rank: int  # of the two factors; 0: the weights themselves
    alpha: float = 2.0  # times the rank: how much the product counts

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha


@dataclass(frozen=True)
class Run:
    """Layers that follow each other and are alike."""

    first: int
    count: int

    @property
    def layers(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.count)


def runs_of(config: NetworkConfig, first: int) -> list[Run]:
    """The layers from `first` on."""
    found: list[Run] = []
    for i in range(first, config.layers):
        if found and config.blocks[i] == config.blocks[found[-1].first]:
            found[-1] = Run(found[-1].first, found[-1].count + 1)
        else:
            found.append(Run(i, 1))
    return found


def _names(config: NetworkConfig, layer: int) -> list[str]:
    """Of a layer's tensors, without the layer."""
    return [t.name.removeprefix(f"layers.{layer}.") for t in tensors(config) if t.layer == layer]


def _within(layer: int, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {f"layers.{layer}.{name}": value for name, value in values.items()}


def stacked(weights: CanonicalWeights, run: Run) -> dict[str, jax.Array]:
    """A run's tensors, (layers, …) each."""
    rows: dict[str, list[Array]] = {name: [] for name in _names(weights.config, run.first)}
    for layer in run.layers:
        for name, kept in rows.items():
            kept.append(weights(f"layers.{layer}.{name}"))
    weights.release()
    return {name: jnp.asarray(np.stack(rows.pop(name))) for name in list(rows)}


def head_weights(weights: CanonicalWeights) -> dict[str, jax.Array]:
    """What the head reads, by canonical name."""
    names = [t.name for t in tensors(weights.config) if t.layer is None and t.stem in ("final_norm", "head")]
    return {name: jnp.asarray(weights(name)) for name in dict.fromkeys([*names, "head.weight"])}


def initial(config: NetworkConfig, runs: Sequence[Run], adapter: Adapter, below: Trained, seed: int) -> Trained:
    """What training begins with: factors whose product is 0, or the weights themselves.

    Args:
        below: the runs' own weights.
    """
    rng = np.random.default_rng(seed)
    matmuls = {matmul.name: matmul for matmul in linears(config)}
    found: Trained = []
    for run, weights in zip(runs, below, strict=True):
        own: dict[str, jax.Array] = {}
        for name in [name for name in weights if f"layers.{run.first}.{name.removesuffix('.weight')}" in matmuls]:
            stem = name.removesuffix(".weight")
            matmul = matmuls[f"layers.{run.first}.{stem}"]
            if not adapter.rank:
                own[name] = jnp.array(weights[name])
                continue
            drawn = rng.normal(0, matmul.columns**-0.5, (run.count, adapter.rank, matmul.columns))
            own[f"{stem}.a"] = jnp.asarray(drawn.astype(np.float32))
            own[f"{stem}.b"] = jnp.zeros((run.count, matmul.rows, adapter.rank))
        found.append(own)
    return found


def above(
    config: NetworkConfig,
    runs: Sequence[Run],
    weights: Sequence[Tensors],
    trained: Trained,
    adapter: Adapter,
    rows: Sequences,
    x: jax.Array,
) -> jax.Array:
    """The runs' layers: the residual stream before and after them."""
    for run, own, more in zip(runs, weights, trained, strict=True):

        def one(x: jax.Array, layer: Any, first: int = run.first) -> tuple[jax.Array, None]:
            own, more = (_within(first, values) for values in layer)
            return block(JaxOps(config, own, rows, trained=more, scale=adapter.scale), config, first, x), None

        x, _ = jax.lax.scan(one, x, (own, more))
    return x


def logits(config: NetworkConfig, weights: Tensors, x: jax.Array) -> jax.Array:
    """The head: (rows, vocabulary)."""
    return head(JaxOps(config, weights, Sequences(0, len(x), 1, 0)), config, x)


def read_below(
    weights: CanonicalWeights,
    layers: int,
    groups: Sequence[tuple[Sequence[int], npt.NDArray[np.int32]]],
    progress: Callable[[float], None],
) -> list[tuple[Array, Array]]:
    """What the layers below give, layer by layer, so that no more than one is in memory.

    Args:
        layers: how many of them.
        groups: prefix and (cases, length) tokens each; groups of one shape are compiled once.

    Returns:
        of each group the residual stream of the prefix, (prefix, width), and of the cases, (cases, length, width).
    """
    config = weights.config

    @partial(jax.jit, static_argnums=(0, 1, 2))
    def embedded(prefix: int, count: int, length: int, table: Tensors, tokens: jax.Array) -> jax.Array:
        return JaxOps(config, table, Sequences(prefix, count, length, prefix), tokens).embed()

    @partial(jax.jit, static_argnums=(0, 1, 2, 3))
    def layer(like: int, prefix: int, count: int, length: int, own: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        rows = Sequences(prefix, count, length, prefix)
        return block(JaxOps(config, _within(like, own), rows), config, like, x)

    table = {name: jnp.asarray(weights(name)) for name in ("embed.weight", "positions.weight") if _has(config, name)}
    states = []
    for prefix, tokens in groups:
        flat = jnp.concatenate([jnp.asarray(prefix, jnp.int32), jnp.asarray(tokens.reshape(-1))])
        states.append(embedded(len(prefix), *tokens.shape, table, flat))
    del table
    for i in range(layers):
        like = config.blocks.index(config.blocks[i])
        own = {name: jnp.asarray(weights(f"layers.{i}.{name}")) for name in _names(config, i)}
        for number, (prefix, tokens) in enumerate(groups):
            states[number] = layer(like, len(prefix), *tokens.shape, own, states[number])
            progress((i + (number + 1) / len(groups)) / layers)
    weights.release()
    found = []
    for (prefix, tokens), state in zip(groups, states, strict=True):
        values = np.asarray(state)
        found.append((values[: len(prefix)], values[len(prefix) :].reshape(*tokens.shape, -1)))
    return found


def _has(config: NetworkConfig, name: str) -> bool:
    return any(tensor.name == name for tensor in tensors(config))


def merged(
    runs: Sequence[Run], trained: Sequence[Mapping[str, Array]], adapter: Adapter, name: str, weight: Array
) -> Array:
    """A weight of the checkpoint with what was trained of it, in float32: W + scale B A."""
    for run, own in zip(runs, trained, strict=True):
        for layer in run.layers:
            if not name.startswith(f"layers.{layer}."):
                continue
            stem, place = name.removeprefix(f"layers.{layer}."), layer - run.first
            if stem in own:
                return np.asarray(own[stem][place], np.float32)
            factor = stem.removesuffix(".weight")
            if stem.endswith(".weight") and f"{factor}.a" in own:
                added = own[f"{factor}.b"][place] @ own[f"{factor}.a"][place]
                return np.asarray(weight + np.float32(adapter.scale) * added, np.float32)
    return weight
