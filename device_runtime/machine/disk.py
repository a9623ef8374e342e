"""Room on a disk, asked for before work that would fill it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from device_runtime.errors import DiskFullError

__all__ = ["disk_full", "free_bytes", "in_blocks", "require_space"]

_BLOCK_BYTES = 4096  # of the file systems that boards have


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write on the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def in_blocks(sizes: Iterable[int]) -> int:
    """What files of these sizes (bytes) take on a disk, and the folder that they are in."""
    return _BLOCK_BYTES + sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in sizes)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Make sure that a folder's disk has room.

    Args:
        folder: where it is written; it or one of its parents exists.
        what: is written there, for the message.

    Raises:
        DiskFullError: it has less.
    """
    folder = folder.absolute()
    there = folder
    while not there.exists():
        there = there.parent
    free = free_bytes(there)
    if free < needed_bytes:
        raise disk_full(what, str(folder), needed_bytes, free, "Free some, or name a folder on another disk.")


def disk_full(what: str, place: str, needed_bytes: int, available_bytes: int, advice: str) -> DiskFullError:
    """The error for less room than the work needs.

    Args:
        place: a path, or a path on another machine.
    """
    digits = 0 if min(needed_bytes, needed_bytes - available_bytes) >= 10e6 else 3
    return DiskFullError(
        f"{what} needs {needed_bytes / 1e6:,.{digits}f} MB in {place}, and the disk has "
        f"{available_bytes / 1e6:,.{digits}f} MB free. {advice}",
        path=place,
        needed_bytes=needed_bytes,
        available_bytes=available_bytes,
    )
