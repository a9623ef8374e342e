"""A slot folder: two bundles of one model, and slots.json, which says which of them runs.

    slots.json    the state, replaced atomically; see state.py
    a/ b/ c/      bundles
    incoming/     a bundle that is being put together; see staging.py
    trash/        on its way out
    .lock         held by the process that changes the folder, or is on trial in it

Whatever a cut leaves, slots.json names only bundles that are whole and on the disk; what it does not name is
cleared away by the next one who takes the lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import ConfigurationError, UpdateError
from device_runtime.machine.process_lock import process_lock
from device_runtime.update import durable
from device_runtime.update.active import STATE, is_slot_folder, read_state
from device_runtime.update.state import SLOTS, Last, Slot, State, TrialLimits

__all__ = ["INCOMING", "Slots", "leftovers", "lock"]

INCOMING = "incoming"
_TRASH = "trash"
_LOCK = ".lock"
_PID_BYTES = 10


class Slots:
    """A slot folder that this process has locked. Every step is on the disk when it returns, and can be repeated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = read_state(folder)

    @property
    def incoming(self) -> Path:
        """Where a new bundle is put together."""
        return self.folder / INCOMING

    def path(self, slot: Slot) -> Path:
        """The bundle in a slot."""
        return self.folder / slot

    def clean(self) -> None:
        """Clear away what a cut has left: what slots.json does not name, and what was on its way out."""
        for path in leftovers(self.folder, self.state):
            durable.remove(path)

    def forget_previous(self) -> None:
        """Make room on the disk: there is no going back to the bundle before the active one any more."""
        previous = self.state.previous
        if previous is not None:
            self._save(self.state.without_previous())
            self._discard(self.path(previous))

    def discard_incoming(self) -> None:
        """Drop the bundle that is being put together."""
        self._discard(self.incoming)

    def install(self, limits: TrialLimits, last: Last) -> None:
        """Make `incoming`, which has to be whole and flushed, the bundle on trial."""
        self._discard(self.path(self.state.free))
        durable.move(self.incoming, self.path(self.state.free))
        self._save(self.state.installed(limits, last))

    def attempt(self) -> None:
        """Count a start of the trial."""
        self._save(self.state.attempt())

    def confirm(self, security_counter: int, last: Last) -> None:
        """The trial was passed."""
        oldest = self.state.previous
        self._save(self.state.confirmed(security_counter, last))
        if oldest is not None:
            self._discard(self.path(oldest))

    def give_back(self, last: Last) -> None:
        """The trial was not passed, or was called off."""
        failed = self.state.trial
        self._save(self.state.returned(last))
        if failed is not None:
            self._discard(self.path(failed.slot))

    def swap(self, last: Last) -> None:
        """Go back to the previous bundle."""
        self._save(self.state.swapped(last))

    def _save(self, state: State) -> None:
        durable.replace_file(self.folder / STATE, state.to_json())
        self.state = state

    def _discard(self, path: Path) -> None:
        if path.exists():
            trash = self.folder / _TRASH
            durable.remove(trash)
            durable.move(path, trash)  # at once and whole: a bundle that lacks files is never where one is expected
            durable.remove(trash)


@contextmanager
def lock(folder: Path, *, make: bool = False) -> Iterator[Slots]:
    """Take a slot folder for oneself, and clear away what a cut has left there.

    Args:
        make: make the folder if it is not there.

    Raises:
        ConfigurationError: there is no slot folder.
        UpdateError: somebody else is at it, it cannot be written, or its state is damaged.
    """
    if make:
        _check_place(folder)
        durable.make_folder(folder)
    elif not is_slot_folder(folder):
        what = "is not a slot folder: it has no slots.json" if folder.exists() else "does not exist"
        raise ConfigurationError(f"{folder} {what}. Make one with `stonechat slots install BUNDLE {folder}`.")
    locked = process_lock(
        folder / _LOCK,
        unwritable=lambda why: UpdateError(
            f"{folder} cannot be changed ({why}); do it as the user whose folder it is, on a disk that can be written."
        ),
        taken=lambda holder: UpdateError(
            f"{folder} is being changed by process {holder}; wait until it is done, then try again."
        ),
    )
    with locked:
        if not is_slot_folder(folder):  # first of all: from here on `a` and `b` in this folder are ours
            durable.replace_file(folder / STATE, State().to_json())
        slots = Slots(folder)
        slots.clean()
        yield slots


def leftovers(folder: Path, state: State) -> list[Path]:
    """What is in the folder and nothing points to."""
    named = {state.active, state.previous, state.trial.slot if state.trial else None}
    unnamed = [folder / _TRASH, folder / f"{STATE}.new", *(folder / slot for slot in SLOTS if slot not in named)]
    return [path for path in unnamed if path.exists()]


def _check_place(folder: Path) -> None:
    """A slot folder is not made on top of something else."""
    if is_slot_folder(folder) or not folder.exists():
        return
    if not folder.is_dir() or any(child.name not in (f"{STATE}.new", _LOCK) for child in folder.iterdir()):
        raise ConfigurationError(f"{folder} exists and is not a slot folder; name another one, or an empty one.")
