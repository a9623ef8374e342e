"""A bundle as one block of bytes for a board's model slot: its model image, or its packed form."""

from __future__ import annotations

import tempfile
from pathlib import Path

from boards import Board
from device_runtime.bundle.admission import check_board
from device_runtime.bundle.archive import Archive, head_of, open_any, pack
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import DoesNotFitError
from device_runtime.update.active import open_bundle, resolve
from toolkit.firmware.images import image_for
from toolkit.firmware.layout import layout_of
from toolkit.firmware.slots import model_image
from toolkit.flash.images import Image, read_file
from toolkit.signing.keys import SigningKey

__all__ = ["read_model"]


def read_model(path: Path, board: Board, key: SigningKey | None = None) -> Image:
    """Read a bundle: a folder, which is packed here, or its zip. Every file's hash is checked.

    A board with stonechat's firmware gets its model image, signed with `key` where it has slots; others the zip.

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
    if board.firmware is not None:
        return Image(str(path), _image(bundle, board, key))
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


def _image(bundle: Bundle | Archive, board: Board, key: SigningKey | None) -> bytes:
    """The model image of a bundle, as the board's firmware reads it from its place."""
    manifest = bundle.manifest
    if isinstance(bundle, Archive):
        with bundle, tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
            bundle.unpack(Path(folder) / "bundle")
            return _image(Bundle.open(Path(folder) / "bundle"), board, key)
    with tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
        checked = open_bundle(bundle.path, verify=True)
        image = image_for(checked, Path(folder), current=True).read_bytes()
    return model_image(image, manifest, board, key) if layout_of(board) is not None else image
