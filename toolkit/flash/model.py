"""A bundle as one block of bytes for a board's model slot: the uncompressed zip of its files."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from boards import Board
from device_runtime.bundle import MANIFEST, Bundle, Manifest
from device_runtime.errors import BundleError, DoesNotFitError, ImageError
from toolkit.flash.images import Image, describe, kind_of, read_file

__all__ = ["read_model"]

_SIGNATURE = "manifest.sig"


def read_model(path: Path, board: Board) -> Image:
    """Read a bundle: a folder, which is packed here, or its zip. Every file's hash is checked.

    Raises:
        ConfigurationError: there is nothing at `path`, or it cannot be read.
        BundleError: the bundle is incomplete or altered.
        ImageError: the file is not a packed bundle.
        DoesNotFitError: its graph is not for this board.
    """
    if path.is_dir():
        bundle = Bundle.open(path, verify=True)
        manifest, data = bundle.manifest, _pack(bundle)
    else:
        data = read_file(path)
        if kind_of(data) != "zip":
            raise ImageError(f"{path} is {describe(data)}; expected a bundle: its folder, or its uncompressed zip.")
        manifest = _check_packed(path, data)
    if manifest.profile != board.profile:
        raise DoesNotFitError(
            f"{path} has the profile {manifest.profile!r}; {board.name} runs {board.profile!r}. "
            f"Convert the checkpoint with --board {board.id}."
        )
    return Image(str(path), data)


def _pack(bundle: Bundle) -> bytes:
    """The same bytes for the same bundle, whenever and wherever it is packed."""
    names = [MANIFEST, *sorted(bundle.manifest.files)]
    if (bundle.path / _SIGNATURE).is_file():
        names.insert(1, _SIGNATURE)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), (bundle.path / name).read_bytes())
    return packed.getvalue()


def _check_packed(path: Path, data: bytes) -> Manifest:
    """The manifest of a packed bundle whose files are all there, uncompressed and unaltered."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise ImageError(f"{path} is compressed; a board reads it in place: expected an uncompressed zip.")
            if MANIFEST not in entries:
                raise ImageError(f"{path} has no {MANIFEST}; expected a packed bundle.")
            manifest = Manifest.from_json(archive.read(MANIFEST).decode())
            for name, entry in manifest.files.items():
                if name not in entries:
                    raise BundleError(f"{path} lacks {name}; pack the bundle again.")
                if hashlib.sha256(archive.read(name)).hexdigest() != entry.sha256:
                    raise BundleError(f"{path}: {name} was altered (its sha256 differs); pack the bundle again.")
            return manifest
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImageError(f"{path} is a damaged zip: {error}; pack the bundle again.") from None
