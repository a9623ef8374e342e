"""How a message becomes the body of a frame: its type, then its fields packed in order, little-endian, without padding.

A message is a frozen dataclass whose annotations are its layout, such as `request: Annotated[int, U32, "…"]`. The
same annotations make the tables of docs/ (`scripts/message_tables.py`) and the C header of a firmware
(`scripts/wire_header.py`). Bytes past the last field are for later versions and are not read.
"""

from __future__ import annotations

import struct
from dataclasses import MISSING, dataclass, fields
from enum import IntEnum, IntFlag
from functools import cache
from typing import Any, ClassVar, Protocol, Self, get_args, get_type_hints, runtime_checkable

from device_runtime.errors import MessageError

__all__ = [
    "F32",
    "I16",
    "U8",
    "U16",
    "U32",
    "U64",
    "Counted",
    "Fixed",
    "Layout",
    "Message",
    "MessageError",
    "PackedField",
    "Repeated",
    "Rest",
    "Scalar",
    "Since",
    "packed_fields",
]


@runtime_checkable
class Layout(Protocol):
    """How one field is packed."""

    def pack(self, value: Any, values: dict[str, Any]) -> bytes:
        """`value`, in bytes. `values` are all fields of the message."""

    def unpack(self, data: bytes, values: dict[str, Any]) -> tuple[Any, bytes]:
        """The value at the start of `data`, and what follows it. `values` are the fields before.

        `data` has at least the `size` bytes of a layout that has a size.

        Raises:
            ValueError: what is wrong with it, as the rest of a sentence that begins with the field's name.
        """

    @property
    def words(self) -> str:
        """The layout in a table."""


@dataclass(frozen=True)
class Scalar:
    """A number."""

    format: str  # of `struct`
    words: str  # as the specification calls it

    @property
    def size(self) -> int:
        """Bytes."""
        return struct.calcsize("<" + self.format)

    def pack(self, value: Any, values: dict[str, Any]) -> bytes:
        """See `Layout`."""
        return struct.pack("<" + self.format, value)

    def unpack(self, data: bytes, values: dict[str, Any]) -> tuple[Any, bytes]:
        """See `Layout`."""
        return struct.unpack_from("<" + self.format, data)[0], data[self.size :]


U8, U16, U32, U64 = Scalar("B", "u8"), Scalar("H", "u16"), Scalar("I", "u32"), Scalar("Q", "u64")
I16, F32 = Scalar("h", "i16"), Scalar("f", "f32")


@dataclass(frozen=True)
class Fixed:
    """So many bytes."""

    size: int

    @property
    def words(self) -> str:
        """See `Layout`."""
        return f"{self.size} bytes"

    def pack(self, value: bytes, values: dict[str, Any]) -> bytes:
        """See `Layout`."""
        return struct.pack(f"{self.size}s", value)

    def unpack(self, data: bytes, values: dict[str, Any]) -> tuple[bytes, bytes]:
        """See `Layout`."""
        return data[: self.size], data[self.size :]


@dataclass(frozen=True)
class Repeated:
    """Numbers, as many as an earlier field says."""

    item: Scalar
    count: str  # the name of that field
    most: int

    @property
    def words(self) -> str:
        """See `Layout`."""
        return f"{self.item.words} × `{self.count}`"

    def pack(self, value: tuple[Any, ...], values: dict[str, Any]) -> bytes:
        """See `Layout`."""
        return struct.pack(f"<{values[self.count]}{self.item.format}", *value)

    def unpack(self, data: bytes, values: dict[str, Any]) -> tuple[tuple[Any, ...], bytes]:
        """See `Layout`."""
        count = values[self.count]
        size = count * self.item.size
        if count > self.most or len(data) < size:
            raise ValueError(f"has {count} entries in {len(data)} bytes; at most {self.most}, each of {self.item.size}")
        return struct.unpack_from(f"<{count}{self.item.format}", data), data[size:]


@dataclass(frozen=True)
class Counted:
    """UTF-8 text after a byte with its length. Only printable characters of it are kept."""

    most: int  # bytes

    @property
    def words(self) -> str:
        """See `Layout`."""
        return "u8 length, UTF-8"

    def pack(self, value: str, values: dict[str, Any]) -> bytes:
        """See `Layout`."""
        text = value.encode()[: self.most]
        return bytes([len(text)]) + text

    def unpack(self, data: bytes, values: dict[str, Any]) -> tuple[str, bytes]:
        """See `Layout`."""
        length = data[0] if data else 0
        if length > self.most or len(data) < 1 + length:
            raise ValueError(f"is cut, or longer than {self.most} bytes")
        return _printable(data[1 : 1 + length]), data[1 + length :]


@dataclass(frozen=True)
class Rest:
    """All that is left of the frame: bytes, or UTF-8 text of which at most `most_text` bytes are read."""

    most_text: int = 0  # bytes; 0: it is no text

    @property
    def words(self) -> str:
        """See `Layout`."""
        return "UTF-8" if self.most_text else "bytes"

    def pack(self, value: Any, values: dict[str, Any]) -> bytes:
        """See `Layout`."""
        packed: bytes = value.encode()[: self.most_text] if self.most_text else value
        return packed

    def unpack(self, data: bytes, values: dict[str, Any]) -> tuple[Any, bytes]:
        """See `Layout`."""
        return (_printable(data[: self.most_text]) if self.most_text else data), b""


@dataclass(frozen=True)
class Since:
    """The version of the protocol that a field came with, where it is not the first. Such fields are the last ones."""

    version: int


def _printable(data: bytes) -> str:
    return "".join(character for character in data.decode(errors="replace") if character.isprintable())


@dataclass(frozen=True)
class PackedField:
    """One field of a message."""

    name: str
    layout: Layout
    choices: type[IntEnum | IntFlag] | None  # what the number means
    doc: str
    since: int = 1  # version of the protocol; a message of an older one ends before the field
    default: Any = None  # what it is in such a message


@dataclass(frozen=True)
class Message:
    """A message: its fields in order are its layout."""

    TYPE: ClassVar[int]

    def pack(self, version: int | None = None) -> bytes:
        """The body of a frame, for a peer that speaks `version`; None: with all fields."""
        values = vars(self)
        known = [field for field in self._fields() if version is None or field.since <= version]
        packed = (field.layout.pack(values[field.name], values) for field in known)
        return bytes([self.TYPE]) + b"".join(packed)

    @classmethod
    def _fields(cls) -> tuple[PackedField, ...]:
        kind: Any = cls
        return packed_fields(kind)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the bytes after the type.

        Raises:
            MessageError: too few, or out of range.
        """
        values: dict[str, Any] = {}
        least = sum(getattr(field.layout, "size", 0) for field in cls._fields() if field.since == 1)
        if len(data) < least:
            raise MessageError(f"{cls.__name__} has {len(data)} bytes after its type; expected {least} or more")
        version = 1  # of the sender, as far as the bytes show it
        for field in cls._fields():
            if field.since > version and not data:
                values[field.name] = field.default
                continue
            version = max(version, field.since)
            try:
                if len(data) < getattr(field.layout, "size", 0):
                    raise ValueError("is cut")
                value, data = field.layout.unpack(data, values)
                values[field.name] = value if field.choices is None else _meaning(field.choices, value)
            except ValueError as error:
                raise MessageError(f"{cls.__name__}.{field.name} {error}") from None
        return cls(**values)


def _meaning(choices: type[IntEnum | IntFlag], value: int) -> IntEnum | IntFlag:
    try:
        return choices(value)
    except ValueError:
        raise ValueError(f"is {value}, which means nothing") from None


@cache
def packed_fields(message: Any) -> tuple[PackedField, ...]:
    """The fields of a kind of message, in the order in which they are packed."""
    hints = get_type_hints(message, include_extras=True)
    found = []
    for field in fields(message):
        kind, *notes = get_args(hints[field.name])
        layout = next(note for note in notes if isinstance(note, Layout))
        choices = kind if isinstance(kind, type) and issubclass(kind, IntEnum | IntFlag) else None
        doc = " ".join(note for note in notes if isinstance(note, str))
        since = next((note.version for note in notes if isinstance(note, Since)), 1)
        default = None if field.default is MISSING else field.default
        found.append(PackedField(field.name, layout, choices, doc, since, default))
    return tuple(found)
