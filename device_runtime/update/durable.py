"""Changes to files that a power cut cannot halve. Every change to a slot folder is made by these functions.

A file system may write what it was given late, and in another order: names before contents, the second rename before
the first. What has to be on the disk before the next step begins is therefore flushed here, contents with fsync on
the file and names with fsync on the folder. No modification time is ever read: a board without a clock has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["append", "make_folder", "move", "remove", "replace_file", "sync_file", "sync_folder", "write_file"]


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Flush what a file holds."""
    _sync(path, os.O_RDONLY)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    os.mkdir(folder, 0o755)
    sync_folder(folder.parent)


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that nobody reads yet and flush what it holds; its name is flushed with the folder's."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        offset = 0
        for chunk in chunks:
            _write(file, chunk, offset)
            offset += len(chunk)
        os.fsync(file)
    finally:
        os.close(file)


def append(path: Path, offset: int, data: bytes) -> None:
    """Put `data` at `offset`, the end of a file that is made if needed. Nothing is flushed."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _write(file, data, offset)
    finally:
        os.close(file)


def replace_file(path: Path, content: bytes) -> None:
    """Give a file a new content: a reader sees the old one or the new one, also after a power cut.

    Raises:
        OSError: it cannot be written. The old content stays, and nothing beside it.
    """
    aside = path.with_name(f"{path.name}.new")
    try:
        write_file(aside, [content])
        move(aside, path)
    except OSError:  # such as of a full disk, which an unfinished file would keep full
        with suppress(OSError):
            os.unlink(aside)
        raise


def move(source: Path, target: Path) -> None:
    """Rename; a file in the way is replaced, a folder in the way must be empty."""
    os.rename(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, that nothing points to any more. May be cut, and repeated."""
    if path.is_symlink() or not path.is_dir():
        if path.is_symlink() or path.exists():
            os.unlink(path)
        return
    for child in sorted(path.iterdir()):
        remove(child)
    os.rmdir(path)


def _write(file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _sync(path: Path, flags: int) -> None:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
