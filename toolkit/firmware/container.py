"""What goes into a slot of a board: MCUboot's image format around a firmware or a model image.

Format: https://docs.mcuboot.com/design.html#image-format. imgtool makes the same of a program; here the tags that say
what it is and for which board are among the protected ones. device_runtime/micro/update/update.c reads it.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import Literal

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from toolkit.signing.keys import SigningKey

__all__ = ["wrap"]

_HEADER = struct.Struct("<IIHHIIBBHII")  # magic, load address, sizes, flags, version, padding
_TAGS = struct.Struct("<HH")  # magic, bytes with this; or tag, bytes
assert (_HEADER.size, _TAGS.size) == (32, 4)
_IMAGE_MAGIC, _TAGS_MAGIC, _PROTECTED_MAGIC = 0x96F3B83D, 0x6907, 0x6908
_KEY_HASH, _SHA256, _ED25519, _COUNTER, _KIND, _BOARD = 0x01, 0x10, 0x24, 0x50, 0xA0, 0xA1
_KINDS = {"firmware": 0, "model": 1}


def wrap(
    payload: bytes,
    kind: Literal["firmware", "model"],
    *,
    version: str,
    security_counter: int,
    board: str | None = None,
    key: SigningKey | None = None,
) -> bytes:
    """An image for a slot.

    Args:
        version: 1.2.3 or 1.2.3+4; what is no number in it counts as 0.
        security_counter: a board refuses one that is lower than that of an image it has kept.
        board: its id; None: for any.
        key: None leaves it unsigned.
    """
    major, minor, revision, build = _numbers(version)
    protected = _tag(_COUNTER, struct.pack("<I", security_counter)) + _tag(_KIND, bytes([_KINDS[kind]]))
    if board is not None:
        protected += _tag(_BOARD, board.encode())
    protected = _TAGS.pack(_PROTECTED_MAGIC, _TAGS.size + len(protected)) + protected
    header = _HEADER.pack(
        _IMAGE_MAGIC, 0, _HEADER.size, len(protected), len(payload), 0, major, minor, revision, build, 0
    )
    hashed = header + payload + protected
    digest = hashlib.sha256(hashed).digest()
    tags = _tag(_SHA256, digest)
    if key is not None:
        der = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        tags += _tag(_KEY_HASH, hashlib.sha256(der).digest())
        tags += _tag(_ED25519, key.private.sign(digest))
    return hashed + _TAGS.pack(_TAGS_MAGIC, _TAGS.size + len(tags)) + tags


def _tag(tag: int, value: bytes) -> bytes:
    return _TAGS.pack(tag, len(value)) + value


def _numbers(version: str) -> tuple[int, int, int, int]:
    found = [int(part) for part in re.findall(r"\d+", version)][:4]
    major, minor, revision, build = [*found, 0, 0, 0, 0][:4]
    return min(major, 255), min(minor, 255), min(revision, 65535), min(build, 2**32 - 1)
