"""The messages of an update over the air: the order, the device's reports and needs, and pieces of files.

    in/ota          `Order`: fetch this bundle
    out/ota         `Report`, and without a `url` in the order `ChunkRequest`
    in/ota/piece    `Chunk`: one line of JSON, then bytes of the file

The device asks for what it lacks, so it sets the pace, and after a break it asks where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Annotated

from device_runtime.mqtt.messages import Text
from device_runtime.mqtt.strict_json import MessageError, dump, parse, read
from device_runtime.mqtt.topics import ID
from device_runtime.records.constraints import Check, Inside, Length, Pattern, Range
from device_runtime.records.typed_json import write
from device_runtime.update.http_source import check_url

__all__ = ["MAX_PIECE_BYTES", "Chunk", "ChunkHeader", "ChunkRequest", "Order", "Phase", "Report", "parse_report"]

MAX_PIECE_BYTES = 61_440  # with its line of JSON it stays below what a device reads, strict_json.MAX_PAYLOAD_BYTES
_MAX_LINE_BYTES = 1024

Id = Annotated[str, Pattern(ID.pattern, "is {}; an id has 1 to 64 characters from a-z, 0-9 and '-'", "an id")]
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "is not the 64 hexadecimal digits of a sha256", "64 hex digits")]
FileName = Annotated[
    str, Pattern("[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "is {}, which is no name of a bundle's file", "a file of a bundle")
]
Bytes = Annotated[int, Range(0, 2**40)]


class Phase(Enum):
    """How far an update is."""

    FETCHING = "fetching"
    TRIAL = "trial"  # it is on the device, and has to prove itself
    CONFIRMED = "confirmed"  # it runs
    ROLLED_BACK = "rolled_back"  # it did not pass; what ran before runs
    REFUSED = "refused"  # it is not welcome, or never came whole; what ran before runs

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self in (Phase.CONFIRMED, Phase.ROLLED_BACK, Phase.REFUSED)


@dataclass(frozen=True)
class Order:
    """Take this bundle."""

    session: Annotated[Id, "names the update; one that comes again is answered with how far it is"]
    model: Annotated[Id, "which of the device's models"]
    manifest_sha256: Annotated[Sha256, "of the bundle's `manifest.json`"]
    url: Annotated[
        str | None,
        Length(1024),
        Check(check_url, "http:// or https://"),
        "of the bundle's folder; without it, the files come over MQTT",
    ] = None
    min_tps: Annotated[float | None, Range(1e-9, 1e9), "tokens per second that its trial has to decode"] = None
    max_rss_mb: Annotated[float | None, Range(1e-3, 1e9), "memory that its trial may take, 10^6 bytes"] = None
    timeout_s: Annotated[float | None, Range(1.0, 86_400.0), "seconds that its trial may last"] = None

    def to_json(self) -> bytes:
        """The payload."""
        return dump(write(self))

    @classmethod
    def from_json(cls, payload: bytes) -> Order:
        """Read a payload.

        Raises:
            MessageError: it is no order.
        """
        order: Order = read(cls, parse(payload), "an update")
        return order


@dataclass(frozen=True)
class Report:
    """How far an update is. Sent with QoS 1 when the phase changes, and now and then while it is fetching."""

    session: Annotated[Id, "the order's"]
    phase: Annotated[Phase, "how far it is"]
    model: Annotated[Id, "which of the device's models"]
    version: Annotated[Text | None, "of the bundle, once its manifest is there"] = None
    done_bytes: Annotated[Bytes, "of its files, what the device has"] = 0
    total_bytes: Annotated[Bytes, "of all its files"] = 0
    code: Annotated[str | None, Length(64), "why it was refused: the word of an error"] = None
    message: Annotated[Text | None, "the same in a sentence"] = None
    tokens_per_s: Annotated[float | None, Range(), "what its trial measured"] = None

    def to_json(self) -> bytes:
        """The payload."""
        return dump(write(self))


@dataclass(frozen=True)
class ChunkRequest:
    """Send these bytes of this file."""

    session: Annotated[Id, "the order's"]
    file: Annotated[FileName, Inside("need"), "the file"]
    offset: Annotated[Bytes, Inside("need"), "the first byte"]
    length: Annotated[int, Range(1, 2**40), Inside("need"), "bytes, at most"]

    def to_json(self) -> bytes:
        """The payload."""
        return dump(write(self))


@dataclass(frozen=True)
class ChunkHeader:
    """The line of JSON before bytes of a file."""

    session: Annotated[Id, "the order's"]
    file: Annotated[FileName, "the file"]
    offset: Annotated[Bytes, "where in the file the bytes belong"]
    size: Annotated[Bytes, "bytes of the whole file; 0 when there is no such file"]


@dataclass(frozen=True)
class Chunk(ChunkHeader):
    """Bytes of a file."""

    data: bytes

    def to_payload(self) -> bytes:
        """A line of JSON, and the bytes."""
        return dump({name: getattr(self, name) for name in _HEADER}) + b"\n" + self.data

    @classmethod
    def from_payload(cls, payload: bytes) -> Chunk:
        """Read a payload.

        Raises:
            MessageError: it is no piece.
        """
        line, newline, data = payload.partition(b"\n")
        if not newline or len(line) > _MAX_LINE_BYTES:
            raise MessageError("a piece of a file begins with a line of JSON.")
        header: ChunkHeader = read(ChunkHeader, parse(line), "a piece")
        if header.offset + len(data) > header.size:
            raise MessageError(f"a piece reaches beyond the end of {header.file}.")
        return cls(**vars(header), data=data)


_HEADER = tuple(field.name for field in fields(ChunkHeader))


def parse_report(payload: bytes) -> Report | ChunkRequest:
    """Read what came on `out/ota`.

    Raises:
        MessageError: it is neither.
    """
    value = parse(payload)
    said: Report | ChunkRequest
    if isinstance(value, dict) and "need" in value:
        said = read(ChunkRequest, value, "a need", strict=False)
    else:
        said = read(Report, value, "a report", strict=False)
    return said
