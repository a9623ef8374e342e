"""What `stonechat slots` does to a slot folder on this device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from boards import load_board
from device_runtime.bundle.manifest import Manifest
from device_runtime.bundle.trust import TrustStore, trusted
from device_runtime.errors import ConfigurationError, RolledBackError
from device_runtime.machine.requirements import require_room
from device_runtime.update.active import is_slot_folder, read_state
from device_runtime.update.install import Installed, install, preview
from device_runtime.update.policy import Policy
from device_runtime.update.slots import Slots, lock
from device_runtime.update.state import TrialLimits
from device_runtime.update.trial import roll_back, try_pending
from toolkit.device.installed import check_is_served, fits_on
from toolkit.device.slot_state import SlotState

__all__ = ["go_back", "hold_trial", "install_bundle", "state_of"]


def install_bundle(
    bundle: Path, folder: Path, limits: TrialLimits, *, keys: Path | None, board: str | None, trial: bool
) -> tuple[Installed, SlotState]:
    """Put a bundle into the free slot and, with `trial`, try it.

    Args:
        keys: whose bundles are taken; None is this device's keys.
        board: which one this is; None asks only whether this machine has the memory.

    Raises:
        RolledBackError: it did not pass its trial.
        StonechatError: it was not installed; see `update.install`.
    """
    trust = trusted(keys)
    policy = Policy(trust, *_of_board(board))
    preview(bundle, policy)  # before a folder is made for it
    if not is_slot_folder(folder):
        check_is_served(folder)
    with lock(folder, make=True) as slots:
        done = install(bundle, slots, limits, policy)
        if slots.state.trial is not None and trial:
            _try(slots, trust)
        return done, SlotState.of(folder, slots.state)


def state_of(folder: Path) -> SlotState:
    """The state of a slot folder.

    Raises:
        ConfigurationError: it is none.
    """
    if not is_slot_folder(folder):
        what = "is not a slot folder" if folder.exists() else "does not exist"
        raise ConfigurationError(f"{folder} {what}. Make one with `stonechat slots install BUNDLE FOLDER`.")
    return SlotState.of(folder, read_state(folder))


def hold_trial(folder: Path, keys: Path | None) -> SlotState:
    """Hold the trial that is due; returns the state after it.

    Raises:
        ConfigurationError: none is due.
        RolledBackError: it was not passed.
    """
    with lock(folder) as slots:
        if slots.state.trial is None:
            raise ConfigurationError(f"No bundle in {folder} waits for a trial; install one first.")
        _try(slots, trusted(keys))
        return SlotState.of(folder, slots.state)


def go_back(folder: Path, keys: Path | None) -> SlotState:
    """Go back to the bundle before, or call off a trial; returns the state after it."""
    with lock(folder) as slots:
        roll_back(slots, trusted(keys))
        return SlotState.of(folder, slots.state)


def _of_board(name: str | None) -> tuple[str | None, Callable[[Manifest], object]]:
    """The id of a board, and what raises a `DoesNotFitError` when it, or else this machine, does not hold a bundle."""
    if name is None:
        return None, require_room
    board = load_board(name)
    return board.id, fits_on(board)


def _try(slots: Slots, trust: TrustStore) -> None:
    last = try_pending(slots, trust=trust)
    if last.outcome == "rolled_back":
        state = SlotState.of(slots.folder, slots.state)
        runs = f"Version {state.version(state.active)} runs as before." if state.active else "No bundle runs here yet."
        raise RolledBackError(
            f"version {last.version} of {last.name} did not pass its trial: {last.reason}. {runs}",
            version=last.version,
            reason=last.reason,
        )
