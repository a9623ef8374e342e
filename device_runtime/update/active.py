"""The bundle that a path stands for: a bundle folder itself, or the active one of a slot folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError, UpdateError

if TYPE_CHECKING:
    from device_runtime.bundle.trust import TrustStore
    from device_runtime.update.state import State

__all__ = ["STATE", "is_slot_folder", "open_bundle", "read_state", "resolve"]

STATE = "slots.json"


def is_slot_folder(path: Path) -> bool:
    """Whether a path is a slot folder rather than a bundle or something else."""
    return (path / STATE).is_file()


def read_state(folder: Path) -> State:
    """The state of a slot folder; that of an empty one when nothing was ever installed there.

    Raises:
        UpdateError: slots.json is damaged.
    """
    from device_runtime.update.state import State  # which a bundle without slots does without

    path = folder / STATE
    try:
        return State.from_json(path.read_bytes())
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise UpdateError(f"{path} cannot be read ({error.strerror}).") from None
    except UpdateError as error:
        raise UpdateError(
            f"{path}: {error}. The bundles beside it may be whole: run one of them by its own path, or move the "
            "folder away and install again."
        ) from None


def resolve(path: Path) -> Path:
    """The bundle that `path` stands for: the active one of a slot folder; a path to anything else stays as it is.

    Raises:
        ConfigurationError: the slot folder has no bundle that passed its trial.
        UpdateError: its state is damaged.
    """
    if not is_slot_folder(path):
        return path
    state = read_state(path)
    if state.active is not None:
        return path / state.active
    if state.trial is not None:
        raise ConfigurationError(f"{path} has a bundle that waits for its trial; run `stonechat slots trial {path}`.")
    reason = f" ({state.last.reason})" if state.last and state.last.reason else ""
    raise ConfigurationError(
        f"{path} has no bundle that passed its trial{reason}; install one with `stonechat slots install BUNDLE {path}`."
    )


def open_bundle(path: Path | str, *, verify: bool = False, trust: TrustStore | None = None) -> Bundle:
    """Open a bundle folder, or the active bundle of a slot folder: whatever a person may name on a command line.

    Args:
        verify, trust: as for `Bundle.open`.

    Raises:
        ConfigurationError: there is no bundle at `path`, or none in the slot folder that passed its trial.
        UpdateError: the state of the slot folder is damaged.
        SignatureError, BundleError: as `Bundle.open`.
    """
    return Bundle.open(resolve(Path(path)), verify=verify, trust=trust)
