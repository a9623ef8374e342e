"""Frames on a serial line: docs/reference/serial-protocol.md, section 2.

    00 | COBS( body | CRC-32 of the body, little-endian ) | 00

A zero byte never occurs inside, so a reader that has lost its place finds it again at the next one. What stands
between two zero bytes and is no frame (boot messages, log lines, half a frame) is noise.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cobs import cobs

from device_runtime.errors import FrameError

__all__ = ["LARGEST_BODY", "OVERHEAD", "FrameError", "FrameReader", "body_of", "frame"]

LARGEST_BODY = 1024  # bytes; a board may ask for less
OVERHEAD = 2 + 4 + 1  # delimiters, CRC, and COBS up to 254 bytes
_CRC = struct.Struct("<I")
_LONGEST = LARGEST_BODY + _CRC.size + 2 + LARGEST_BODY // 254  # between delimiters, COBS included


def frame(body: bytes) -> bytes:
    """A body as it goes over the line."""
    coded: bytes = cobs.encode(body + _CRC.pack(zlib.crc32(body)))
    return b"\0" + coded + b"\0"


def body_of(coded: bytes) -> bytes:
    """The body in the bytes between two delimiters.

    Raises:
        FrameError: they are not COBS, too few, or damaged.
    """
    try:
        content: bytes = cobs.decode(coded)
    except cobs.DecodeError:
        raise FrameError("not COBS") from None
    if len(content) <= _CRC.size:
        raise FrameError(f"{len(content)} bytes; a frame has more than {_CRC.size}")
    body, crc = content[: -_CRC.size], content[-_CRC.size :]
    if _CRC.pack(zlib.crc32(body)) != crc:
        raise FrameError("the CRC does not fit")
    return body


@dataclass
class FrameReader:
    """Cuts a stream of bytes into bodies, and skips what is none."""

    received: int = 0  # bytes in all
    frames: int = 0
    noise: int = 0  # stretches that were no frames
    last_noise: bytes = b""
    _held: bytearray = field(default_factory=bytearray)
    _too_long: bool = False

    def push(self, data: bytes) -> Iterator[bytes]:
        """The bodies that `data` completes."""
        self.received += len(data)
        *ended, rest = data.split(b"\0")
        for part in ended:
            self._hold(part)
            stretch, too_long = bytes(self._held), self._too_long
            self.reset()
            if not stretch:
                continue
            try:
                body = body_of(b"" if too_long else stretch)
            except FrameError:
                self.noise, self.last_noise = self.noise + 1, stretch
            else:
                self.frames += 1
                yield body
        self._hold(rest)

    def reset(self) -> None:
        """Forget what is not complete."""
        self._held.clear()
        self._too_long = False

    @property
    def sample(self) -> bytes:
        """The latest bytes that were no frame."""
        return bytes(self._held) or self.last_noise

    def _hold(self, part: bytes) -> None:
        room = _LONGEST - len(self._held)
        self._too_long = self._too_long or len(part) > room
        self._held += part[:room]
