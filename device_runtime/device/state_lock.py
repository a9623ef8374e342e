"""One process at a time is a device: the one that holds the lock in its state folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import ConfigurationError

__all__ = ["state_lock"]

_PID_BYTES = 10


@contextmanager
def state_lock(device: str, state_dir: Path) -> Iterator[None]:
    """Hold the lock of a state folder. The system gives it back when the process ends, however it ends.

    Raises:
        ConfigurationError: another process holds it, or the folder cannot be written.
    """
    path = state_dir / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigurationError(
            f"cannot lock {path}: {error.strerror}. Name a folder that can be written with --state-dir."
        ) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(file, _PID_BYTES, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigurationError(
                f"the device {device!r} runs on this machine already: process {holder} holds {path}. Stop it, or give "
                "this one another id and another --state-dir."
            ) from None
        os.pwrite(file, str(os.getpid()).ljust(_PID_BYTES).encode(), 0)  # for the message above
        yield
    finally:
        os.close(file)
