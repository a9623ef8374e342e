"""What the system says of a path, with the next step."""

from __future__ import annotations

import errno
from pathlib import Path

from device_runtime.errors import ConfigurationError, DiskFullError, StonechatError

__all__ = ["cannot_write", "is_full", "next_step", "why_unreadable"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEXT_STEPS = {
    errno.ENOENT: "Check the path; the folder that a file goes into must be there.",
    errno.EEXIST: "Choose another name, or remove what is there.",
    errno.ENOTDIR: "Check the path: a part of it is a file, not a folder.",
    errno.EISDIR: "Name a file; this is a folder.",
    errno.EACCES: "Choose a place that this user may use, or change its permissions.",
    errno.EPERM: "Choose a place that this user may use, or change its permissions.",
    errno.EROFS: "Choose a place on a disk that can be written.",
    errno.EFBIG: "Choose a place that takes larger files, or raise this user's limit (`ulimit -f`).",
    **dict.fromkeys(_FULL, "Free some, or choose a place on another disk."),
}


def next_step(error: OSError) -> str | None:
    """What a user may do; a sentence. None where nothing is known to help."""
    return _NEXT_STEPS.get(error.errno or 0)


def is_full(error: OSError) -> bool:
    """Whether it is the disk, or what this user may have of it, that is full."""
    return error.errno in _FULL


def why_unreadable(error: Exception) -> str:
    """For a log: what the system says of a file, or that what it holds is not what it should be."""
    return (error.strerror if isinstance(error, OSError) else None) or "it is damaged"


def cannot_write(path: Path, error: OSError, advice: str | None = None) -> StonechatError:
    """The error for a file that a user has named, to raise in place of the system's, which may name no path or another.

    Args:
        advice: the next step, in place of the usual one.

    Returns:
        a DiskFullError where the disk is full, else a ConfigurationError.
    """
    said = f"{path} cannot be written: {error.strerror or error}."
    if advice := advice or next_step(error):
        said += f" {advice}"
    return DiskFullError(said, path=str(path)) if is_full(error) else ConfigurationError(said)
