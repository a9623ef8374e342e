"""Files that are whole or not there, and secrets that only their owner may read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from device_runtime.machine.path_errors import cannot_write

__all__ = ["write_private", "write_public"]


def write_private(path: Path, content: bytes) -> None:
    """A file that nobody but its owner may read (mode 0600), from its first byte on."""
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """A file that all may read."""
    _write(path, content, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
