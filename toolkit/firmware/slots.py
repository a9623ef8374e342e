"""The images that a board's slots hold, and its flash as it leaves the bench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from boards import Board
from device_runtime import __version__
from device_runtime.bundle.folder import Bundle, read_signature
from device_runtime.bundle.manifest import Manifest
from device_runtime.bundle.trust import PublicKey, parse_signatures
from device_runtime.bundle.work_place import whole_stream
from device_runtime.errors import ConfigurationError, DoesNotFitError
from toolkit.firmware.build import Build
from toolkit.firmware.container import Signed, model_container, wrap
from toolkit.firmware.layout import layout_of
from toolkit.signing.keys import SigningKey

__all__ = ["bundled_model_image", "firmware_image", "model_image", "require_flash", "write_flash"]


def model_image(image: bytes, manifest: Manifest, board: Board, key: SigningKey | None = None) -> bytes:
    """A model image for a slot. Models are for any board: what they need is checked where they are opened.

    Raises:
        DoesNotFitError: it is larger than a slot.
    """
    container = model_container(image, manifest)
    return _fitting(
        container.signed([Signed(key.private.sign(container.digest), key.public.raw)] if key else []), board
    )


def bundled_model_image(image: bytes, bundle: Bundle, keys: Mapping[str, PublicKey], board: Board) -> bytes:
    """A bundle's model image for a slot, with the signatures that `bundle sign` has made of it.

    Args:
        image: the bundle's own, byte for byte.
        keys: by their ids, those that are known here.

    Raises:
        DoesNotFitError: it is larger than a slot.
    """
    content = read_signature(bundle.path)
    signatures = [] if content is None else parse_signatures(content)
    known = {entry.key_id: keys[entry.key_id].raw for entry in signatures if entry.key_id in keys}
    signed = [Signed(entry.image, known.get(entry.key_id)) for entry in signatures if entry.image is not None]
    # those whose keys are known come first: a board looks at so many and no more
    ordered = sorted(signed, key=lambda one: one.key is None)
    return _fitting(model_container(image, bundle.manifest).signed(ordered), board)


def _fitting(data: bytes, board: Board) -> bytes:
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
    with whole_stream(path) as stream:
        for at, data in ((layout.firmware_at[0], firmware), (layout.model_at[0], model)):
            if data is not None:
                stream.seek(start + at)
                stream.write(data)
        stream.truncate(kib * 1024)


def require_flash(path: Path, board: Board) -> None:
    """Raises a `ConfigurationError` where a file cannot be one of `write_flash` for this board, by its size."""
    layout = layout_of(board)
    expected, found = (layout.update.machine_ram_kib or 0) * 1024 if layout else 0, path.stat().st_size
    if found != expected:
        raise ConfigurationError(
            f"{path} has {found:,} bytes, and the flash of {board.id} {expected:,}: it is no file of "
            "`stonechat firmware run --flash` for this board. Name another, or a new one, which is made."
        )


def _require_room(data: bytes, kib: int, what: str, board: Board) -> None:
    if len(data) > kib * 1024:
        raise DoesNotFitError(
            f"The {what} with its header and tags has {len(data) / 1024:,.1f} KiB; a slot of {board.id} has {kib:,}."
        )
