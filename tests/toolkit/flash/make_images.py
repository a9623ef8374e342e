"""Images as toolchains make them, small and without a toolchain."""

from __future__ import annotations

import hashlib
import random
import struct
from functools import reduce
from operator import xor


def esp_image(chip_id: int, size: int = 30_000, seed: int = 0) -> bytes:
    """An image for an ESP chip with two segments, a checksum and a hash; `esptool image-info` judges it in a test."""
    noise = random.Random(seed).randbytes(size // 8 * 4)
    segments = [(0x3C000020, noise), (0x40374000, bytes(len(noise)))]
    out = struct.pack("<BBBBI4xH9xB", 0xE9, len(segments), 2, 0x4F, 0x40374000, chip_id, 1)
    checksum = 0xEF
    for address, data in segments:
        out += struct.pack("<2I", address, len(data)) + data
        checksum = reduce(xor, data, checksum)
    out += bytes(15 - len(out) % 16) + bytes((checksum,))
    return out + hashlib.sha256(out).digest()


def esp_whole_flash(chip_id: int) -> bytes:
    """Boot loader, partition table and program as one image, as `esptool merge-bin` makes it."""
    flash = bytearray(b"\xff" * 0x10000)
    boot_loader = esp_image(chip_id, 8_000, seed=1)
    flash[: len(boot_loader)] = boot_loader
    flash[0x8000:0x8002] = b"\xaa\x50"
    return bytes(flash) + esp_image(chip_id)
