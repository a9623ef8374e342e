"""Folders and files that are made beside their target, and get its name when they are whole.

The process that makes one holds a lock on it (flock), which ends with the process, however that ends. So what has such
a name and no lock is left over from a process that was killed, and the next one that works there clears it away.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from device_runtime.errors import ConfigurationError, StonechatError
from device_runtime.machine.path_errors import cannot_write

__all__ = [
    "clear_leftovers", "made_folders", "naming", "put_in_place", "whole_file", "whole_stream", "work_file",
    "work_folder",
]  # fmt: skip

_NAME = re.compile(r"\..*\.stonechat-[0-9a-f]{8}", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' renameat2(2)
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextmanager
def work_folder(target: Path, mode: int = 0o700) -> Iterator[Path]:
    """A new folder beside `target`; it is removed at the end, unless `put_in_place` has moved it."""
    with _work(target, lambda path: path.mkdir(mode=mode)) as path:
        yield path


@contextmanager
def work_file(target: Path, mode: int = 0o666) -> Iterator[Path]:
    """A new empty file beside `target`; it is removed at the end, unless it was moved."""
    with _work(target, lambda path: path.touch(mode, exist_ok=False)) as path:
        yield path


@contextmanager
def whole_file(target: Path) -> Iterator[Callable[[str | bytes], None]]:
    """Write a file that a user has named, with the function that this context gives; text in UTF-8.

    The file appears at the end of the context, whole, and only where something was written: after Ctrl-C, an error or
    nothing to write, `target` is as it was.

    Raises:
        ConfigurationError: it cannot be written. `target` is named, not the file beside it.
        DiskFullError: its disk is full.
    """
    written = False
    with ExitStack() as stack:  # not one block: what else goes wrong within the context is no fault of the file
        with naming(target):
            _require_replaceable(target)
            part = stack.enter_context(work_file(target))
            stream = part.open("wb")
            stack.callback(_close, stream)

        def write(content: str | bytes) -> None:
            nonlocal written
            with naming(target):
                stream.write(content.encode() if isinstance(content, str) else content)
            written = True

        yield write
        with naming(target):
            stream.close()
            if written:
                put_in_place(part, target)


@contextmanager
def whole_stream(target: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """The same for what is written by a function that takes a stream: this context is for nothing else, and the file
    appears at its end also where nothing was written. `mode` is that of the file."""
    with naming(target):
        _require_replaceable(target)
        with work_file(target, mode) as part:
            with part.open("wb") as stream:
                yield stream
            put_in_place(part, target)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes have left in a folder; what cannot be removed stays."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if _NAME.fullmatch(path.name) and not path.is_symlink():
                _remove_if_left(path)


def put_in_place(work: Path, target: Path) -> None:
    """Give a finished folder or file the name of its target. What had it before is then at `work`.

    At every moment there is something whole at `target`, if there was before, where the file system can exchange two
    names (Linux' own can); elsewhere there is nothing for the time between two system calls.
    """
    if not os.path.lexists(target):
        work.rename(target)
        return
    try:
        _exchange(work, target)
        return
    except OSError as error:
        if error.errno not in _CANNOT_EXCHANGE:
            raise
    aside = _name_beside(target)
    target.rename(aside)
    try:
        work.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    aside.rename(work)


@contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; where this context ends with an error, those that are empty go again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Have what the system says while a file is written name that file.

    Raises:
        ConfigurationError: it cannot be written.
        DiskFullError: its disk is full.
    """
    try:
        yield
    except StonechatError:
        raise
    except OSError as error:
        raise cannot_write(target, error) from None


def _require_replaceable(target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if target.exists() and not target.is_file():  # a rename would put a file in its place
        raise ConfigurationError(f"{target} is a device or a pipe; name a file.")


def _close(stream: BinaryIO) -> None:
    with suppress(OSError):  # of a full disk: it is known, and what is left to be written is not wanted any more
        stream.close()


@contextmanager
def _work(target: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    clear_leftovers(target.parent)
    path, lock = _name_beside(target), None
    try:  # from before it is made: Ctrl-C may come at any moment
        lock = _made_and_locked(path, make)
        yield path
    finally:
        _remove(path)
        if lock is not None:
            os.close(lock)


def _made_and_locked(path: Path, make: Callable[[Path], object]) -> int:
    """The lock on a new folder or file; another process may take it for a leftover before it is locked."""
    while True:
        make(path)
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):  # a file system without locks: then nothing is ever taken for a leftover
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(OSError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        os.close(lock)


def _name_beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.stonechat-{secrets.token_hex(4)}")


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error: somebody is at it
            _remove(path)
        finally:
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step (renameat2)."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))
