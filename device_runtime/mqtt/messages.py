"""The messages of DESIGN §7 as frozen dataclasses, with strict parsing and serialising.

What a device is asked (`Request`, `Cancel`) is read strictly: an unknown field is an error, because a misspelt
`max_new` that is silently ignored costs its author an afternoon. What a device says is read leniently, so that an
older client understands a newer device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from device_runtime.mqtt.strict_json import Check, MessageError, check_fields, dump, flag, integer, number, parse, text
from device_runtime.mqtt.topics import is_id

__all__ = [
    "Accepted",
    "Address",
    "Cancel",
    "DeviceState",
    "ErrorReply",
    "Final",
    "Info",
    "Piece",
    "Request",
    "State",
    "Usage",
    "parse_reply",
]

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 64
MAX_CORRELATION_BYTES = 256

Finish = Literal["stop", "length", "cancelled", "deadline"]


class DeviceState(Enum):
    """What a device says of itself in `out/state`."""

    INIT = "init"  # connected, opening its model
    READY = "ready"
    BUSY = "busy"  # answering; more requests may still queue
    UPDATING = "updating"  # trying a new model; requests queue meanwhile
    SLEEPING = "sleeping"
    DISCONNECTED = "disconnected"  # left on purpose
    LOST = "lost"  # the broker's word, from the last will; or a bridge's, whose microcontroller is gone

    def may_become(self, other: DeviceState) -> bool:
        """Whether the device itself may go from this state to `other`."""
        return other in _NEXT[self]


_NEXT = {
    DeviceState.INIT: {DeviceState.READY, DeviceState.DISCONNECTED},
    DeviceState.READY: {
        DeviceState.BUSY,
        DeviceState.UPDATING,
        DeviceState.SLEEPING,
        DeviceState.LOST,
        DeviceState.DISCONNECTED,
    },
    DeviceState.BUSY: {DeviceState.READY, DeviceState.UPDATING, DeviceState.LOST, DeviceState.DISCONNECTED},
    DeviceState.UPDATING: {DeviceState.READY, DeviceState.BUSY, DeviceState.DISCONNECTED},
    DeviceState.SLEEPING: {DeviceState.READY, DeviceState.DISCONNECTED},
    DeviceState.DISCONNECTED: set[DeviceState](),
    DeviceState.LOST: {DeviceState.READY, DeviceState.DISCONNECTED},
}


@dataclass(frozen=True)
class Address:
    """Where an answer goes, and how its client knows it again."""

    reply_to: str  # the Response Topic, or `reply_to` in the payload
    correlation_data: bytes | None = None  # MQTT 5
    id: str | None = None  # MQTT 3.1.1: echoed in every reply

    @property
    def key(self) -> tuple[str, bytes] | None:
        """What makes a request the same request; None when its client did not say."""
        if self.correlation_data is not None:
            return self.reply_to, self.correlation_data
        return (self.reply_to, self.id.encode()) if self.id is not None else None

    @classmethod
    def find(cls, value: Any, response_topic: str | None, correlation_data: bytes | None) -> Address:
        """The address of a command: from its MQTT 5 properties, else from `reply_to` and `id` in the payload `value`.

        Raises:
            MessageError: there is none, or there are two.
        """
        fields = value if isinstance(value, dict) else {}
        in_payload = {name: fields[name] for name in ("reply_to", "id") if fields.get(name) is not None}
        if response_topic:
            if in_payload:
                raise MessageError("reply_to and id belong to MQTT 3.1.1; this request has a Response Topic as well.")
            if correlation_data is not None and len(correlation_data) > MAX_CORRELATION_BYTES:
                raise MessageError(
                    f"the Correlation Data has {len(correlation_data)} bytes; "
                    f"at most {MAX_CORRELATION_BYTES} are allowed."
                )
            return cls(response_topic, correlation_data)
        checked = check_fields("the address", in_payload, _ADDRESS)
        if "reply_to" not in checked:
            raise MessageError("no Response Topic (MQTT 5) and no reply_to (MQTT 3.1.1): nobody would hear the answer.")
        return cls(checked["reply_to"], None, checked.get("id"))


@dataclass(frozen=True)
class Request:
    """A prompt for a model, and how to answer it."""

    messages: tuple[Mapping[str, str], ...]  # chat messages; a bare prompt becomes one of the user's
    model: str | None = None  # the device's own when None
    max_new: int | None = None  # tokens; the device's default when None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None  # a JSON schema that the answer fits
    stream: bool = False  # send pieces before the final answer
    deadline_ms: int | None = None  # from arrival; what is ready by then is the answer
    accept: bool = False  # say at once who has taken it

    @classmethod
    def from_value(cls, value: Any) -> Request:
        """Read a request from parsed JSON.

        Raises:
            MessageError: a field is unknown, of the wrong type or out of range.
        """
        fields = check_fields("a request", value, _REQUEST | _ADDRESS)
        for name in _ADDRESS:
            fields.pop(name, None)
        prompt, messages = fields.pop("prompt", None), fields.pop("messages", None)
        if (prompt is None) == (messages is None):
            raise MessageError("a request needs either prompt or messages, and not both.")
        if fields.get("stop") and fields.get("schema") is not None:
            raise MessageError("stop and schema exclude each other: a stop text would cut the answer before it fits.")
        if messages is None:
            messages = ({"role": "user", "content": prompt},)
        return cls(messages, **fields)

    @classmethod
    def from_json(cls, payload: bytes) -> Request:
        """Read a request from a payload."""
        return cls.from_value(parse(payload))

    def to_json(self) -> bytes:
        """The payload of this request, without the fields that hold their defaults."""
        fields: dict[str, Any] = {"messages": [dict(m) for m in self.messages]}
        defaults = Request(())
        for name in _REQUEST:
            if hasattr(defaults, name) and name != "messages" and getattr(self, name) != getattr(defaults, name):
                fields[name] = getattr(self, name)
        return dump(fields)


@dataclass(frozen=True)
class Cancel:
    """Take back the request that has the same reply topic and the same correlation data (or id)."""

    @classmethod
    def from_value(cls, value: Any) -> Cancel:
        """Read a cancel command from parsed JSON; it has no fields beyond the address."""
        check_fields("a cancel command", value, _ADDRESS)
        return cls()


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's, how many cost nothing
    completion_tokens: int = 0


@dataclass(frozen=True)
class Accepted:
    """A device has taken a request that asked to `accept`, and will answer it. Sent with QoS 1, before all else."""

    device: str
    boot: int  # as in its `State`: a later one has forgotten the request

    def to_fields(self) -> dict[str, Any]:
        """As JSON fields."""
        return {"accepted": True, "device": self.device, "boot": self.boot}


@dataclass(frozen=True)
class Piece:
    """A part of an answer, as soon as it is there. Sent with QoS 0: the final answer heals a loss."""

    seq: int  # counts from 0
    text: str
    device: str | None = None  # which one of a pool says so

    def to_fields(self) -> dict[str, Any]:
        """As JSON fields."""
        return {"seq": self.seq, "text": self.text}


@dataclass(frozen=True)
class Final:
    """The whole answer. Sent with QoS 1."""

    seq: int  # how many pieces came before
    text: str  # all of it
    finish: Finish
    usage: Usage = field(default_factory=Usage)
    ttft_ms: float = 0.0  # from the start of the generation to its first token
    tps: float = 0.0  # tokens per second after the first
    device: str | None = None  # which one of a pool says so

    def to_fields(self) -> dict[str, Any]:
        """As JSON fields."""
        return {
            "seq": self.seq,
            "done": True,
            "finish": self.finish,
            "text": self.text,
            "usage": vars(self.usage),
            "ttft_ms": round(self.ttft_ms, 1),
            "tps": round(self.tps, 2),
        }


@dataclass(frozen=True)
class ErrorReply:
    """Why there is no answer."""

    # busy, invalid_request, unknown_model, retained, context_overflow, schema, incomplete, unavailable, failed
    code: str
    message: str
    retry_after_ms: int | None = None  # with busy
    device: str | None = None  # which one of a pool says so

    def to_fields(self) -> dict[str, Any]:
        """As JSON fields."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_ms is not None:
            error["retry_after_ms"] = self.retry_after_ms
        return {"error": error}


@dataclass(frozen=True)
class State:
    """`out/state`."""

    state: DeviceState
    boot: int  # how often the service has started; a higher one is the newer

    def to_json(self) -> bytes:
        """The payload."""
        return dump({"state": self.state.value, "boot": self.boot})

    @classmethod
    def from_json(cls, payload: bytes) -> State:
        """Read a payload.

        Raises:
            MessageError: it is not a state.
        """
        table: dict[str, Check] = {"state": text(choices=tuple(s.value for s in DeviceState)), "boot": integer()}
        fields = _complete("a state", check_fields("a state", parse(payload), table, strict=False), table)
        return cls(DeviceState(fields["state"]), fields["boot"])


@dataclass(frozen=True)
class Info:
    """`out/info`."""

    device: str
    board: str  # what the hardware calls itself
    version: str  # of stonechat
    models: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    firmware: str | None = None  # its version, on a microcontroller

    def to_json(self) -> bytes:
        """The payload."""
        fields = vars(self) | {"models": list(self.models), "capabilities": list(self.capabilities)}
        return dump({name: value for name, value in fields.items() if value is not None})

    @classmethod
    def from_json(cls, payload: bytes) -> Info:
        """Read a payload.

        Raises:
            MessageError: it is not an info.
        """
        words = _list_of(text())
        table: dict[str, Check] = {
            "device": text(), "board": text(), "version": text(), "models": words, "capabilities": words
        }  # fmt: skip
        fields = check_fields("an info", parse(payload), table | {"firmware": text()}, strict=False)
        return cls(**_complete("an info", fields, table))


def parse_reply(payload: bytes) -> Accepted | Piece | Final | ErrorReply:
    """Read what came on a reply topic.

    Raises:
        MessageError: it is none of the four.
    """
    value = parse(payload)
    fields = check_fields("a reply", value, _REPLY, strict=False)
    device = fields.pop("device", None)
    if isinstance(value, dict) and "error" in value:
        error = check_fields("an error", value["error"], _ERROR, strict=False)
        return ErrorReply(**_complete("an error", error, ("code", "message")), device=device)
    if fields.pop("accepted", False):
        fields = _complete("an acceptance", fields | {"device": device} if device else fields, ("device", "boot"))
        return Accepted(fields["device"], fields["boot"])
    fields.pop("boot", None)
    if fields.pop("done", False):
        fields = _complete("a final reply", fields, ("seq", "text", "finish"))
        if "usage" in fields:
            fields["usage"] = Usage(**check_fields("usage", fields["usage"], _USAGE, strict=False))
        return Final(**fields, device=device)
    fields = _complete("a piece", fields, ("seq", "text"))
    return Piece(fields["seq"], fields["text"], device)


def _complete(what: str, fields: dict[str, Any], names: Any) -> dict[str, Any]:
    missing = [name for name in names if name not in fields]
    if missing:
        raise MessageError(f"{what} lacks {', '.join(missing)}.")
    return fields


def _list_of(check: Check, limit: int = 64) -> Check:
    def check_list(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise MessageError(f"{name} must be a list.")
        if len(value) > limit:
            raise MessageError(f"{name} has {len(value)} entries; at most {limit} are allowed.")
        return tuple(check(f"{name}[{place}]", item) for place, item in enumerate(value))

    return check_list


def _message(name: str, value: Any) -> Mapping[str, str]:
    table: dict[str, Check] = {"role": text(choices=ROLES), "content": text()}
    return _complete(name, check_fields(name, value, table), table)


def _messages(name: str, value: Any) -> tuple[Mapping[str, str], ...]:
    messages: tuple[Mapping[str, str], ...] = _list_of(_message, MAX_MESSAGES)(name, value)
    if not messages:
        raise MessageError("messages is empty; it needs at least one.")
    return messages


def _schema(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MessageError("schema must be a JSON schema, which is an object.")
    return value


def _device(name: str, value: Any) -> str:
    if not isinstance(value, str) or not is_id(value):
        raise MessageError(f"{name} must be the id of a device.")
    return value


def _stop(name: str, value: Any) -> tuple[str, ...]:
    stops: tuple[str, ...] = _list_of(text(limit=256), 16)(name, value)
    if "" in stops:
        raise MessageError("stop holds an empty string, which every answer contains.")
    return stops


_ADDRESS: dict[str, Check] = {"reply_to": text(limit=1024), "id": text(limit=128)}
_REQUEST: dict[str, Check] = {
    "model": text(limit=64),
    "prompt": text(),
    "messages": _messages,
    "max_new": integer(1, 1_000_000),
    "temperature": number(0.0, 10.0),
    "top_k": integer(),
    "top_p": number(1e-6, 1.0),
    "seed": integer(0, 2**63 - 1),
    "stop": _stop,
    "schema": _schema,
    "stream": flag,
    "deadline_ms": integer(1),
    "accept": flag,
}
_USAGE: dict[str, Check] = {"prompt_tokens": integer(), "cached_tokens": integer(), "completion_tokens": integer()}
_ERROR: dict[str, Check] = {"code": text(), "message": text(), "retry_after_ms": integer()}
_REPLY: dict[str, Check] = {
    "accepted": flag,
    "boot": integer(),
    "device": _device,
    "seq": integer(),
    "text": text(),
    "done": flag,
    "finish": text(choices=("stop", "length", "cancelled", "deadline")),
    "usage": lambda name, value: value,
    "ttft_ms": number(),
    "tps": number(),
}
