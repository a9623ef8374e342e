"""Microsoft's UF2: a file of 512-byte blocks, each with its own place in flash.

Written to the specification, https://github.com/microsoft/uf2 (README.md, "File format", "Flags", "Extension tags").
A boot loader gets the blocks in whatever order the operating system writes a drive's sectors, so every block says
how many there are, which one it is, where its bytes go, and for which family of chips it is.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag

from device_runtime.errors import ImageError

__all__ = ["BLOCK_BYTES", "MAX_PAYLOAD_BYTES", "PAYLOAD_BYTES", "Block", "Flag", "decode", "encode"]

BLOCK_BYTES = 512
MAX_PAYLOAD_BYTES = 476
PAYLOAD_BYTES = 256  # what every boot loader takes: one page of flash
_START = (0x0A324655, 0x9E5D5157)
_END = 0x0AB16F30
# picotool puts a block with this tag first, for boot loaders of RP2350 with erratum E10; it carries nothing and is
# not one of the blocks that are counted.
_RP2_IGNORE = 0x9957E304
_HEADER = struct.Struct("<8I")  # two start words, flags, address, payload, number, count, family
_CHECKSUM = struct.Struct("<2I16s")  # address and size of a region, its MD5: the last bytes of the data
_MOST_HASHED = 4  # times the file's content, for its checksums: each byte belongs to one region, or to a few
assert _HEADER.size + MAX_PAYLOAD_BYTES + 4 == BLOCK_BYTES


class Flag(IntFlag):
    """What the flags of a block mean."""

    NOT_MAIN_FLASH = 0x0001  # not to be written
    FILE_CONTAINER = 0x1000  # part of a file, not of flash
    FAMILY = 0x2000  # the last word of the header is a family id
    MD5 = 0x4000  # the last 24 bytes of the data are a checksum of a region
    TAGS = 0x8000  # tags follow the payload


_NO_FLAGS = Flag(0)


@dataclass(frozen=True)
class Block:
    """One block."""

    address: int  # of the first byte of `data`
    data: bytes  # at most 476 bytes
    number: int  # 0 …
    count: int  # blocks with this family in the file
    family: int | None = None  # for which chips; None: the file does not say
    flags: Flag = _NO_FLAGS
    rest: bytes = b""  # what follows the payload: tags, a checksum

    @property
    def ignored(self) -> bool:
        """Is it there only to be skipped?"""
        return bool(self.flags & Flag.TAGS) and self.rest[:4] == _RP2_IGNORE.to_bytes(4, "little")

    def to_bytes(self) -> bytes:
        """The 512 bytes."""
        flags = self.flags | (Flag.FAMILY if self.family is not None else 0)
        header = _HEADER.pack(*_START, flags, self.address, len(self.data), self.number, self.count, self.family or 0)
        body = (self.data + self.rest).ljust(MAX_PAYLOAD_BYTES, b"\0")
        return header + body + _END.to_bytes(4, "little")


def encode(parts: Iterable[tuple[int, bytes]], family: int, sector_bytes: int = PAYLOAD_BYTES) -> bytes:
    """Make a UF2 file.

    Args:
        parts: address and bytes of each part.
        family: for which chips.
        sector_bytes: what is written at once, a multiple of 256: the rest of such a sector is filled up with 0xFF, as
            erased flash is.
    """
    sectors: dict[int, bytearray] = {}
    for address, data in parts:
        for start in range(address // sector_bytes * sector_bytes, address + len(data), sector_bytes):
            first, end = max(start, address), min(start + sector_bytes, address + len(data))
            sector = sectors.setdefault(start, bytearray(b"\xff" * sector_bytes))
            sector[first - start : end - start] = data[first - address : end - address]
    pages = [
        (start + offset, bytes(sector[offset : offset + PAYLOAD_BYTES]))
        for start, sector in sectors.items()
        for offset in range(0, sector_bytes, PAYLOAD_BYTES)
    ]
    return b"".join(
        Block(address, page, number, len(pages), family).to_bytes() for number, (address, page) in enumerate(pages)
    )


def decode(data: bytes) -> list[Block]:
    """Read a UF2 file.

    Raises:
        ImageError: it is damaged: the length, a magic word, a size, or the numbers of the blocks are wrong.
    """
    if not data or len(data) % BLOCK_BYTES:
        raise ImageError(f"A UF2 file has whole blocks of {BLOCK_BYTES} bytes; this one has {len(data)} bytes.")
    blocks = [_decode_block(data[offset : offset + BLOCK_BYTES], offset) for offset in range(0, len(data), BLOCK_BYTES)]
    counted = [block for block in blocks if not block.ignored]
    of_family: dict[int | None, list[Block]] = {}
    for block in counted:
        of_family.setdefault(block.family, []).append(block)
    for same in of_family.values():
        _check_numbers(same)
    _check_sums(counted)
    return blocks


def _decode_block(raw: bytes, offset: int) -> Block:
    start0, start1, flags, address, size, number, count, family = _HEADER.unpack_from(raw)
    end = int.from_bytes(raw[-4:], "little")
    for found, expected, what in ((start0, _START[0], "starts"), (start1, _START[1], "goes on"), (end, _END, "ends")):
        if found != expected:
            raise ImageError(
                f"The UF2 block at byte {offset} {what} with 0x{found:08x}; expected 0x{expected:08x}: it is damaged."
            )
    if not 0 < size <= MAX_PAYLOAD_BYTES:
        raise ImageError(
            f"The UF2 block at byte {offset} says it holds {size} bytes; expected 1 to {MAX_PAYLOAD_BYTES}."
        )
    if address + size > 2**32:
        raise ImageError(f"The UF2 block at byte {offset} ends past 32 bits of address (0x{address:08x} + {size}).")
    known = Flag(flags & sum(Flag))
    has_family = bool(known & Flag.FAMILY)
    body = raw[_HEADER.size : -4]
    return Block(
        address, body[:size], number, count, family if has_family else None, known & ~Flag.FAMILY,
        body[size:] if known & (Flag.TAGS | Flag.MD5) else b"",
    )  # fmt: skip


def _check_numbers(blocks: list[Block]) -> None:
    """A boot loader restarts when it has seen `count` blocks: one too few and it waits for ever."""
    count = blocks[0].count
    numbers = {block.number for block in blocks}
    if len(numbers) != count or len(blocks) != count or max(numbers) >= count or any(b.count != count for b in blocks):
        raise ImageError(
            f"The UF2 file says it has {count} blocks; {len(numbers)} different ones are there: "
            "it is truncated or damaged."
        )


def _check_sums(blocks: list[Block]) -> None:
    """Where blocks carry the MD5 of a region of flash, it must be that of what the file puts there.

    All blocks of a region carry the same one: each region is put together and hashed once.
    """
    sums = {_checksum(block) for block in blocks if block.flags & Flag.MD5}
    if not sums:
        return
    content = {block.address: block.data for block in blocks}
    whole = sum(map(len, content.values()))
    left = _MOST_HASHED * whole
    for start, size, digest in sorted(sums):
        left -= min(size, whole)
        if left < 0:
            raise ImageError(
                f"The UF2 file has {len(sums)} checksums of regions that overlap; expected one for each region: it is "
                "damaged."
            )
        region = _region(content, start, size)
        if region is not None and hashlib.md5(region, usedforsecurity=False).digest() != digest:
            raise ImageError(f"The UF2 file does not have the MD5 that it says for 0x{start:08x}: it is damaged.")


def _checksum(block: Block) -> tuple[int, int, bytes]:
    """Address and size of a region, and its MD5."""
    start, size, digest = _CHECKSUM.unpack(block.rest[-_CHECKSUM.size :].rjust(_CHECKSUM.size, b"\0"))
    if size == 0:  # esptool puts it right after a payload that is shorter than the others
        start, size, digest = _CHECKSUM.unpack(block.rest[: _CHECKSUM.size].ljust(_CHECKSUM.size, b"\0"))
    return start, size, digest


def _region(content: Mapping[int, bytes], start: int, size: int) -> bytes | None:
    """What blocks that lie end to end put at a place; None where the file does not have all of it."""
    parts, have = [], 0
    while have < size and (data := content.get(start + have)):
        parts.append(data)
        have += len(data)
    return b"".join(parts)[:size] if have >= size else None
