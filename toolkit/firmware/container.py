"""What goes into a slot of a board: MCUboot's image format around a firmware or a model image.

Format: https://docs.mcuboot.com/design.html#image-format. imgtool makes the same of a program; here the tags that say
what it is and for which board are among the protected ones. device_runtime/micro/update/update.c reads it.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest
    from toolkit.signing.keys import SigningKey

__all__ = ["Container", "Signed", "board_of", "contain", "model_container", "wrap"]

_HEADER = struct.Struct("<IIHHIIBBHII")  # magic, load address, sizes, flags, version, padding
_TAGS = struct.Struct("<HH")  # magic, bytes with this; or tag, bytes
assert (_HEADER.size, _TAGS.size) == (32, 4)
_IMAGE_MAGIC, _TAGS_MAGIC, _PROTECTED_MAGIC = 0x96F3B83D, 0x6907, 0x6908
_KEY_HASH, _SHA256, _ED25519, _COUNTER, _KIND, _BOARD = 0x01, 0x10, 0x24, 0x50, 0xA0, 0xA1
_KINDS = {"firmware": 0, "model": 1}
_SPKI = bytes.fromhex("302a300506032b6570032100")  # before the 32 bytes of an Ed25519 key in DER (RFC 8410, section 4)


@dataclass(frozen=True)
class Container:
    """What goes into a slot, up to the signatures."""

    hashed: bytes  # header, payload, protected tags

    @property
    def digest(self) -> bytes:
        """What is signed: 32 bytes."""
        return hashlib.sha256(self.hashed).digest()

    def signed(self, signatures: Sequence[Signed] = ()) -> bytes:
        """All of it. A board takes it when its key is among the signers."""
        tags = _tag(_SHA256, self.digest)
        for one in signatures:
            if one.key is not None:
                tags += _tag(_KEY_HASH, hashlib.sha256(_SPKI + one.key).digest())
            tags += _tag(_ED25519, one.signature)
        return self.hashed + _TAGS.pack(_TAGS_MAGIC, _TAGS.size + len(tags)) + tags


@dataclass(frozen=True)
class Signed:
    """A signature of a container's digest."""

    signature: bytes  # 64 bytes
    key: bytes | None = None  # the public key, 32 bytes; None: it is not known here


def contain(
    payload: bytes, kind: Literal["firmware", "model"], *, version: str, security_counter: int, board: str | None = None
) -> Container:
    """Header, payload and protected tags of an image for a slot.

    Args:
        version: 1.2.3 or 1.2.3+4; what is no number in it counts as 0.
        security_counter: a board refuses one that is lower than that of an image it has kept.
        board: its id; None: for any.
    """
    major, minor, revision, build = _numbers(version)
    protected = _tag(_COUNTER, struct.pack("<I", security_counter)) + _tag(_KIND, bytes([_KINDS[kind]]))
    if board is not None:
        protected += _tag(_BOARD, board.encode())
    protected = _TAGS.pack(_PROTECTED_MAGIC, _TAGS.size + len(protected)) + protected
    header = _HEADER.pack(
        _IMAGE_MAGIC, 0, _HEADER.size, len(protected), len(payload), 0, major, minor, revision, build, 0
    )
    return Container(header + payload + protected)


def model_container(image: bytes, manifest: Manifest) -> Container:
    """Of a bundle's model image. Models are for any board: what they need is checked where they are opened."""
    return contain(image, "model", version=manifest.version, security_counter=manifest.security_counter)


def wrap(
    payload: bytes,
    kind: Literal["firmware", "model"],
    *,
    version: str,
    security_counter: int,
    board: str | None = None,
    key: SigningKey | None = None,
) -> bytes:
    """`contain`, signed with a key; None leaves it unsigned."""
    container = contain(payload, kind, version=version, security_counter=security_counter, board=board)
    if key is None:
        return container.signed()
    return container.signed([Signed(key.private.sign(container.digest), key.public.raw)])


def board_of(data: bytes) -> str | None:
    """The board that an image is for; None: it does not say. `data` is whole (`toolkit.flash.mcuboot.read_image`)."""
    _, _, header, protected, payload, *_ = _HEADER.unpack_from(data)
    at, end = header + payload + _TAGS.size, header + payload + protected
    while at < end:
        tag, size = _TAGS.unpack_from(data, at)
        at += _TAGS.size
        if tag == _BOARD:
            return data[at : at + size].decode(errors="replace")
        at += size
    return None


def _tag(tag: int, value: bytes) -> bytes:
    return _TAGS.pack(tag, len(value)) + value


def _numbers(version: str) -> tuple[int, int, int, int]:
    found = [int(part) for part in re.findall(r"\d+", version)][:4]
    major, minor, revision, build = [*found, 0, 0, 0, 0][:4]
    return min(major, 255), min(minor, 255), min(revision, 65535), min(build, 2**32 - 1)
