"""The container of a model image: sections of bytes, each with a kind, and one hash over all of it.

docs/explained/model-image.md describes the format. device_runtime/micro/runtime/image.c is the reader on a board.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Mapping
from mmap import mmap
from pathlib import Path

from device_runtime.errors import BundleError

__all__ = ["ALIGNMENT", "SectionKind", "read_image", "write_image"]

FORMAT = 1
ALIGNMENT = 16  # bytes, of each section's start
Buffer = bytes | bytearray | memoryview | mmap
_MAGIC = b"SCMI"
_START = struct.Struct("<4sHHII")  # magic, format, sections, bytes of the image, 0
_ENTRY = struct.Struct("<IIII")  # kind, offset, bytes, 0
_HASH_BYTES = 32
_TABLE_AT = _START.size + _HASH_BYTES
_MOST_SECTIONS = 32
assert (_START.size, _ENTRY.size) == (16, 16)


class SectionKind(enum.IntEnum):
    """What is in a section; the numbers are in device_runtime/micro/runtime/image.h too."""

    GRAPH = 1  # the call list and the arena's plan
    CONSTANTS = 2  # weights, tables and scales in the kernels' layout
    PREFIX = 3  # kv_cache of the fixed prefix
    SELF_TEST = 4  # tokens and a digest of the logits that follow them
    TOKENIZER = 16
    CHAT = 17  # what comes before and after each role's words
    SCHEMA = 18  # the table that holds answers to a JSON schema
    IDENTITY = 19  # the graph's sha256, the bundle's name, the tokens that end an answer
    CALIBRATION = 20  # the temperatures of the confidence of each schema's fields


def write_image(path: Path, sections: Mapping[SectionKind, Buffer]) -> None:
    """Write a model image. The same sections give the same bytes.

    Raises:
        ValueError: no section, or more than a reader takes, or an image of 4 GiB and more.
    """
    if not 0 < len(sections) <= _MOST_SECTIONS:
        raise ValueError(f"an image has 1 to {_MOST_SECTIONS} sections, not {len(sections)}")
    parts = [(kind, memoryview(sections[kind]).cast("B")) for kind in sorted(sections)]
    place = _TABLE_AT + _ENTRY.size * len(parts)
    table = b""
    for kind, part in parts:
        place = _aligned(place)
        if place + part.nbytes >= 1 << 32:
            raise ValueError(f"an image is smaller than 4 GiB; with {kind.name} this one has {place + part.nbytes:,} B")
        table += _ENTRY.pack(kind, place, part.nbytes, 0)
        place += part.nbytes
    start = _START.pack(_MAGIC, FORMAT, len(parts), place, 0)
    digest = hashlib.sha256(start)
    with open(path, "wb") as file:
        file.write(start + bytes(_HASH_BYTES))

        def put(data: Buffer) -> None:
            digest.update(data)
            file.write(data)

        put(table)
        for _, part in parts:
            put(bytes(_aligned(file.tell()) - file.tell()))
            put(part)
        file.seek(_START.size)
        file.write(digest.digest())


def read_image(data: Buffer, where: str = "the model image") -> dict[SectionKind, memoryview]:
    """The sections of an image, without copies. Kinds that this version does not know are left out.

    Raises:
        BundleError: it is not an image, of another format, or damaged.
    """
    view = memoryview(data).cast("B")
    if len(view) < _TABLE_AT or bytes(view[:4]) != _MAGIC:
        raise BundleError(f"{where} starts with {bytes(view[:4])!r}, expected {_MAGIC!r}: it is not a model image.")
    _, version, count, size, _ = _START.unpack_from(view)
    if version != FORMAT:
        raise BundleError(
            f"{where} has format {version}, expected {FORMAT}. Convert again with this version of stonechat."
        )
    if size > len(view) or size < _TABLE_AT + _ENTRY.size * count:
        raise BundleError(f"{where} has {len(view):,} of {size:,} bytes. Copy it again.")
    view = view[:size]
    digest = hashlib.sha256(view[: _START.size])
    digest.update(view[_TABLE_AT:])
    if digest.digest() != bytes(view[_START.size : _TABLE_AT]):
        raise BundleError(f"{where} is damaged: its SHA-256 is not the one in its header. Copy it again.")
    sections = {}
    for i in range(count):
        kind, offset, length, _ = _ENTRY.unpack_from(view, _TABLE_AT + _ENTRY.size * i)
        if offset + length > size:
            raise BundleError(f"{where}: section {kind} goes past the end. Convert the checkpoint again.")
        if kind in list(SectionKind):
            sections[SectionKind(kind)] = view[offset : offset + length]
    return sections


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
