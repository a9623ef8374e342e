"""Files that are whole or not there, and secrets that only their owner may read."""

from __future__ import annotations

from pathlib import Path

from device_runtime.bundle.work_place import whole_stream

__all__ = ["write_private", "write_public"]


def write_private(path: Path, content: bytes) -> None:
    """A file that nobody but its owner may read (mode 0600), from its first byte on."""
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """A file that all may read."""
    _write(path, content, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    with whole_stream(path, mode) as stream:
        stream.write(content)
