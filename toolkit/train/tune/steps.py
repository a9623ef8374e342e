"""What every tuning needs: its learning rates, the one that it goes on from, and what it shows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax

from device_runtime.errors import ConfigurationError
from toolkit.train.arrays import read_state, state_sha256
from toolkit.train.weights import SETTINGS, TRAINED, Progress, is_finished, work_folder

__all__ = ["Earlier", "earlier", "rates", "shown"]

_WARMUP = 0.06  # share of the steps


def rates(peak: float, steps: int) -> optax.Schedule:
    """The learning rate of each step: up for a moment, then down as a cosine."""
    warmup = max(1, int(steps * _WARMUP))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), peak * 0.02)


@dataclass(frozen=True)
class Earlier:
    """A tuning that another one goes on from."""

    bundle: Path
    made_with: Mapping[str, Any]  # its settings
    sha256: str  # of its state

    def weights(self, like: list[Any], place: int) -> list[Any]:
        """Those that it ended with.

        Args:
            like: the weights that are to be replaced.
            place: where they begin in the state.

        Raises:
            ConfigurationError: it tuned other weights, or they cannot be read.
        """
        try:
            found = read_state(work_folder(self.bundle) / TRAINED, like, place=place)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error} Train {self.bundle} again.") from None
        if found is None:
            raise self.other_weights()
        return found[1]

    def other_weights(self) -> ConfigurationError:
        """What to raise where it tuned other weights."""
        names = ("layers", "rank")
        had = ", ".join(f"--{name} {self.made_with[name]}" for name in names if self.made_with.get(name) is not None)
        return ConfigurationError(
            f"--further names {self.bundle}, whose training had other weights; give its {had}, and a task with the "
            "same fields and labels."
        )


def earlier(bundle: Path | None, output: Path, checkpoint: str) -> Earlier | None:
    """The finished tuning of a bundle, to go on from; None where none is named.

    Args:
        output: the folder of the bundle to be made.
        checkpoint: the sha256 of the checkpoint that is tuned.

    Raises:
        ConfigurationError: it has left no state that can be read, is not finished, began with another checkpoint, or
            is where the new one is to be.
    """
    if bundle is None:
        return None
    work = work_folder(bundle)
    if work.resolve() == work_folder(output).resolve():
        raise ConfigurationError(f"--further names {bundle}, where -o puts the new bundle; give that another folder.")
    try:
        made_with = dict(json.loads((work / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        made_with = {}
    if "checkpoint" not in made_with or not (work / TRAINED).is_file():
        raise ConfigurationError(
            f"--further names {bundle}, and {work} has no steps of a tuning; expected what "
            "`stonechat train --kind tune` left beside its bundle."
        )
    if not is_finished(work):
        raise ConfigurationError(f"{work} is not finished; go on with it first, by the command that began it.")
    if made_with["checkpoint"] != checkpoint:
        raise ConfigurationError(f"{bundle} was tuned from another checkpoint; give the same one with --from.")
    try:
        return Earlier(bundle, made_with, state_sha256(work / TRAINED))
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} Train {bundle} again.") from None


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
