"""Files that are whole or not there, and secrets that only their owner may read."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_private", "write_public"]


def write_private(path: Path, content: bytes) -> None:
    """A file that nobody but its owner may read (mode 0600), from its first byte on."""
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """A file that all may read."""
    _write(path, content, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
