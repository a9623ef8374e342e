"""The training loop: seeded, and resumable to the same end.

What is drawn at a step depends on the seed and the step's number alone, and a checkpoint holds all the rest (weights,
the optimizer's state, the step), so a run that was interrupted ends with the weights of one that was not.
"""

from __future__ import annotations

import time
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
from toolkit.train.arrays import kept_state, write_state
from toolkit.train.cases import WORD_WEIGHT, Cases
from toolkit.train.distil import Soft

__all__ = ["Schedule", "optimize"]

_TOGETHER = 25  # steps that are computed in one call
_LENGTHS = (0.6, 0.9, 1.0)  # shares of the cases, by their length
_LEAST_SPLIT = 32  # cases of a batch that is split
_CHECK_STEPS, _CHECKS = 200, 6  # a look at the held cases, and how many in a row must be good enough
_HELD = 1024  # of them, at most
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
    enough: float = 2.0  # share of the held cases' decisions that is good enough to end early; above 1: never
    noise: float = 0.0  # share of a text's tokens that are exchanged for others, which differ at each step


def optimize(
    shape: Network,
    vocabulary: int,
    cases: Cases,
    schedule: Schedule,
    seed: int,
    checkpoint: Path,
    log: Log,
    held: Cases | None = None,
    table: npt.NDArray[np.float32] | None = None,
    soft: Soft | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Train, from `checkpoint` if there is one of this very run; returns the averaged weights.

    Args:
        held: cases that are not trained on; where `schedule.enough` of their decisions have been right for some time,
            the training ends before its last step.
        table: what tokens are read by, (vocabulary, size); see `network.with_map`. What follows what in a text is not
            learnt then, only what is decided.
        soft: a teacher's distributions, which the decisions of `cases` are learnt from as well.
    """
    transform = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(_rates(schedule), b2=0.98, weight_decay=schedule.decay),
    )
    weights = network.initial(shape, vocabulary, seed)
    known = None if table is None else jnp.asarray(table)
    weights = weights if table is None else network.with_map(weights, table)
    mean = jax.tree.map(jnp.copy, weights)  # the memory of the state is used again at each step
    state: Any = (weights, mean, transform.init(weights))
    leaves, tree = jax.tree.flatten(state)
    step = settled = 0  # settled: how many checks in a row found that it is good enough
    if (kept := kept_state(checkpoint, leaves, "step", "settled")) is not None:
        (step, settled), leaves = kept
        state = jax.tree.unflatten(tree, leaves)
    parts = _by_length(cases, schedule.batch)
    tokens, learnt = jnp.asarray(cases.tokens), jnp.asarray(cases.learnt)
    ends = None if cases.ends is None else jnp.asarray(cases.ends)
    labels = None if cases.labels is None else jnp.asarray(cases.labels)

    taught = None if soft is None else [jnp.asarray(values) for values in soft.targets]
    places = None if soft is None else jnp.asarray(soft.places)
    counts = jnp.zeros((len(tokens), 1)) if soft is None else jnp.asarray(soft.weights)

    def of_teacher(weights: network.Parameters, hidden: jax.Array, rows: jax.Array) -> jax.Array:
        """The summed loss of some cases' decisions against the teacher's shares."""
        found = jnp.zeros(())
        if soft is None or taught is None or places is None:
            return found
        for field, (head, shares) in enumerate(zip(soft.heads, taught, strict=True)):
            of_values = network.logits(weights, hidden[jnp.arange(len(rows)), places[rows, field]], head)
            losses = optax.softmax_cross_entropy(of_values, shares[rows])
            found += (losses * counts[rows, field]).sum()
        return found

    def of_fields(weights: network.Parameters, hidden: jax.Array, rows: jax.Array) -> jax.Array:
        """The summed loss of the decisions about some cases, of the kind classify."""
        assert ends is not None and labels is not None
        last, found = hidden[jnp.arange(len(rows)), ends[rows]], jnp.zeros(())  # (B, C)
        for field, head in enumerate(cases.heads):
            of_values = network.logits(weights, last, head)
            losses = optax.softmax_cross_entropy_with_integer_labels(of_values, labels[rows, field])
            found += losses.sum() if soft is None else (losses * (1 - counts[rows, field])).sum()
        return found + of_teacher(weights, hidden, rows)

    def sums(weights: network.Parameters, rows: jax.Array, key: jax.Array, length: int) -> tuple[jax.Array, ...]:
        """Of some cases, which are at most `length` long: the summed loss of their tokens, and of their decisions."""
        batch, mask = tokens[rows, :length], learnt[rows, : length - 1]
        drop, read = None, batch[:, :-1]
        if schedule.drop:
            kept = jax.random.bernoulli(key, _KEPT_PATH, (shape.layers, 2, len(rows), 1, 1))
            drop = kept.astype(jnp.float32) / _KEPT_PATH
        if schedule.noise:  # a word is known by those around it as well
            key, other = jax.random.split(key)
            within = (mask == WORD_WEIGHT)[:, 1:] & (mask == WORD_WEIGHT)[:, :-1]  # of the prompt, but its ends
            drawn = jax.random.uniform(key, within.shape) < schedule.noise
            others = jax.random.randint(other, within.shape, 3, vocabulary)
            read = read.at[:, 1:].set(jnp.where(within & drawn, others, read[:, 1:]))
        hidden = network.forward(weights, read, shape, drop, known)
        if known is not None:
            return jnp.zeros(()), jnp.ones(()), of_fields(weights, hidden, rows)
        losses = optax.softmax_cross_entropy_with_integer_labels(network.logits(weights, hidden), batch[:, 1:])
        of_tokens = (losses * mask).sum()
        if ends is None:
            return of_tokens + of_teacher(weights, hidden, rows), mask.sum() + counts[rows].sum(), jnp.zeros(())
        # Of words what the mask says, of each field its head's decision after the prompt.
        return of_tokens, (mask > 0).sum(), of_fields(weights, hidden, rows)

    def loss(weights: network.Parameters, rows: jax.Array, key: jax.Array) -> jax.Array:
        found, start = [], 0
        for number, part in enumerate(parts):
            own = rows[start : start + part.batch]
            found.append(sums(weights, own, jax.random.fold_in(key, number), part.length))
            start += part.batch
        of_tokens, count, decisions = (sum(values) for values in zip(*found, strict=True))
        return jnp.asarray(of_tokens / jnp.maximum(count, 1) + decisions / schedule.batch)

    def one(state: Any, drawn: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        weights, mean, inner = state
        rows, key, done = drawn
        value, gradient = jax.value_and_grad(loss)(weights, rows, key)
        updates, inner = transform.update(gradient, inner, weights)
        weights = optax.apply_updates(weights, updates)
        # Of a short training, too, next to nothing of how the weights began is left in their mean.
        average = jnp.minimum(schedule.average, (1.0 + done) / (10.0 + done))
        mean = jax.tree.map(lambda m, w: average * m + (1 - average) * w, mean, weights)
        return (weights, mean, inner), value

    several = jax.jit(lambda state, *drawn: jax.lax.scan(one, state, drawn), donate_argnums=0)
    saved_s = time.monotonic()
    right = None if held is None or schedule.enough > 1 else _share_right(shape, held)
    while step < schedule.steps and settled < _CHECKS:
        count = min(_TOGETHER, schedule.steps - step)
        rows = np.stack([_batch(parts, seed, step + i) for i in range(count)])
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), step + i) for i in range(count)])
        state, losses = several(state, jnp.asarray(rows), keys, jnp.arange(step, step + count))
        step += count
        log(step, float(losses.mean()))
        if right is not None and step % _CHECK_STEPS == 0:
            settled = settled + 1 if right(state[1]) >= schedule.enough else 0
        if time.monotonic() - saved_s > _SAVE_S or step == schedule.steps or settled == _CHECKS:
            write_state(checkpoint, jax.tree.leaves(state), step=step, settled=settled)
            saved_s = time.monotonic()
    found = {name: np.asarray(value) for name, value in state[1].items()}
    return found if table is None else network.without_map(found, table)


def _share_right(shape: Network, held: Cases) -> Callable[[network.Parameters], float]:
    """How many of the held cases' decisions some weights make as they should."""
    tokens, learnt = jnp.asarray(held.tokens[:_HELD]), jnp.asarray(held.learnt[:_HELD])

    def share(weights: network.Parameters) -> jax.Array:
        hidden = network.forward(weights, tokens[:, :-1], shape)
        if held.ends is not None and held.labels is not None:
            last = hidden[jnp.arange(len(tokens)), jnp.asarray(held.ends[:_HELD])]
            labels = jnp.asarray(held.labels[:_HELD])
            found = [
                network.logits(weights, last, head).argmax(-1) == labels[:, i] for i, head in enumerate(held.heads)
            ]
            return jnp.stack(found).mean()
        right = network.logits(weights, hidden).argmax(-1) == tokens[:, 1:]
        decisions = learnt == 1.0
        return (right & decisions).sum() / decisions.sum()

    compiled = jax.jit(share)
    return lambda weights: float(compiled(weights))


def _rates(schedule: Schedule) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        0.0, schedule.peak, max(1, int(schedule.steps * schedule.warmup)), schedule.steps, schedule.peak * 0.02
    )


@dataclass(frozen=True)
class _Part:
    """Cases of about one length: a batch has its share of each part, and none is computed as if it were the longest."""

    rows: npt.NDArray[np.int64]
    length: int  # tokens, of the longest
    batch: int  # of its cases, in each step


def _by_length(cases: Cases, batch: int) -> list[_Part]:
    """The cases in up to three parts: six in ten are short, one in ten is long."""
    lengths = 1 + np.count_nonzero(np.cumsum(cases.learnt[:, ::-1] > 0, axis=1), axis=1)  # to the last that is learnt
    if cases.ends is not None:
        lengths = np.maximum(lengths, cases.ends + 2)
    order = np.argsort(lengths, kind="stable")
    longest, middle = int(lengths.max()), int(np.median(lengths))
    shares = _LENGTHS if longest > 1.3 * middle and batch >= _LEAST_SPLIT else (1.0,)
    parts, first, taken = [], 0, 0
    for share in shares:
        last, until = round(len(order) * share), round(batch * share)
        parts.append(_Part(order[first:last], int(lengths[order[last - 1]]), until - taken))
        first, taken = last, until
    return parts


def _batch(parts: list[_Part], seed: int, step: int) -> npt.NDArray[np.int64]:
    """The cases of a step, part by part."""
    return np.concatenate([part.rows[_drawn(len(part.rows), part.batch, seed, step)] for part in parts])


def _drawn(cases: int, batch: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Each epoch takes all of them in an order of its own."""
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
        if len(_orders) > 8:
            _orders.clear()
        _orders[key] = np.random.default_rng([seed, epoch]).permutation(cases)
    return _orders[key]
