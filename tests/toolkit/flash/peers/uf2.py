"""A UF2 boot loader behind a drive: it sees 512-byte sectors come, not files, as the specification says.

The drive is a folder. What the host writes into it is copied with mtools onto a real FAT image, as an operating system
would write it, and the boot loader reads the sectors of that image. When it has all blocks it takes the drive away.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import threading
from pathlib import Path

INFO = """UF2 Bootloader v3.0\r
Model: Raspberry Pi RP2\r
Board-ID: {board_id}\r
"""


RP2040 = 0xE48BFF56
SECTOR = 4096
ERASED = b"\xff" * 256


class Uf2Peer:
    """Programs `flash` (address -> 256 bytes) from the blocks with its family, as the ROMs of the RP2 chips do.

    Programming can only clear bits, so a sector is erased before its first block. The RP2040 takes sixteen blocks with
    numbers in a row for a sector, wherever they go; the RP2350 looks at their addresses.
    """

    def __init__(self, folder: Path, family: int, *, board_id: str = "RPI-RP2", image: Path | None = None) -> None:
        self.drive = folder / board_id
        self.drive.mkdir()
        (self.drive / "INFO_UF2.TXT").write_text(INFO.format(board_id=board_id), encoding="ascii", newline="")
        self.family = family
        self.image = image  # a FAT image to go through; None: the file's sectors are seen in another order
        self.flash: dict[int, bytes] = {}
        self.restarted = False
        self.refuse = False
        self.seen: set[int] = set()
        self.erased: set[int] = set()
        self.ignored: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            if self.refuse:
                continue
            for file in self.drive.glob("*.UF2"):
                for sector in self._sectors(file):
                    if self._take(sector):
                        self.restarted = True
                        shutil.rmtree(self.drive)
                        return

    def _sectors(self, file: Path) -> list[bytes]:
        data = file.read_bytes()
        if self.image is not None and data:
            subprocess.run(["mcopy", "-o", "-i", self.image, file, "::FIRMWARE.UF2"], check=True)
            data = self.image.read_bytes()
        sectors = [data[i : i + 512] for i in range(0, len(data) - 511, 512)]
        random.Random(0).shuffle(sectors)
        return sectors

    def _take(self, sector: bytes) -> bool:
        """One sector, from whatever place of the drive; True when the last block is written."""
        start0, start1, flags, address, size, number, count, family = struct.unpack_from("<8I", sector)
        (end,) = struct.unpack_from("<I", sector, 508)
        if (start0, start1, end) != (0x0A324655, 0x9E5D5157, 0x0AB16F30):
            return False  # the file system's own
        if flags & 0x1 or not flags & 0x2000 or family != self.family or size != 256 or address % 256:
            self.ignored.add(sector)
            return False
        if number not in self.seen:
            self._program(number, address, sector[32 : 32 + size])
        self.seen.add(number)
        return len(self.seen) == count

    def _program(self, number: int, address: int, data: bytes) -> None:
        group = number // 16 if self.family == RP2040 else address // SECTOR
        if group not in self.erased:
            self.erased.add(group)
            start = address // SECTOR * SECTOR
            self.flash |= dict.fromkeys(range(start, start + SECTOR, 256), ERASED)
        held = self.flash.get(address, b"\x5a" * 256)  # an old program
        self.flash[address] = bytes(old & new for old, new in zip(held, data, strict=True))

    def memory(self, address: int, size: int) -> bytes:
        """What the flash holds; a page that was never written is 0xFF."""
        pages = range(address // 256 * 256, address + size, 256)
        data = b"".join(self.flash.get(page, b"\xff" * 256) for page in pages)
        return data[address % 256 : address % 256 + size]
