"""The tuning loop of an encoder: seeded, and resumable to the same end.

What is drawn at a step depends on the seed and the step's number alone, and a checkpoint holds all the rest, so a run
that was interrupted ends with the weights of one that was not.
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

from converters.encoders.network import EncoderConfig
from toolkit.train.arrays import kept_state, write_state
from toolkit.train.tune.encoder.network import LOOKING, Parts, Trained, logits
from toolkit.train.tune.encoder.texts import Batch, Texts, batches_of
from toolkit.train.tune.steps import Earlier, rates

__all__ = ["LOOKS", "Plan", "mean_of", "tune_encoder"]

_SAVE_S = 30.0  # between checkpoints
_HEAD = 10.0  # times the learning rate: heads begin with nothing
_DROP = 0.1  # see `JaxSentences`
LOOKS = "looks"  # in what a training was made with: each field weighs the rows by itself; earlier ones had the mean


@dataclass(frozen=True)
class Plan:
    """How long and how hard to tune."""

    epochs: int = 1
    batch: int = 16  # cases a step
    peak: float = 2e-4  # learning rate
    decay: float = 0.01  # weight decay
    average: float = 0.98  # of the running mean of the weights, which is what the bundle gets
    noise: float = 0.03  # share of a text's tokens that are exchanged for others, which differ at each step
    keep: float = 0.0  # share of the weights that it begins with in those that it ends with


def tune_encoder(
    config: EncoderConfig,
    parts: Parts,
    sizes: Sequence[int],
    texts: Texts,
    plan: Plan,
    seed: int,
    checkpoint: Path,
    log: Callable[[int, int, float], None],
) -> dict[str, npt.NDArray[np.float32]]:
    """Tune, from `checkpoint` if there is one of this very run; returns the averaged weights.

    Args:
        config: with heads, see `with_heads`.
        sizes: values of each field.
        log: called with the steps that are done, all steps, and the mean loss of the last ones.
    """
    per_epoch = len(batches_of(texts, plan.batch, np.random.default_rng([seed, 0])))
    steps = plan.epochs * per_epoch
    transform = _optimizer(parts.trained, plan, steps)
    begin, mean = (jax.tree.map(jnp.copy, parts.trained) for _ in range(2))  # a step writes where its state was
    state: Any = (begin, mean, transform.init(begin))
    leaves, tree = jax.tree.flatten(state)
    step = 0
    if (kept := kept_state(checkpoint, leaves, "step")) is not None:
        (step,), leaves = kept
    state = jax.tree.unflatten(tree, leaves)

    def loss(trained: Trained, fixed: Any, below: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
        drawn, other, dropped = jax.random.split(key, 3)
        tokens, lengths = batch["tokens"], batch["lengths"]
        place = jnp.arange(tokens.shape[1])
        within = (place > 0) & (place < lengths[:, None] - 1)  # of the text, without its frame
        exchanged = within & (jax.random.uniform(drawn, tokens.shape) < plan.noise)
        tokens = jnp.where(exchanged, jax.random.randint(other, tokens.shape, 0, config.vocabulary), tokens)
        found = logits(config, fixed, below, trained, tokens, lengths, dropped, _DROP)
        losses, start = jnp.zeros(len(tokens)), 0
        for field, count in enumerate(sizes):
            of_values = found[:, start : start + count]
            losses += optax.softmax_cross_entropy_with_integer_labels(of_values, batch["labels"][:, field])
            start += count
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    def one(state: Any, fixed: Any, below: Any, batch: Any, step: Any) -> tuple[Any, jax.Array]:
        trained, mean, inner = state
        key = jax.random.fold_in(jax.random.key(seed), step)
        value, gradient = jax.value_and_grad(loss)(trained, fixed, below, batch, key)
        updates, inner = transform.update(gradient, inner, trained)
        trained = optax.apply_updates(trained, updates)
        share = jnp.minimum(plan.average, (step + 1) / (step + 10))  # of a mean that has seen little yet
        mean = jax.tree.map(lambda m, t: m * share + t * (1 - share), mean, trained)
        return (trained, mean, inner), value

    compiled = jax.jit(one, donate_argnums=0)
    saved_s, epoch = time.monotonic() if step else 0.0, -1  # the first step, which compiles, is kept at once
    batches: list[Batch] = []
    losses: list[float] = []
    while step < steps:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = batches_of(texts, plan.batch, np.random.default_rng([seed, epoch]))
        b = batches[step % per_epoch]
        arrays = {"tokens": b.tokens, "lengths": b.lengths, "labels": b.labels, "weights": b.weights}
        state, value = compiled(state, parts.fixed, parts.below, arrays, jnp.asarray(step))
        step += 1
        losses = [*losses[-19:], float(value)]
        log(step, steps, float(np.mean(losses)))
        if time.monotonic() - saved_s > _SAVE_S or step == steps:
            write_state(checkpoint, jax.tree.leaves(state), step=step)
            saved_s = time.monotonic()
    if step == steps and plan.keep:
        mean = jax.tree.map(lambda was, now: was * plan.keep + now * (1 - plan.keep), parts.trained, state[1])
        state, step = (state[0], mean, state[2]), step + 1  # so that it is done once
        write_state(checkpoint, jax.tree.leaves(state), step=step)
    return {name: np.asarray(value) for name, value in state[1].items()}


def mean_of(before: Earlier, trained: Trained) -> Trained:
    """The averaged weights that an earlier tuning ended with, in place of `trained`."""
    known = {name: value for name, value in trained.items() if LOOKS in before.made_with or name not in LOOKING}
    leaves, tree = jax.tree.flatten(known)
    found: Trained = jax.tree.unflatten(tree, before.weights(leaves, len(leaves)))  # after those of its last step
    return {**trained, **found}  # fields that looked for nothing of their own go on with the mean, as they did


def _optimizer(trained: Trained, plan: Plan, steps: int) -> optax.GradientTransformation:
    """AdamW; norms and biases do not decay, and heads learn faster."""
    decayed = {name: name.endswith(".weight") and "norm" not in name for name in trained}
    factors = {name: _HEAD if name.startswith("head.") else 1.0 for name in trained}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(plan.decay, decayed),
        optax.stateless(lambda updates, _: {name: value * factors[name] for name, value in updates.items()}),
        optax.scale_by_learning_rate(rates(plan.peak, steps)),
    )
