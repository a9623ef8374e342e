"""The training loop: seeded, and resumable to the same end.

What is drawn at a step depends on the seed and the step's number alone, and a checkpoint holds all the rest (weights,
the optimizer's state, the step), so a run that was interrupted ends with the weights of one that was not.
"""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from device_runtime.tasks.file import Network
from toolkit.train import network
from toolkit.train.cases import Cases

__all__ = ["Schedule", "optimize"]

_TOGETHER = 25  # steps that are computed in one call
_SAVE_S = 30.0  # between checkpoints
_KEPT_PATH = 0.95  # of blocks, while training: the rest is left out for a case, so that no block relies on another
Log = Callable[[int, float], None]  # (step, mean loss since the last call)


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train."""

    steps: int
    batch: int = 128
    peak: float = 2e-3  # learning rate
    warmup: float = 0.05  # share of the steps
    decay: float = 0.05  # weight decay
    average: float = 0.998  # of the running mean of the weights, which is what the bundle gets
    drop: bool = False  # leave out blocks at random


def optimize(
    shape: Network, vocabulary: int, cases: Cases, schedule: Schedule, seed: int, checkpoint: Path, log: Log
) -> dict[str, npt.NDArray[np.float32]]:
    """Train, from `checkpoint` if there is one of this very run; returns the averaged weights."""
    transform = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(_rates(schedule), b2=0.98, weight_decay=schedule.decay),
    )
    weights = network.initial(shape, vocabulary, seed)
    mean = jax.tree.map(jnp.copy, weights)  # the memory of the state is used again at each step
    state: Any = (weights, mean, transform.init(weights))
    leaves, tree = jax.tree.flatten(state)
    step = 0
    if (kept := _load(checkpoint, leaves)) is not None:
        step, leaves = kept
        state = jax.tree.unflatten(tree, leaves)
    tokens, learnt = jnp.asarray(cases.tokens), jnp.asarray(cases.learnt)
    ends = None if cases.ends is None else jnp.asarray(cases.ends)
    labels = None if cases.labels is None else jnp.asarray(cases.labels)

    def loss(weights: network.Parameters, rows: jax.Array, key: jax.Array) -> jax.Array:
        batch, mask = tokens[rows], learnt[rows]
        drop = None
        if schedule.drop:
            kept = jax.random.bernoulli(key, _KEPT_PATH, (shape.layers, 2, schedule.batch, 1, 1))
            drop = kept.astype(jnp.float32) / _KEPT_PATH
        hidden = network.forward(weights, batch[:, :-1], shape, drop)
        losses = optax.softmax_cross_entropy_with_integer_labels(network.logits(weights, hidden), batch[:, 1:])
        if ends is None or labels is None:
            return (losses * mask).sum() / mask.sum()
        # Of words what the mask says, of each field its head's decision after the prompt.
        decided = network.logits(weights, hidden[jnp.arange(len(rows)), ends[rows]])  # (B, V)
        total = (losses * mask).sum() / jnp.maximum((mask > 0).sum(), 1)
        for field, head in enumerate(cases.heads):
            of_values = decided[:, jnp.array(head)]
            total += optax.softmax_cross_entropy_with_integer_labels(of_values, labels[rows, field]).mean()
        return total

    def one(state: Any, drawn: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        weights, mean, inner = state
        value, gradient = jax.value_and_grad(loss)(weights, *drawn)
        updates, inner = transform.update(gradient, inner, weights)
        weights = optax.apply_updates(weights, updates)
        mean = jax.tree.map(lambda m, w: schedule.average * m + (1 - schedule.average) * w, mean, weights)
        return (weights, mean, inner), value

    several = jax.jit(lambda state, rows, keys: jax.lax.scan(one, state, (rows, keys)), donate_argnums=0)
    saved_s = time.monotonic()
    while step < schedule.steps:
        count = min(_TOGETHER, schedule.steps - step)
        rows = np.stack([_drawn(len(cases.tokens), schedule.batch, seed, step + i) for i in range(count)])
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), step + i) for i in range(count)])
        state, losses = several(state, jnp.asarray(rows), keys)
        step += count
        log(step, float(losses.mean()))
        if time.monotonic() - saved_s > _SAVE_S or step == schedule.steps:
            _save(checkpoint, step, jax.tree.leaves(state))
            saved_s = time.monotonic()
    return {name: np.asarray(value) for name, value in state[1].items()}


def _rates(schedule: Schedule) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        0.0, schedule.peak, max(1, int(schedule.steps * schedule.warmup)), schedule.steps, schedule.peak * 0.02
    )


def _drawn(cases: int, batch: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """The cases of a step: each epoch takes all of them in an order of its own."""
    first = step * batch
    rows = []
    for place in range(first // cases, (first + batch - 1) // cases + 1):
        order = _order(cases, seed, place)
        rows.append(order[max(0, first - place * cases) : first + batch - place * cases])
    return np.concatenate(rows)


_orders: dict[tuple[int, int, int], npt.NDArray[np.int64]] = {}


def _order(cases: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    key = (cases, seed, epoch)
    if key not in _orders:
        if len(_orders) > 2:
            _orders.clear()
        _orders[key] = np.random.default_rng([seed, epoch]).permutation(cases)
    return _orders[key]


def _save(path: Path, step: int, leaves: list[Any]) -> None:
    """Whole or not at all: SIGKILL may come at any moment."""
    held = io.BytesIO()
    arrays: dict[str, Any] = {f"l{i:03}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    np.savez(held, step=np.asarray(step), **arrays)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as stream:
        stream.write(held.getvalue())
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def _load(path: Path, like: list[Any]) -> tuple[int, list[Any]] | None:
    try:
        with np.load(path) as arrays:
            step = int(arrays["step"])
            leaves = [arrays[f"l{i:03}"] for i in range(len(like))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if [leaf.shape for leaf in leaves] != [np.shape(leaf) for leaf in like]:
        return None
    return step, [jnp.asarray(leaf, dtype=np.asarray(old).dtype) for leaf, old in zip(leaves, like, strict=True)]
