"""The tuning loop: seeded, and resumable to the same end.

The layers below those that are tuned never change, so what they give is computed once for each case and kept. What is
drawn depends on the seed and the epoch alone, and a checkpoint holds all the rest, so a run that was interrupted ends
with the weights of one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from converters.network.weights import CanonicalWeights
from toolkit.train.arrays import UNREADABLE, kept_state, write_arrays, write_state
from toolkit.train.tune import layers
from toolkit.train.tune.conversations import Batch, Conversation, batches_of, prefixes_of
from toolkit.train.tune.layers import Adapter, Run
from toolkit.train.tune.ops_jax import Sequences
from toolkit.train.tune.steps import Earlier, rates

__all__ = ["Below", "Plan", "below", "tune"]

Array = npt.NDArray[np.float32]
_SAVE_S = 30.0  # between checkpoints
_READ_TOGETHER = 16  # cases that the layers below are computed for at a time


@dataclass(frozen=True)
class Plan:
    """What is tuned, and how long."""

    layers: int  # the upper ones
    adapter: Adapter
    epochs: int = 6
    batch: int = 16  # cases a step
    peak: float = 1e-3  # learning rate
    decay: float = 0.01  # weight decay


@dataclass(frozen=True)
class Below:
    """What the layers below give: the residual stream that the tuned ones read."""

    prefixes: Array  # (tasks, longest prefix, width)
    begins: npt.NDArray[np.int32]  # (tasks,): positions of each prefix
    cases: Array  # (positions of all cases, one after the other, width)
    starts: npt.NDArray[np.int64]  # (cases + 1,): where each case begins


def below(
    weights: CanonicalWeights,
    cases: Sequence[Conversation],
    count: int,
    tasks: int,
    path: Path,
    progress: Callable[[float], None],
) -> Below:
    """Compute what `count` layers give for all cases, or read it from `path`."""
    try:
        with np.load(path) as kept:
            return Below(*(kept[name] for name in ("prefixes", "begins", "cases", "starts")))
    except UNREADABLE:
        pass
    prefixes = prefixes_of(cases, tasks)
    own = [case.tokens[len(prefixes[case.task]) : -1] for case in cases]
    order = sorted(range(len(cases)), key=lambda i: (cases[i].task, len(own[i])))
    groups, members = [], []
    for task, prefix in enumerate(prefixes):
        rows = [i for i in order if cases[i].task == task]
        for start in range(0, len(rows), _READ_TOGETHER):
            part = rows[start : start + _READ_TOGETHER]
            length = -(-max(len(own[i]) for i in part) // 16) * 16
            tokens = np.zeros((_READ_TOGETHER, length), np.int32)
            for row, i in enumerate(part):
                tokens[row, : len(own[i])] = own[i]
            groups.append((prefix, tokens))
            members.append((task, part))
    states = layers.read_below(weights, count, groups, progress)
    width, longest = weights.config.width, max(map(len, prefixes))
    starts = np.concatenate([[0], np.cumsum([len(tokens) for tokens in own])]).astype(np.int64)
    of_cases = np.empty((int(starts[-1]), width), np.float32)
    of_prefixes = np.zeros((tasks, longest, width), np.float32)
    for (task, part), (prefix_state, values) in zip(members, states, strict=True):
        of_prefixes[task, : len(prefix_state)] = prefix_state
        for row, i in enumerate(part):
            of_cases[starts[i] : starts[i + 1]] = values[row, : len(own[i])]
    found = Below(of_prefixes, np.array([len(p) for p in prefixes], np.int32), of_cases, starts)
    write_arrays(path, {"prefixes": found.prefixes, "begins": found.begins, "cases": of_cases, "starts": starts})
    return found


def tune(
    weights: CanonicalWeights,
    cases: Sequence[Conversation],
    states: Below,
    plan: Plan,
    seed: int,
    checkpoint: Path,
    log: Callable[[int, int, float], None],
    before: Earlier | None = None,
) -> tuple[list[Run], list[dict[str, Array]]]:
    """Train, from `checkpoint` if there is one of this very run; returns what was trained of each run of layers.

    Args:
        log: called with the steps that are done, all steps, and the mean loss of the last ones.
        before: a tuning of the same layers and factors, whose weights this one begins with.
    """
    config = weights.config
    runs = layers.runs_of(config, config.layers - plan.layers)
    own = [layers.stacked(weights, run) for run in runs]
    head = layers.head_weights(weights)
    trained = layers.initial(config, runs, plan.adapter, own, seed)
    if before is not None:
        begin, form = jax.tree.flatten(trained)
        trained = jax.tree.unflatten(form, before.weights(begin, 0))
    prefixes = [tuple(cases[_first(cases, t)].tokens[: int(begin)]) for t, begin in enumerate(states.begins)]
    steps = plan.epochs * len(_batches(cases, prefixes, plan, seed, 0))
    transform = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rates(plan.peak, steps), b2=0.98, weight_decay=plan.decay)
    )
    leaves, tree = jax.tree.flatten((trained, transform.init(trained)))
    step = 0
    if (kept := kept_state(checkpoint, leaves, "step")) is not None:
        (step,), leaves = kept
    trained, inner = jax.tree.unflatten(tree, leaves)
    places = states.prefixes.shape[1]

    def loss(trained: layers.Trained, own: Any, head: Any, begin: jax.Array, x: jax.Array, b: Mapping[str, Any]) -> Any:
        count, length = b["tokens"].shape
        rows = Sequences(places, count, length, begin)
        hidden = layers.above(config, runs, own, trained, plan.adapter, rows, x)[places:]
        at = (jnp.arange(count)[:, None] * length + b["slots"]).reshape(-1)
        said = layers.logits(config, head, hidden[at])
        losses = optax.softmax_cross_entropy_with_integer_labels(said, b["targets"].reshape(-1))
        weight = b["weights"].reshape(-1)
        return (losses * weight).sum() / weight.sum()

    def one(trained: layers.Trained, inner: Any, own: Any, head: Any, begin: Any, x: Any, b: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(trained, own, head, begin, x, b)
        updates, inner = transform.update(gradient, inner, trained)
        return optax.apply_updates(trained, updates), inner, value

    compiled = jax.jit(one, donate_argnums=(0, 1))
    saved_s, epoch, batches = time.monotonic(), -1, []
    losses: list[float] = []
    per_epoch = steps // plan.epochs
    while step < steps:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = _batches(cases, prefixes, plan, seed, epoch)
        batch, rows = batches[step % per_epoch]
        arrays = {"tokens": batch.tokens, "slots": batch.slots, "targets": batch.targets, "weights": batch.weights}
        x = _states(states, batch, rows)
        trained, inner, value = compiled(trained, inner, own, head, int(states.begins[batch.task]), x, arrays)
        step += 1
        losses = [*losses[-19:], float(value)]
        log(step, steps, float(np.mean(losses)))
        if time.monotonic() - saved_s > _SAVE_S or step == steps:
            write_state(checkpoint, jax.tree.leaves((trained, inner)), step=step)
            saved_s = time.monotonic()
    return runs, [{name: np.asarray(value) for name, value in part.items()} for part in trained]


def _first(cases: Sequence[Conversation], task: int) -> int:
    return next(i for i, case in enumerate(cases) if case.task == task)


def _batches(
    cases: Sequence[Conversation], prefixes: Sequence[tuple[int, ...]], plan: Plan, seed: int, epoch: int
) -> list[tuple[Batch, list[int]]]:
    return batches_of(cases, prefixes, plan.batch, np.random.default_rng([seed, epoch]))


def _states(states: Below, batch: Batch, rows: Sequence[int]) -> Array:
    """What the tuned layers read of a batch: (prefix + cases * length, width)."""
    count, length = batch.tokens.shape
    x = np.zeros((count, length, states.cases.shape[1]), np.float32)
    for place, i in enumerate(rows):
        values = states.cases[states.starts[i] : states.starts[i + 1]]
        x[place, : len(values)] = values
    return np.concatenate([states.prefixes[batch.task], x.reshape(count * length, -1)])
