"""A bundle as one block of bytes for a board's model slot: its packed form."""

from __future__ import annotations

import tempfile
from pathlib import Path

from boards import Board
from device_runtime.bundle.admission import check_board
from device_runtime.bundle.archive import Archive, head_of, open_any, pack
from device_runtime.errors import DoesNotFitError
from device_runtime.update.slots import resolve
from toolkit.flash.images import Image, read_file

__all__ = ["read_model"]


def read_model(path: Path, board: Board) -> Image:
    """Read a bundle: a folder, which is packed here, or its zip. Every file's hash is checked.

    Raises:
        ConfigurationError: there is nothing at `path`, or it cannot be read.
        BundleError: it is no bundle, incomplete or altered.
        DoesNotFitError: it is for other boards.
    """
    bundle = open_any(resolve(path))
    manifest = bundle.manifest
    if manifest.profile != board.profile:
        raise DoesNotFitError(
            f"{path} has the profile {manifest.profile!r}; {board.name} runs {board.profile!r}. "
            f"Convert the checkpoint with --board {board.id}."
        )
    check_board(manifest, board.id)
    if isinstance(bundle, Archive):
        with bundle:
            for name in manifest.files:
                bundle.check(name)
        return Image(str(path), read_file(path))
    with tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
        packed = Path(folder) / "bundle.zip"
        head = head_of(bundle)
        pack(bundle, packed, manifest=head.manifest, signature=head.signature)
        return Image(str(path), packed.read_bytes())
