"""How a message becomes the body of a frame: a type, the fields packed in order, and perhaps data at the end.

Little-endian, without padding. Bytes past the last field are for later versions and are not read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Self, get_type_hints

from device_runtime.errors import MessageError

__all__ = ["Message", "MessageError", "WithData"]


@dataclass(frozen=True)
class Message:
    """A message: its fields in order are its layout."""

    TYPE: ClassVar[int]
    LAYOUT: ClassVar[str]  # for `struct`, without strings and the data at the end

    def pack(self) -> bytes:
        """The body of a frame."""
        return bytes([self.TYPE]) + struct.pack("<" + self.LAYOUT, *(getattr(self, name) for name in _fixed(self)))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the bytes after the type.

        Raises:
            MessageError: too few, or out of range.
        """
        values, _ = cls._head(data)
        return cls(**values)

    @classmethod
    def _head(cls, data: bytes) -> tuple[dict[str, Any], bytes]:
        size = struct.calcsize("<" + cls.LAYOUT)
        if len(data) < size:
            raise MessageError(f"{cls.__name__} has {len(data)} bytes after its type; expected {size} or more")
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for name, value in zip(_fixed(cls), struct.unpack_from("<" + cls.LAYOUT, data), strict=True):
            try:
                values[name] = hints[name](value) if issubclass(hints[name], IntEnum | IntFlag) else value
            except ValueError:
                raise MessageError(f"{cls.__name__}.{name} is {value}, which means nothing") from None
        return values, data[size:]


@dataclass(frozen=True)
class WithData(Message):
    """A message that ends with data up to the end of its frame."""

    def pack(self) -> bytes:
        """The body of a frame."""
        return super().pack() + self._data()

    def _data(self) -> bytes:
        data: bytes = getattr(self, "data")  # noqa: B009  # the last field of each of these
        return data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the bytes after the type."""
        values, rest = cls._head(data)
        return cls(**(values | {"data": rest}))


def _fixed(kind: Message | type[Message]) -> list[str]:
    """Names of the fields that the layout covers."""
    count = len(struct.unpack("<" + kind.LAYOUT, bytes(struct.calcsize("<" + kind.LAYOUT))))
    return [field.name for field in fields(kind)[:count]]
