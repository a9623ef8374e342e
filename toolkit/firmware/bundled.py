"""Firmware that travels in a bundle: `firmware-BOARD.image` among its files, so that an update brings both.

A model and the firmware that is sized for it belong together; the manifest names the file by its hash, and who signs
the manifest vouches for it. A board that has a key wants the firmware image itself signed too (`firmware build --key`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.bundle.trust import SIGNATURE
from device_runtime.update import durable

__all__ = ["add_firmware", "bundled_firmware"]


def add_firmware(bundle: Bundle, board_id: str, image: bytes) -> Path:
    """Put a firmware image into a bundle's folder, in place of the board's earlier one; signatures go, sign again.

    Returns:
        where it lies.
    """
    from toolkit.signing.bundles import edited  # needs the extra `sign`

    path = bundle.path / _name(board_id)
    manifest = (bundle.path / MANIFEST).read_bytes()
    entry = {"sha256": hashlib.sha256(image).hexdigest(), "size_bytes": len(image)}
    changed = edited(manifest, {"files": {**json.loads(manifest)["files"], path.name: entry}})
    if changed != manifest:
        (bundle.path / SIGNATURE).unlink(missing_ok=True)
        durable.replace_file(path, image)
        durable.replace_file(bundle.path / MANIFEST, changed)
    return path


def bundled_firmware(bundle: Bundle, board_id: str) -> bytes | None:
    """The firmware image that a bundle has for a board; None: it has none."""
    name = _name(board_id)
    return (bundle.path / name).read_bytes() if name in bundle.manifest.files else None


def _name(board_id: str) -> str:
    return f"firmware-{board_id}.image"
