"""The messages of DESIGN §7: each is one annotated dataclass, from which come its checks, its payload and its table.

What a device is asked (`Request`, `Cancel`) is read strictly: an unknown field is an error, because a misspelt
`max_new` that is silently ignored costs its author an afternoon. What a device says is read leniently, so that an
older client understands a newer device. The tables in docs/ are made by `scripts/message_tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict

from device_runtime.engine.chat import Role
from device_runtime.engine.stop_strings import Finish as EngineFinish
from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES, MessageError, dump, parse, read
from device_runtime.mqtt.topics import ID
from device_runtime.records.constraints import COUNT, Inside, Kind, Length, Pattern, Range, ReadAs, Rounded
from device_runtime.records.typed_json import write

__all__ = [
    "Accepted",
    "Address",
    "AddressFields",
    "Cancel",
    "ChatMessage",
    "DeviceState",
    "ErrorReply",
    "Final",
    "Finish",
    "HealthReport",
    "Info",
    "LinkAnswer",
    "Piece",
    "Request",
    "RequestPayload",
    "Route",
    "State",
    "Usage",
    "parse_reply",
]

MAX_MESSAGES = 64
MAX_EXAMPLES = 64
MAX_CORRELATION_BYTES = 256

Finish = Literal[EngineFinish, "deadline"]
Task = Literal["generate", "embed", "classify", "translate"]
Count = Annotated[int, COUNT]
Number = Annotated[float, Range()]
Text = Annotated[str, Length(MAX_PAYLOAD_BYTES)]
DeviceId = Annotated[str, Pattern(ID.pattern, "must be the id of a device"), Kind("the id of a device")]


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
    DeviceState.INIT: {DeviceState.READY, DeviceState.UPDATING, DeviceState.DISCONNECTED},
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
class AddressFields:
    """What an MQTT 3.1.1 client adds to a command, in place of a Response Topic and Correlation Data."""

    reply_to: Annotated[str | None, Length(1024), "where the answer goes: a topic of the reply tree"] = None
    id: Annotated[str | None, Length(128), "comes back in each reply"] = None


@dataclass(frozen=True)
class Address:
    """Where an answer goes, and how its client knows it again."""

    reply_to: str  # the Response Topic, or `reply_to` in the payload
    correlation_data: bytes | None = None  # MQTT 5
    id: str | None = None  # MQTT 3.1.1: echoed in every reply
    client: str = ""  # whose name the topic of the command vouches for; empty where it has none

    @property
    def key(self) -> tuple[str, str, bytes] | None:
        """What makes a request the same request; None when its client did not say.

        A request that somebody is vouched for is not the same as one of a client that only calls itself so.
        """
        if self.correlation_data is not None:
            return self.client, self.reply_to, self.correlation_data
        return (self.client, self.reply_to, self.id.encode()) if self.id is not None else None

    @classmethod
    def find(cls, value: Any, response_topic: str | None, correlation_data: bytes | None) -> Address:
        """The address of a command: from its MQTT 5 properties, else from `reply_to` and `id` in the payload `value`.

        Raises:
            MessageError: there is none, or there are two.
        """
        given = value if isinstance(value, dict) else {}
        in_payload = {f.name: given[f.name] for f in fields(AddressFields) if given.get(f.name) is not None}
        if response_topic:
            if in_payload:
                raise MessageError("reply_to and id belong to MQTT 3.1.1; this request has a Response Topic as well.")
            if correlation_data is not None and len(correlation_data) > MAX_CORRELATION_BYTES:
                raise MessageError(
                    f"the Correlation Data has {len(correlation_data)} bytes; "
                    f"at most {MAX_CORRELATION_BYTES} are allowed."
                )
            return cls(response_topic, correlation_data)
        found: AddressFields = read(AddressFields, in_payload, "the address")
        if found.reply_to is None:
            raise MessageError("no Response Topic (MQTT 5) and no reply_to (MQTT 3.1.1): nobody would get the answer.")
        return cls(found.reply_to, None, found.id)


@dataclass(frozen=True)
class ShownExample:
    """What somebody might ask, and the right answer."""

    prompt: Annotated[Text, "as a user's message"]
    answer: Annotated[Any, "a text, or what fits the schema"]


class ChatMessage(TypedDict):
    """One message of a conversation."""

    role: Role
    content: Text


ChatMessages = Annotated[
    tuple[Annotated[Mapping[str, str], ReadAs(ChatMessage)], ...],
    Length(MAX_MESSAGES, 1),
    'a conversation: a list of `{"role","content"}`; this or `prompt` is needed',
]


@dataclass(frozen=True)
class Request:
    """A prompt for a model, and how to answer it."""

    messages: ChatMessages
    model: Annotated[str | None, Length(64), "the model's name in the fleet file; default: the device's first"] = None
    max_new: Annotated[int | None, Range(1, 1_000_000), "tokens, at most; default: the fleet file's"] = None
    temperature: Annotated[float, Range(0.0, 10.0), "0 takes the likeliest token, always"] = 0.0
    top_k: Annotated[int, COUNT, "draw from so many of the likeliest tokens; 0: from all"] = 0
    top_p: Annotated[float, Range(1e-6, 1.0), "draw from the fewest tokens that reach this probability together"] = 1.0
    seed: Annotated[int | None, Range(0, 2**63 - 1), "the same seed draws the same answer"] = None
    stop: Annotated[tuple[Annotated[str, Length(256, 1)], ...], Length(16), "texts that end the answer"] = ()
    schema: Annotated[
        Mapping[str, Any] | None,
        Kind("a JSON schema, which is an object"),
        "what the answer fits, see [below](#answers-that-are-data); not together with `stop`",
    ] = None
    examples: Annotated[
        tuple[ShownExample, ...],
        Length(MAX_EXAMPLES),
        'shown to the model before the last message: a list of `{"prompt","answer"}`',
    ] = ()
    task: Annotated[
        Task | None, "`generate`, `embed`, `classify` or `translate`: an error where the model has another"
    ] = None
    prompt_name: Annotated[str | None, Length(64), "of `embed`: what the text is for, such as `query` (E5)"] = None
    to: Annotated[str | None, Length(64), "of `translate`: the language, where the model writes several"] = None
    truncate: Annotated[bool, "of all but `generate`: cut off what is too long instead of refusing it"] = False
    stream: Annotated[bool, "send pieces before the final answer"] = False
    deadline_ms: Annotated[int | None, Range(1, 2**31 - 1), "from arrival; what is ready by then is the answer"] = None
    accept: Annotated[bool, "say at once who has taken the request, see [Pools](#pools)"] = False
    record: Annotated[bool, "with the answer, its record: see [records.md](../guides/records.md)"] = False
    hops: Annotated[int, Range(0, 8), "how often it was passed on by a device that was unsure of its answer"] = 0
    unfamiliar: Annotated[
        bool, "no model is for it, as who asks has found: the device passes it on by its `escalate`, or refuses it"
    ] = False

    @classmethod
    def from_value(cls, value: Any) -> Request:
        """Read a request from parsed JSON.

        Raises:
            MessageError: a field is unknown, of the wrong type or out of range.
        """
        payload: RequestPayload = read(RequestPayload, value, "a request")
        if (payload.prompt is None) == (not payload.messages):
            raise MessageError("a request needs either prompt or messages, and not both.")
        if payload.stop and payload.schema is not None:
            raise MessageError("stop and schema exclude each other: a stop text would cut the answer before it fits.")
        asked = {f.name: getattr(payload, f.name) for f in fields(cls)}
        if payload.prompt is not None:
            asked["messages"] = ({"role": "user", "content": payload.prompt},)
        return cls(**asked)

    @classmethod
    def from_json(cls, payload: bytes) -> Request:
        """Read a request from a payload."""
        return cls.from_value(parse(payload))

    def to_json(self) -> bytes:
        """The payload of this request, without the fields that hold their defaults."""
        return dump(write(self, defaults=False))


@dataclass(frozen=True)
class RequestPayload(AddressFields, Request):
    """`in/generate`: a request as clients write it, with a short form for one message."""

    messages: ChatMessages = ()
    prompt: Annotated[Text | None, "a user's message; short for `messages` with this one"] = None


@dataclass(frozen=True)
class Cancel:
    """Take back the request that has the same reply topic and the same correlation data (or id)."""

    @classmethod
    def from_value(cls, value: Any) -> Cancel:
        """Read a cancel command from parsed JSON; it has no fields beyond the address."""
        read(AddressFields, value, "a cancel command")
        return cls()


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: Annotated[Count, "of the prompt"] = 0
    cached_tokens: Annotated[Count, "of these, how many the kv_cache had already"] = 0
    completion_tokens: Annotated[Count, "of the answer"] = 0


@dataclass(frozen=True)
class Route:
    """Where an answer was given, and why there."""

    where: Annotated[str, "`here`, `device NAME`, `pool NAME`, or the address of a server"] = "here"
    model: Annotated[str | None, "the model's name there"] = None
    why: Annotated[str | None, "why this model, or why it was passed on"] = None
    failed: Annotated[str | None, "why there is no better answer than this one"] = None


class _Reply:
    """What a device answers."""

    def to_fields(self) -> dict[str, Any]:
        """As JSON fields."""
        return write(self)


@dataclass(frozen=True)
class Accepted(_Reply):
    """A device has taken a request that asked to `accept`, and will answer it. Sent with QoS 1, before all else."""

    device: Annotated[DeviceId, "the device that has taken it"]
    boot: Annotated[Count, "as in its `out/state`: with a later one it has forgotten the request"]
    accepted: Annotated[Literal[True], "what makes it an acceptance"] = field(default=True, init=False)


@dataclass(frozen=True)
class Piece(_Reply):
    """A part of an answer, as soon as it is there. Sent with QoS 0: the final answer heals a loss."""

    seq: Annotated[Count, "counts from 0"]
    text: Annotated[Text, "goes after what came before"]
    device: Annotated[DeviceId | None, "which device of a pool says so"] = None


@dataclass(frozen=True)
class Final(_Reply):
    """The whole answer. Sent with QoS 1."""

    seq: Annotated[Count, "how many pieces came before"]
    text: Annotated[Text, "all of the answer"]
    finish: Annotated[Finish, "why it ended: a stop token or text, the limit of tokens, a cancel command, the deadline"]
    usage: Annotated[Usage, "token counts: `prompt_tokens`, `cached_tokens` of them, `completion_tokens`"] = field(
        default_factory=Usage
    )
    ttft_ms: Annotated[Number, Rounded(1), "from the start of the generation to its first token"] = 0.0
    tps: Annotated[Number, Rounded(2), "tokens per second after the first"] = 0.0
    confidence: Annotated[
        Mapping[str, float] | None, "of an answer held to a schema, by field: from 0 to 1; texts have none"
    ] = None
    unfamiliar: Annotated[bool | None, "the input is unlike those that the model was trained for"] = None
    reason: Annotated[str | None, "why it is unfamiliar, or why the answer is `null`"] = None
    embedding: Annotated[
        tuple[Annotated[float, Rounded(6)], ...] | None, Length(8192), "of `embed`: the vector; `text` is empty"
    ] = None
    probabilities: Annotated[
        Mapping[str, Mapping[str, float]] | None, "of fields that are one of several values, by field: of every value"
    ] = None
    route: Annotated[Route | None, "where it was answered and why: `where`, `model`, `why`, `failed`"] = None
    energy: Annotated[
        Mapping[str, Any] | None,
        "of this device for the answer: `j`, `mwh`, and `how` it is known: measured or computed",
    ] = None
    record: Annotated[Mapping[str, Any] | None, "where the request asked for it"] = None
    device: Annotated[DeviceId | None, "which device of a pool says so"] = None
    done: Annotated[Literal[True], "what makes it the final answer"] = field(default=True, init=False)


@dataclass(frozen=True)
class ErrorReply(_Reply):
    """Why there is no answer. Sent with QoS 1."""

    code: Annotated[str, Inside("error"), "a word for programs, see below"]
    message: Annotated[str, Inside("error"), "a sentence for people"]
    retry_after_ms: Annotated[Count | None, Inside("error"), "with `busy`: when to ask again"] = None
    device: Annotated[DeviceId | None, "which device of a pool says so"] = None


@dataclass(frozen=True)
class _Mark:
    """What distinguishes the replies."""

    accepted: bool = False
    done: bool = False


def parse_reply(payload: bytes) -> Accepted | Piece | Final | ErrorReply:
    """Read what came on a reply topic.

    Raises:
        MessageError: it is none of the four.
    """
    value = parse(payload)
    mark: _Mark = read(_Mark, value, "a reply", strict=False)
    reply: Accepted | Piece | Final | ErrorReply
    if "error" in value:
        reply = read(ErrorReply, value, "an error", strict=False)
    elif mark.accepted:
        reply = read(Accepted, value, "an acceptance", strict=False)
    elif mark.done:
        reply = read(Final, value, "a final reply", strict=False)
    else:
        reply = read(Piece, value, "a piece", strict=False)
    return reply


@dataclass(frozen=True)
class State:
    """`out/state`."""

    state: Annotated[DeviceState, "see below"]
    boot: Annotated[Count, "how often the service has started; a higher one is the newer"]
    mqtt: Annotated[
        int | None, "3: it speaks MQTT 3.1.1, and a request needs `reply_to` and `id` whatever its client speaks"
    ] = None

    def to_json(self) -> bytes:
        """The payload."""
        return dump(write(self))

    @classmethod
    def from_json(cls, payload: bytes) -> State:
        """Read a payload.

        Raises:
            MessageError: it is not a state.
        """
        state: State = read(cls, parse(payload), "a state", strict=False)
        return state


@dataclass(frozen=True)
class Info:
    """`out/info`."""

    device: Annotated[str, "its id"]
    board: Annotated[str, "what the hardware calls itself"]
    version: Annotated[str, "of stonechat"]
    models: Annotated[
        tuple[str, ...], Length(64), "names in the fleet file; the first answers unless asked otherwise"
    ] = ()
    capabilities: Annotated[
        tuple[str, ...], Length(64), "`generate`, `stream`, `cancel`, `schema`, `links`, `ota`, `pool` …"
    ] = ()
    firmware: Annotated[str | None, "its version, on a microcontroller"] = None
    pool: Annotated[str | None, "the pool whose requests it shares"] = None
    bundles: Annotated[Mapping[str, str] | None, "by model: name and version of the bundle that answers"] = None
    not_open: Annotated[
        Mapping[str, str] | None,
        "by model: why it cannot be opened; the others serve, and the device takes another",
    ] = None
    links_refused: Annotated[
        Mapping[str, str] | None, "by link: why no model that it may ask can answer it; the device leaves it out"
    ] = None
    tasks: Annotated[
        Mapping[str, str] | None, "of the models with another task than `generate`: `embed`, `classify`, `translate`"
    ] = None

    def to_json(self) -> bytes:
        """The payload."""
        return dump(write(self))

    @classmethod
    def from_json(cls, payload: bytes) -> Info:
        """Read a payload.

        Raises:
            MessageError: it is not an info.
        """
        info: Info = read(cls, parse(payload), "an info", strict=False)
        return info


@dataclass(frozen=True)
class HealthReport:
    """`out/health`. What this machine or the time so far cannot say is left out."""

    uptime_s: Annotated[Number | None, "since the start of the service"] = None
    rss_mb: Annotated[Number | None, "resident memory of the process, 10^6 bytes"] = None
    temperature_c: Annotated[float | None, "of the processor"] = None
    throttled: Annotated[bool | None, "the board runs slower because of heat or low voltage"] = None
    answers: Annotated[Count | None, "given since the start"] = None
    errors: Annotated[Count | None, "what failed in the device, not what it refused"] = None
    prompt_tokens: Annotated[Count | None, "of all prompts that were answered"] = None
    reused_tokens: Annotated[Count | None, "of these, how many were not computed again"] = None
    kept_states: Annotated[Count | None, "beginnings of prompts, and conversations, that are kept to be reused"] = None
    kept_states_mb: Annotated[Number | None, "memory that they take, 10^6 bytes"] = None
    queue: Annotated[Count | None, "requests and readings that wait"] = None
    escalations: Annotated[
        Mapping[str, Any] | None,
        "of `escalate`, by link or device: answers from elsewhere by reason, failures, today's",
    ] = None
    dropped: Annotated[Mapping[str, Any] | None, "what the limits kept out, by kind"] = None
    links: Annotated[Mapping[str, Any] | None, "by link and by kind of trouble: readings without an answer"] = None
    arena_bytes: Annotated[Count | None, "of a microcontroller: memory that its model works in"] = None
    board_uptime_s: Annotated[Count | None, "of a microcontroller: since its start"] = None
    board_resets: Annotated[Count | None, "of a microcontroller: starts that the bridge has seen"] = None
    board_starts: Annotated[Count | None, "of a microcontroller: since it was given power"] = None
    board_reset_by: Annotated[str | None, "of a microcontroller: `command`, `watchdog` or `unknown`"] = None
    line_noise: Annotated[Count | None, "of a microcontroller: stretches on its line that were no frames"] = None
    bytes_lost: Annotated[Count | None, "of a microcontroller: that found its receive buffer full"] = None
    energy_j: Annotated[Number | None, "of all answers since the start"] = None
    energy_mwh_answer: Annotated[Number | None, "of an answer, on average"] = None
    energy_how: Annotated[str | None, "measured, and by what, or computed"] = None
    tps_p50: Annotated[Number | None, "median rate of the last 256 answers, tokens per second"] = None
    tokens_per_pass: Annotated[Number | None, "tokens of answers for each run of the graph, of the best model"] = None
    ttft_ms_p95: Annotated[Number | None, "95th percentile of their times to first token"] = None

    @classmethod
    def from_json(cls, payload: bytes) -> HealthReport:
        """Read a payload.

        Raises:
            MessageError: it is not a report of health.
        """
        health: HealthReport = read(cls, parse(payload), "a report of health", strict=False)
        return health


@dataclass(frozen=True)
class LinkAnswer:
    """`out/link/<name>`: the last answer of a link."""

    text: Annotated[str | None, "the answer, where the link asks for text"] = None
    answer: Annotated[Any, "the answer, where the link asks for data; null where it has none, see `reason`"] = None
    confidence: Annotated[Mapping[str, float] | None, "in each of its fields that the model chose, from 0 to 1"] = None
    unsure: Annotated[bool | None, "the link's `unsure` holds"] = None
    unfamiliar: Annotated[bool | None, "the reading is unlike those that the model was trained for"] = None
    reason: Annotated[str | None, "why it is unsure or unfamiliar, or has no answer"] = None
    route: Annotated[Route | None, "where it was answered and why: `where`, `model`, `why`, `failed`"] = None
    reading: Annotated[Any, "what woke the link"] = None
    window: Annotated[Any, "the earlier readings that it was asked with, where its question looks at them"] = None
    link: Annotated[str | None, "its name"] = None
    device: Annotated[str | None, "who answered"] = None
    topic: Annotated[str | None, "the reading's topic"] = None
    time: Annotated[str | None, "when it was given, in UTC: `2026-11-27T15:20:00Z`"] = None

    @classmethod
    def from_json(cls, payload: bytes) -> LinkAnswer:
        """Read a payload.

        Raises:
            MessageError: it is not the answer of a link.
        """
        answer: LinkAnswer = read(cls, parse(payload), "the answer of a link", strict=False)
        return answer
