"""What every tuning loop needs: its learning rates, its state on the disk, and what it shows."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from toolkit.train.arrays import write_arrays
from toolkit.train.weights import Progress

__all__ = ["load", "rates", "save", "shown"]

_WARMUP = 0.06  # share of the steps


def rates(peak: float, steps: int) -> optax.Schedule:
    """The learning rate of each step: up for a moment, then down as a cosine."""
    warmup = max(1, int(steps * _WARMUP))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), peak * 0.02)


def save(path: Path, step: int, leaves: list[Any]) -> None:
    """Keep the state after a step."""
    write_arrays(path, {"step": np.asarray(step), **{f"l{i:03}": np.asarray(leaf) for i, leaf in enumerate(leaves)}})


def load(path: Path, like: list[Any]) -> tuple[int, list[Any]] | None:
    """The step and the state that were kept; None where there is none of this form."""
    try:
        with np.load(path) as arrays:
            step, leaves = int(arrays["step"]), [arrays[f"l{i:03}"] for i in range(len(like))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if [leaf.shape for leaf in leaves] != [np.shape(leaf) for leaf in like]:
        return None
    return step, [jnp.asarray(leaf, dtype=np.asarray(old).dtype) for leaf, old in zip(leaves, like, strict=True)]


def shown(progress: Progress) -> Callable[[int, int, float], None]:
    """What to call after each step with its number, how many there are, and the mean loss of the last ones."""
    begun: list[tuple[int, float]] = []

    def log(step: int, steps: int, loss: float) -> None:
        now_s = time.monotonic()
        begun.append((step, now_s))
        first, first_s = begun[min(1, len(begun) - 1)]  # the first step compiles
        each_s = (now_s - first_s) / max(1, step - first)
        left = f", {each_s * (steps - step) / 60:.0f} min left" if len(begun) > 3 else ""
        progress("tuning", step / steps, f"loss {loss:.3f}{left}")

    return log
