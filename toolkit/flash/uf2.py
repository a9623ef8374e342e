"""Flashing through the drive that a UF2 boot loader shows: a file is copied, the drive goes away, the board restarts.

The boot loader counts blocks and restarts when it has written the last one, so a drive that goes away has taken all
of them. It cannot be read back: a drive that stays is the only sign of a refusal.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from boards import Board
from device_runtime.errors import ConfigurationError, DoesNotFitError, FlashError, ImageError, UnreachableError
from device_runtime.records.printable import counted
from toolkit.flash.flasher import Part, Report, Result, place_model, require_apart, require_room
from toolkit.flash.images import Image, require_kind
from toolkit.flash.uf2_format import BLOCK_BYTES, PAYLOAD_BYTES, Block, Flag, decode, encode

__all__ = ["INFO", "Flasher", "drives"]

INFO = "INFO_UF2.TXT"
ACCEPT_TIMEOUT_S = 60.0  # from the last byte until the drive goes away; boards write while they receive
_CHUNK_BYTES = 65536
# The boot loader in an RP2's ROM erases sectors of 4 KiB. That of the RP2040 does not look at the addresses: it erases
# the sector of the first block that comes out of each 16 numbers, so that 16 blocks in a row have to be one whole
# sector (raspberrypi/pico-bootrom, bootrom/virtual_disk.c). Otherwise it erases what it has just written, or does not
# erase what it writes, and takes its drive away as ever.
_RP2_FAMILIES = range(0xE48BFF56, 0xE48BFF5C)
_RP2_SECTOR_BYTES = 4096
_TABLE = Path("/proc/self/mounts")
_OCTAL = re.compile(r"\\([0-7]{3})")  # how it writes a space
_FAT = ("vfat", "msdos", "fuseblk")


class Flasher:
    """Copies a UF2 file onto the drive of a boot loader."""

    half_done = (
        "The copy is not whole, and what the board held before may be partly overwritten. Its boot loader is in ROM or "
        "protected: bring the board back into it and flash again."
    )

    def __init__(self, board: Board, mounts: Callable[[], list[Path]] | None = None) -> None:
        assert board.flash.uf2_family is not None  # the board file's schema sees to it
        self._board = board
        self._family = board.flash.uf2_family
        self._sector_bytes = _RP2_SECTOR_BYTES if self._family in _RP2_FAMILIES else PAYLOAD_BYTES
        self._mounts = mounts or _mount_points
        self._leading = b""  # blocks of the firmware's file that come before those that are counted

    def check(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """See `toolkit.flash.flasher.Flasher`."""
        parts: list[Part] = []
        if firmware is not None:
            kind = require_kind(firmware, ("uf2", "raw"), self._board.name)
            parts += self._place_uf2(firmware) if kind == "uf2" else map(self._place_raw, firmware.runs)
        if model is not None:
            parts.append(self._place_model(model))
        return parts

    def flash(self, parts: Sequence[Part], port: str | None, report: Report) -> Result:
        """See `toolkit.flash.flasher.Flasher`. `port` is where the drive is mounted."""
        drive = self._drive(port)
        placed = ((part.address, part.image.data) for part in parts)
        data = self._leading + encode(placed, self._family, self._sector_bytes)
        _copy(data, drive, report)
        self._wait_until_gone(drive, report)
        blocks = len(data) // BLOCK_BYTES
        return Result(
            str(drive), f"the boot loader took {counted(blocks, 'block')} and restarted (it cannot be read back)"
        )

    def _place_uf2(self, firmware: Image) -> list[Part]:
        """A UF2 file as the bytes that it puts into flash: a part for each run; what lies between stays as it is."""
        blocks = decode(firmware.data)
        self._leading = b"".join(block.to_bytes() for block in blocks if block.ignored)
        blocks = [b for b in blocks if not (b.ignored or b.flags & (Flag.NOT_MAIN_FLASH | Flag.FILE_CONTAINER))]
        others = sorted({block.family for block in blocks if block.family != self._family}, key=str)
        if others or not blocks:
            found = (
                ", ".join("no family" if family is None else f"0x{family:08x}" for family in others[:4]) or "nothing"
            )
            raise DoesNotFitError(
                f"{firmware.name} is for another chip: it has blocks of {found}; "
                f"{self._board.name} is family 0x{self._family:08x}."
            )
        return [self._part(Image(firmware.name, data), address) for address, data in _runs(blocks)]

    def _place_raw(self, firmware: Image) -> Part:
        address = firmware.address if firmware.address is not None else self._board.flash.firmware_address
        if address is None:
            raise ConfigurationError(
                f"{firmware.name} does not say where it goes, and the board file of {self._board.id} has no "
                "flash.firmware_address; expected one of them, or a UF2 file."
            )
        return self._part(firmware, address)

    def _place_model(self, model: Image) -> Part:
        part = place_model(self._board, model)
        if part.address % self._sector_bytes:
            raise ConfigurationError(
                f"The board file of {self._board.id} says flash.model_address: 0x{part.address:x}, inside a sector of "
                f"flash, and erasing it would take what lies before; expected a multiple of 0x{self._sector_bytes:x}."
            )
        return part

    def _part(self, image: Image, address: int) -> Part:
        part = Part("firmware", image, address, self._room(address))
        require_room(part, "flash.firmware_kib")
        require_apart(part, self._board)
        return part

    def _room(self, address: int) -> int | None:
        first, kib = self._board.flash.firmware_address, self._board.flash.firmware_kib
        if first is None or kib is None:
            return None
        if not first <= address < first + kib * 1024:
            raise DoesNotFitError(
                f"The firmware starts at 0x{address:08x}; the board's place for it is "
                f"0x{first:08x} … 0x{first + kib * 1024 - 1:08x} (flash.firmware_address, flash.firmware_kib)."
            )
        return first + kib * 1024 - address

    def _drive(self, port: str | None) -> Path:
        """The mounted drive of the board that waits."""
        wanted = self._board.flash.uf2_board_id
        if port is not None:
            drive = Path(port)
            board_id = _board_id(drive)
            if board_id is None:
                raise ConfigurationError(
                    f"{drive} has no {INFO}; expected the folder where the board's drive is mounted."
                )
            if wanted and board_id != wanted:
                raise DoesNotFitError(
                    f"{drive} is the drive of a board {board_id!r}; {self._board.name} calls itself {wanted!r}."
                )
            return drive
        found = {drive: board_id for drive, board_id in drives(self._mounts()).items()}
        fitting = [drive for drive, board_id in found.items() if wanted in (None, board_id)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ConfigurationError(
                f"Several boards wait: {', '.join(map(str, fitting))}; choose one with --port FOLDER."
            )
        there = ", ".join(f"{drive} ({board_id})" for drive, board_id in found.items()) or "no UF2 drive"
        button = self._board.flash.boot_loader
        raise UnreachableError(
            f"No drive of {self._board.name} is mounted (found {there}). "
            + (f"To bring it up: {button}. " if button else "")
            + "If your system does not mount drives by itself, mount it and give the folder with --port."
        )

    def _wait_until_gone(self, drive: Path, report: Report) -> None:
        deadline = time.monotonic() + ACCEPT_TIMEOUT_S
        report("accept", 0.0)
        while not _is_gone(drive):
            if time.monotonic() > deadline:
                raise FlashError(
                    f"The file is on {drive}, but the drive is still there after {ACCEPT_TIMEOUT_S:g} s: the boot "
                    f"loader did not accept it. {self.half_done}"
                )
            time.sleep(0.02)
        report("accept", 1.0)


def drives(mounts: Sequence[Path]) -> dict[Path, str]:
    """The UF2 drives among these folders, and the Board-ID of each."""
    found = {mount: _board_id(mount) for mount in mounts}
    return {mount: board_id for mount, board_id in found.items() if board_id is not None}


def _board_id(drive: Path) -> str | None:
    """The Board-ID in INFO_UF2.TXT; "" if there is none; None if this is no UF2 drive (or no more)."""
    try:
        with open(drive / INFO, "rb") as file:
            text = file.read(4096).decode("ascii", "replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() == "board-id":
            return value.strip()
    return ""


def _mount_points() -> list[Path]:
    """Where FAT drives are mounted."""
    return [folder for _, folder, kind in _mounts() if kind in _FAT]


def _mounts() -> list[tuple[str, Path, str]]:
    """What is mounted: device, folder, file system."""
    try:
        lines = _TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    fields = [[_OCTAL.sub(lambda c: chr(int(c[1], 8)), word) for word in line.split(" ")] for line in lines]
    return [(f[0], Path(f[1]), f[2]) for f in fields if len(f) > 2]


def _is_gone(drive: Path) -> bool:
    """Has the board taken its drive away?

    A mount that nobody undoes stays readable, from memory; its device does not stay.
    """
    if _board_id(drive) is None:
        return True
    devices = [Path(device) for device, folder, _ in _mounts() if folder == drive]
    return any(device.is_absolute() and not device.exists() for device in devices)


def _copy(data: bytes, drive: Path, report: Report) -> None:
    """Write the file so that it has reached the board, not just this machine's memory, when we go on.

    The board restarts on the last block, before the file is closed. So that block goes alone, when all others have
    arrived: an error there is not one, and whether the drive goes away decides.
    """
    target = drive / "STONE.UF2"
    last = len(data) - BLOCK_BYTES
    sent = 0
    report("write", 0.0)
    try:
        with open(target, "wb", buffering=0) as file:
            while sent < len(data):
                sent += file.write(data[sent : min(sent + _CHUNK_BYTES, last) if sent < last else len(data)])
                os.fsync(file.fileno())
                report("write", sent / len(data))
    except OSError as error:
        if sent == 0:
            yours = " Mount it for your user: `-o uid=$(id -u)`." if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise FlashError(f"{target} cannot be written: {error.strerror}.{yours} Nothing was written.") from None
        if sent < len(data):
            raise FlashError(
                f"Writing to {target} stopped after {sent} of {len(data)} bytes: {error.strerror}. {Flasher.half_done}"
            ) from None


def _runs(blocks: Sequence[Block]) -> list[tuple[int, bytes]]:
    """Address and bytes of each run of blocks that lie end to end; of two blocks for one place the later one counts."""
    runs: list[tuple[int, bytearray]] = []
    for address, data in sorted({block.address: block.data for block in blocks}.items()):
        if runs and address < runs[-1][0] + len(runs[-1][1]):
            raise ImageError(f"Two UF2 blocks overlap at 0x{address:08x}: the file is damaged.")
        if runs and address == runs[-1][0] + len(runs[-1][1]):
            runs[-1][1].extend(data)
        else:
            runs.append((address, bytearray(data)))
    return [(address, bytes(data)) for address, data in runs]
