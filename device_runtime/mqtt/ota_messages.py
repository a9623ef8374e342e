"""What an update over the air says: the order, the device's reports and needs, and pieces of files.

    in/ota          an order: {"session","model","manifest_sha256","url"|null,"min_tps","max_rss_mb","timeout_s"}
    out/ota         {"session","phase",…}, and without a `url` {"session","need":{"file","offset","length"}}
    in/ota/piece    one line of JSON, {"session","file","offset","size"}, then bytes of the file

The device asks for what it lacks, so it sets the pace, and after a break it asks where it stopped.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.strict_json import Check, MessageError, check_fields, dump, integer, number, parse, text
from device_runtime.mqtt.topics import is_id

__all__ = ["MAX_PIECE_BYTES", "Need", "Order", "Phase", "Piece", "Report", "parse_report"]

MAX_PIECE_BYTES = 61_440  # with its line of JSON it stays below what a device reads, payload.MAX_PAYLOAD_BYTES
_MAX_LINE_BYTES = 1024
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


class Phase(Enum):
    """How far an update is."""

    FETCHING = "fetching"
    TRIAL = "trial"  # it is on the device, and has to prove itself
    CONFIRMED = "confirmed"  # it runs
    ROLLED_BACK = "rolled_back"  # it did not pass; what ran before runs
    REFUSED = "refused"  # it is not welcome, or never came whole; what ran before runs

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self in (Phase.CONFIRMED, Phase.ROLLED_BACK, Phase.REFUSED)


@dataclass(frozen=True)
class Order:
    """Take this bundle."""

    session: str  # an id; the same order may be sent again, and is then answered with how far it is
    model: str  # which of the device's models
    manifest_sha256: str  # of the bundle's manifest.json
    url: str | None = None  # of the bundle's folder; None: pieces come over MQTT
    min_tps: float | None = None  # tokens a second that it has to decode in its trial
    max_rss_mb: float | None = None  # 10^6 bytes that its trial may take
    timeout_s: float | None = None  # that its trial may last

    def to_json(self) -> bytes:
        """The payload."""
        return dump({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, payload: bytes) -> Order:
        """Read a payload.

        Raises:
            MessageError: it is no order.
        """
        fields = check_fields("an update", parse(payload), _ORDER)
        _require("an update", fields, "session", "model", "manifest_sha256")
        return cls(**fields)


@dataclass(frozen=True)
class Report:
    """How far an update is. Sent with QoS 1 when the phase changes, and now and then while it is fetching."""

    session: str
    phase: Phase
    model: str
    version: str | None = None  # of the bundle, once its manifest is there
    done_bytes: int = 0  # of its files, what the device has
    total_bytes: int = 0
    code: str | None = None  # why it was refused: the word of an error
    message: str | None = None  # the same in a sentence
    tokens_per_s: float | None = None  # what its trial measured

    def to_json(self) -> bytes:
        """The payload."""
        fields = asdict(self) | {"phase": self.phase.value}
        return dump({name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True)
class Need:
    """Send these bytes of this file."""

    session: str
    file: str
    offset: int
    length: int  # bytes, at most

    def to_json(self) -> bytes:
        """The payload."""
        fields = asdict(self)
        return dump({"session": fields.pop("session"), "need": fields})


@dataclass(frozen=True)
class Piece:
    """Bytes of a file."""

    session: str
    file: str
    offset: int
    size: int  # bytes of the whole file; 0 when there is no such file
    data: bytes

    def to_payload(self) -> bytes:
        """A line of JSON, and the bytes."""
        fields = {"session": self.session, "file": self.file, "offset": self.offset, "size": self.size}
        return dump(fields) + b"\n" + self.data

    @classmethod
    def from_payload(cls, payload: bytes) -> Piece:
        """Read a payload.

        Raises:
            MessageError: it is no piece.
        """
        line, newline, data = payload.partition(b"\n")
        if not newline or len(line) > _MAX_LINE_BYTES:
            raise MessageError("a piece of a file begins with a line of JSON.")
        fields = check_fields("a piece", parse(line), _PIECE)
        _require("a piece", fields, *_PIECE)
        if fields["offset"] + len(data) > fields["size"]:
            raise MessageError(f"a piece reaches beyond the end of {fields['file']}.")
        return cls(**fields, data=data)


def parse_report(payload: bytes) -> Report | Need:
    """Read what came on `out/ota`.

    Raises:
        MessageError: it is neither.
    """
    value = parse(payload)
    if isinstance(value, dict) and "need" in value:
        need = check_fields("a need", value["need"], _NEED, strict=False)
        _require("a need", need, *_NEED)
        session = check_fields("a need", {"session": value.get("session")}, _SESSION)
        _require("a need", session, "session")
        return Need(**session, **need)
    fields = check_fields("a report", value, _REPORT, strict=False)
    _require("a report", fields, "session", "phase", "model")
    return Report(**fields | {"phase": Phase(fields["phase"])})


def _require(what: str, fields: dict[str, Any], *names: str) -> None:
    if missing := [name for name in names if name not in fields]:
        raise MessageError(f"{what} lacks {', '.join(missing)}.")


def _id(name: str, value: Any) -> str:
    found: str = text(64)(name, value)
    if not is_id(found):
        raise MessageError(f"{name} is {found!r}; an id has 1 to 64 characters from a-z, 0-9 and '-'.")
    return found


def _sha256(name: str, value: Any) -> str:
    found: str = text(64)(name, value)
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise MessageError(f"{name} is not the 64 hexadecimal digits of a sha256.")
    return found


def _file(name: str, value: Any) -> str:
    found: str = text(100)(name, value)
    if not _FILE_NAME.fullmatch(found):
        raise MessageError(f"{name} is {found!r}, which is no name of a bundle's file.")
    return found


def _url(name: str, value: Any) -> str:
    from device_runtime.update.http_source import HttpSource

    found: str = text(1024)(name, value)
    try:
        HttpSource(found)
    except ConfigurationError as error:
        raise MessageError(f"{name}: {error}") from None
    return found


_SIZE = integer(0, 2**40)
_SESSION: dict[str, Check] = {"session": _id}
_ORDER: dict[str, Check] = {
    **_SESSION,
    "model": _id,
    "manifest_sha256": _sha256,
    "url": _url,
    "min_tps": number(1e-9, 1e9),
    "max_rss_mb": number(1e-3, 1e9),
    "timeout_s": number(1.0, 86_400.0),
}
_NEED: dict[str, Check] = {"file": _file, "offset": _SIZE, "length": integer(1, 2**40)}
_PIECE: dict[str, Check] = {**_SESSION, "file": _file, "offset": _SIZE, "size": _SIZE}
_REPORT: dict[str, Check] = {
    **_SESSION,
    "phase": text(choices=tuple(phase.value for phase in Phase)),
    "model": _id,
    "version": text(),
    "done_bytes": _SIZE,
    "total_bytes": _SIZE,
    "code": text(64),
    "message": text(),
    "tokens_per_s": number(),
}
