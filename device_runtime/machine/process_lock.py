"""A lock file that one process at a time holds. The system gives it back when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["process_lock"]

_PID_BYTES = 10


@contextmanager
def process_lock(
    path: Path, *, unwritable: Callable[[str], Exception], taken: Callable[[str], Exception]
) -> Iterator[None]:
    """Hold the lock at `path`, which has the number of the process that holds it.

    Args:
        unwritable: makes the error for a file that cannot be opened, of the reason.
        taken: makes the error for a lock that another process holds, of its number.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:  # another user's, or a disk that has become read-only
        raise unwritable(error.strerror or str(error)) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise taken(os.pread(file, _PID_BYTES, 0).decode("ascii", "replace").strip() or "unknown") from None
        os.pwrite(file, str(os.getpid()).ljust(_PID_BYTES).encode(), 0)  # for the message of another one
        yield
    finally:
        os.close(file)  # which gives back the lock
