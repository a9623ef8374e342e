"""The images that a board's slots hold, and its flash as it leaves the bench."""

from __future__ import annotations

from pathlib import Path

from boards import Board
from device_runtime import __version__
from device_runtime.bundle.manifest import Manifest
from device_runtime.errors import ConfigurationError, DoesNotFitError
from toolkit.firmware.build import Build
from toolkit.firmware.container import wrap
from toolkit.firmware.layout import layout_of
from toolkit.signing.keys import SigningKey

__all__ = ["firmware_image", "model_image", "write_flash"]


def model_image(image: bytes, manifest: Manifest, board: Board, key: SigningKey | None = None) -> bytes:
    """A model image for a slot. Models are for any board: what they need is checked where they are opened.

    Raises:
        DoesNotFitError: it is larger than a slot.
    """
    data = wrap(image, "model", version=manifest.version, security_counter=manifest.security_counter, key=key)
    _require_room(data, board.storage.model_kib, "model", board)
    return data


def firmware_image(
    build: Build, board: Board, key: SigningKey | None = None, *, version: str = __version__, security_counter: int = 0
) -> bytes:
    """A firmware for a slot.

    Raises:
        ConfigurationError: the board has no slots.
        DoesNotFitError: it is larger than a slot.
    """
    layout = layout_of(board)
    if build.program is None or layout is None:
        raise ConfigurationError(f"{board.id} has no firmware slots; flash {build.elf} with `stonechat flash`.")
    data = wrap(
        build.program.read_bytes(), "firmware",
        version=version, security_counter=security_counter, board=board.id, key=key,
    )  # fmt: skip
    _require_room(data, layout.update.firmware_kib, "firmware", board)
    return data


def write_flash(path: Path, board: Board, firmware: bytes | None, model: bytes | None) -> None:
    """A file for QEMU with the first slots filled; what lies between stays a hole."""
    layout = layout_of(board)
    assert layout is not None
    update = layout.update
    address, kib = update.machine_ram_address, update.machine_ram_kib
    assert address is not None and kib is not None
    start = update.flash_address - address
    with open(path, "wb") as file:
        for at, data in ((layout.firmware_at[0], firmware), (layout.model_at[0], model)):
            if data is not None:
                file.seek(start + at)
                file.write(data)
        file.truncate(kib * 1024)


def _require_room(data: bytes, kib: int, what: str, board: Board) -> None:
    if len(data) > kib * 1024:
        raise DoesNotFitError(
            f"The {what} with its header and tags has {len(data) / 1024:,.1f} KiB; a slot of {board.id} has {kib:,}."
        )
