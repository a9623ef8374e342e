"""Images for ESP chips: are they whole, and for which chip.

Format: Espressif's "Firmware Image Format" (esptool documentation): a header of 24 bytes, segments, a checksum in the
last byte of a block of 16, and a SHA-256 of all that when the header says so.
"""

from __future__ import annotations

import hashlib
import struct
from functools import reduce
from operator import xor

from device_runtime.errors import DoesNotFitError, ImageError

__all__ = ["CHIP_IDS", "boot_loader_offset", "check_image"]

CHIP_IDS = {
    "esp32": 0, "esp32s2": 2, "esp32c3": 5, "esp32s3": 9, "esp32c2": 12, "esp32c6": 13, "esp32h2": 16, "esp32p4": 18,
    "esp32c61": 20, "esp32c5": 23,
}  # fmt: skip
_MAGIC = 0xE9
_HEADER = struct.Struct("<BBBBI4xH9xB")  # magic, segments, spi mode, size and speed, entry, chip id, has a hash
assert _HEADER.size == 24
_SEGMENT = struct.Struct("<2I")  # load address, bytes
_MAX_SEGMENTS = 16
_SECTOR_BYTES = 0x1000
_PARTITION_MAGIC = b"\xaa\x50"  # of each entry of the table
_BOOT_LOADER_OFFSETS = (0x0, 0x1000, 0x2000)


def boot_loader_offset(data: bytes) -> int | None:
    """Where the boot loader lies in an image of the whole flash; None if this is not one.

    Such an image, as `esptool merge-bin` makes it, goes to offset 0. It is known by its structure: a boot loader at one
    of the offsets where the chips' ROMs look for it, and after it, in a sector of its own, a partition table. Where
    that is, each project chooses (ESP-IDF's CONFIG_PARTITION_TABLE_OFFSET).
    """
    for offset in _BOOT_LOADER_OFFSETS:
        if len(data) > offset and data[offset] == _MAGIC and data[:offset].count(0xFF) == offset:
            end = _end_of_segments(data, offset)
            if offset > 0 or (end is not None and _has_partition_table(data, end)):
                return offset  # a program begins with its header: what begins with erased flash is none
            return None
    return None


def _end_of_segments(data: bytes, start: int) -> int | None:
    """Where the segments of the image at `start` end; None if it is cut, or none."""
    if len(data) < start + _HEADER.size:
        return None
    segments, end = data[start + 1], start + _HEADER.size
    if not 1 <= segments <= _MAX_SEGMENTS:
        return None
    for _ in range(segments):
        if end + _SEGMENT.size > len(data):
            return None
        end += _SEGMENT.size + _SEGMENT.unpack_from(data, end)[1]
    return end if end < len(data) else None


def _has_partition_table(data: bytes, start: int) -> bool:
    """Whether one of the sectors from `start` on begins like a partition table (ESP-IDF, "Partition Tables").

    `start` is the end of the first image: after a program there is no such sector.
    """
    first = -(-start // _SECTOR_BYTES) * _SECTOR_BYTES
    return any(data[at : at + 2] == _PARTITION_MAGIC for at in range(first, len(data), _SECTOR_BYTES))


def check_image(data: bytes, name: str, chip: str) -> None:
    """Check an image's header, checksum and hash.

    Args:
        data: an image; what follows it is not looked at.
        name: how to call it.
        chip: as esptool names it, such as esp32s3.

    Raises:
        DoesNotFitError: it is for another chip.
        ImageError: it is truncated or damaged.
    """
    if len(data) < _HEADER.size or data[0] != _MAGIC:
        raise ImageError(f"{name} does not begin with an ESP image's header (0xe9 and 23 more bytes).")
    _, segments, _, _, _, chip_id, has_hash = _HEADER.unpack_from(data)
    if chip_id != CHIP_IDS.get(chip, chip_id):
        found = next((known for known, number in CHIP_IDS.items() if number == chip_id), f"unknown ({chip_id})")
        raise DoesNotFitError(f"{name} is for the chip {found}; the board has {chip}.")
    if not 1 <= segments <= _MAX_SEGMENTS:
        raise ImageError(f"{name} says it has {segments} segments; expected 1 to {_MAX_SEGMENTS}: it is damaged.")
    end, checksum = _HEADER.size, 0xEF
    for number in range(segments):
        if end + _SEGMENT.size > len(data):
            raise ImageError(f"{name} ends before its segment {number}: it is truncated.")
        size = _SEGMENT.unpack_from(data, end)[1]
        end += _SEGMENT.size
        if end + size > len(data):
            raise ImageError(
                f"{name} ends inside its segment {number}, which has {size} bytes; {len(data) - end} are there: "
                "it is truncated."
            )
        checksum = reduce(xor, data[end : end + size], checksum)
        end += size
    end += 16 - end % 16  # the checksum is the last byte of the block, at least one byte on
    if end > len(data) or data[end - 1] != checksum:
        raise ImageError(f"{name} has a wrong checksum: it is damaged.")
    if has_hash and hashlib.sha256(data[:end]).digest() != data[end : end + 32]:
        raise ImageError(f"{name} does not have the SHA-256 that it says: it is damaged.")
