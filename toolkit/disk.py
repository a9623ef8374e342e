"""Room on a disk, asked for before work that would fill it."""

from __future__ import annotations

import shutil
from pathlib import Path

from device_runtime.errors import DiskFullError

__all__ = ["require_space"]


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Make sure that a folder's disk has room.

    Args:
        folder: where it is written; it or one of its parents exists.
        what: is written there, for the message.

    Raises:
        DiskFullError: it has less.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free_bytes = shutil.disk_usage(there).free
    if free_bytes < needed_bytes:
        raise DiskFullError(
            f"{what} needs {needed_bytes / 1e6:,.0f} MB in {folder.absolute()}, and the disk has "
            f"{free_bytes / 1e6:,.0f} MB free. Free some, or name a folder on another disk.",
            path=str(folder.absolute()),
            needed_bytes=needed_bytes,
            available_bytes=free_bytes,
        )
