"""One process at a time is a device: the one that holds the lock in its state folder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from device_runtime.errors import ConfigurationError
from device_runtime.machine.process_lock import process_lock

__all__ = ["state_lock"]


def state_lock(device: str, state_dir: Path) -> AbstractContextManager[None]:
    """Hold the lock of a state folder.

    Raises:
        ConfigurationError: another process holds it, or the folder cannot be written.
    """
    path = state_dir / "lock"
    return process_lock(
        path,
        unwritable=lambda why: ConfigurationError(
            f"cannot lock {path}: {why}. Name a folder that can be written with --state-dir."
        ),
        taken=lambda holder: ConfigurationError(
            f"the device {device!r} runs on this machine already: process {holder} holds {path}. Stop it, or give this "
            "one another id and another --state-dir."
        ),
    )
