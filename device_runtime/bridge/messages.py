"""What is said in frames: docs/reference/serial-protocol.md, section 4.

Each message is described once, by its annotations: how it is packed (codec.py), its table in the specification
(`scripts/message_tables.py`) and its C struct for a firmware (`scripts/wire_header.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated

from device_runtime.bridge.codec import (
    F32,
    I16,
    U8,
    U16,
    U32,
    U64,
    Counted,
    Fixed,
    Message,
    MessageError,
    Repeated,
    Rest,
    Since,
)

__all__ = [
    "CERTAIN",
    "KINDS",
    "LEAST_BODY",
    "LEAST_BODY_2",
    "LEAST_BODY_3",
    "TOKEN_BYTES",
    "UNKNOWN_TEMPERATURE",
    "VERSION",
    "Cancel",
    "Capability",
    "Done",
    "Fault",
    "FaultCode",
    "Finish",
    "Form",
    "Greet",
    "Hello",
    "Message",
    "MessageError",
    "Piece",
    "Ping",
    "Prompt",
    "ResetCause",
    "Resume",
    "Start",
    "Status",
    "Taken",
    "Work",
    "parse",
]

VERSION = 3
MAX_STOPS = 8  # tokens that end an answer
MAX_SCHEMAS = 8  # in `Hello`
MAX_FIELDS = 16  # of an answer, whose confidence a board says
MAX_NAME = 32  # bytes of a name in `Hello`
MAX_REASON = 100  # bytes of the text in `Fault`
UNKNOWN_TEMPERATURE = -32768
TOKEN_BYTES = 4  # of a token id in a prompt or an answer
CERTAIN = 65535  # a confidence of 1


class Capability(IntFlag):
    """What a board can do. Bits that are not named here are ignored."""

    TOKENS = 1  # takes and gives token ids; every board does, unless it has TEXT
    TEXT = 2  # takes messages and gives UTF-8: it has a tokenizer and a chat template of its own
    SAMPLING = 4  # temperature, top_k, top_p, seed; without it answers are greedy
    SCHEMAS = 8  # version 2: answers are held to the JSON schemas that `Hello` names


class Form(IntEnum):
    """What a prompt and its answer are made of."""

    TOKENS = 0
    TEXT = 1  # messages in, UTF-8 out


class ResetCause(IntEnum):
    """Why a board started last."""

    UNKNOWN = 0  # power, a button, or nobody kept it
    COMMAND = 1
    WATCHDOG = 2


class Finish(IntEnum):
    """Why an answer ended."""

    STOP = 0  # one of the stop tokens
    LENGTH = 1  # max_new, or the end of the context
    CANCELLED = 2


class Work(IntEnum):
    """What a board is doing."""

    IDLE = 0  # it knows of no request
    PROMPT = 1  # waiting for the rest of a prompt
    PREFILL = 2  # taking the prompt in
    ANSWER = 3
    DONE = 4  # its last answer has ended, and can still be sent again


class FaultCode(IntEnum):
    """Why a board cannot do what it was asked."""

    UNKNOWN_REQUEST = 1  # it was reset, or has had another request since
    TOO_LONG = 2  # prompt and context, or a frame
    UNSUPPORTED = 3  # a message or a field that needs a capability it lacks
    MALFORMED = 4  # a message that cannot be read
    FAILED = 5  # the model failed


# from the bridge

Request = Annotated[int, U32, "the request's number"]


@dataclass(frozen=True)
class Greet(Message):
    """Who are you? The board answers with `Hello`."""

    TYPE = 0x01
    version: Annotated[int, U8, "the newest that the bridge speaks"] = VERSION


@dataclass(frozen=True)
class Start(Message):
    """A request begins: its prompt follows. The board answers with `Taken`."""

    TYPE = 0x02
    request: Annotated[int, U32, "any number but 0, a new one for each request"]
    prompt_bytes: Annotated[
        int, U32, "of the whole prompt; 0, or one that leaves no position free, is answered with `Fault`, `TOO_LONG`"
    ]
    max_new: Annotated[
        int, U32, "tokens that the answer may have, the stop token included; 0: until it stops or the context is full"
    ]
    drawn: Annotated[int, U32, "random numbers that this answer has used before: skip so many"]
    top_k: Annotated[int, U16, "draw from the k likeliest; 0: from all"]
    temperature: Annotated[float, F32, "0: the likeliest token, always"]
    top_p: Annotated[float, F32, "draw from the fewest tokens whose probabilities reach this sum"]
    seed: Annotated[int, U64, "the same seed draws the same answer"]
    stop_count: Annotated[int, U8, f"at most {MAX_STOPS}"]
    stop_tokens: Annotated[
        tuple[int, ...], Repeated(U32, "stop_count", MAX_STOPS), "each ends the answer; it is counted and not sent"
    ] = ()
    form: Annotated[Form, U8, "what prompt and answer are made of", Since(2)] = Form.TOKENS
    schema: Annotated[int, U64, "the schema of the image that holds the answer, by its identity; 0: none", Since(2)] = 0
    softness_count: Annotated[int, U8, f"at most {MAX_FIELDS}; 0: those of the image, or 1", Since(3)] = 0
    softness: Annotated[
        tuple[float, ...],
        Repeated(F32, "softness_count", MAX_FIELDS),
        "the temperature at which the confidence of each of the answer's fields is taken",
        Since(3),
    ] = ()


@dataclass(frozen=True)
class Prompt(Message):
    """A part of the prompt. The board answers with `Taken`."""

    TYPE = 0x03
    request: Request
    offset: Annotated[int, U32, "bytes of the prompt before this part"]
    data: Annotated[bytes, Rest(), "the prompt from there on, up to the end of the frame"] = b""


@dataclass(frozen=True)
class Resume(Message):
    """Send the answer from here on (again). The board answers with `Piece`, `Done` or `Status`."""

    TYPE = 0x04
    request: Request
    offset: Annotated[int, U32, "bytes of the answer that have arrived"]


@dataclass(frozen=True)
class Cancel(Message):
    """Stop after the token that is being computed. The board answers with `Done`."""

    TYPE = 0x05
    request: Request


@dataclass(frozen=True)
class Ping(Message):
    """How are you? The board answers with `Status`."""

    TYPE = 0x06


# from the board


@dataclass(frozen=True)
class Hello(Message):
    """What the board is. Sent when it starts, and as the answer to `Greet`."""

    TYPE = 0x81
    version: Annotated[
        int, U8, "that the board will speak: the older of the two sides'; 1 in a Hello that nobody asked for"
    ]
    capabilities: Annotated[Capability, U16, "bits that may be set together"]
    largest_body: Annotated[
        int,
        U16,
        "bytes of the largest body that the board takes; 128 or more serve well, 68 (a full `Start`; 77 in version 2) "
        "are the least",
    ]
    window: Annotated[int, U32, "bytes of its receive buffer: the largest frame + 64, or more"]
    context: Annotated[int, U32, "positions"]
    vocabulary: Annotated[int, U32, "token ids are below it"]
    prefix: Annotated[int, U16, "tokens at the start of every prompt, whose keys and values the board has already"]
    deaf_ms: Annotated[int, U16, "the longest time in which it does not read its port: one step of the model"]
    arena_bytes: Annotated[int, U32, "memory that the model works in; 0: unknown"]
    model: Annotated[
        bytes, Fixed(8), "the first of the sha256 of `model.tflite`, as the bundle's manifest has it; zeros: unknown"
    ] = bytes(8)
    board: Annotated[str, Counted(MAX_NAME), f"what it calls itself, at most {MAX_NAME} bytes"] = ""
    firmware: Annotated[str, Counted(MAX_NAME), f"its version, at most {MAX_NAME} bytes"] = ""
    name: Annotated[str, Counted(MAX_NAME), f"of its model, at most {MAX_NAME} bytes"] = ""
    newest: Annotated[int, U8, "version that the board speaks to a bridge that speaks it too", Since(2)] = 1
    boots: Annotated[int, U32, "starts since it was given power, this one among them; 0: unknown", Since(2)] = 0
    reset_cause: Annotated[ResetCause, U8, "why it started", Since(2)] = ResetCause.UNKNOWN
    schema_count: Annotated[int, U8, f"at most {MAX_SCHEMAS}", Since(2)] = 0
    schemas: Annotated[
        tuple[int, ...],
        Repeated(U64, "schema_count", MAX_SCHEMAS),
        "the identities of the image's schemas: the first 8 bytes, little-endian, of the sha256 of a schema",
        Since(2),
    ] = ()


@dataclass(frozen=True)
class Taken(Message):
    """How much of a prompt the board has."""

    TYPE = 0x82
    request: Request
    offset: Annotated[int, U32, "bytes of the prompt that it has, without a gap"]


@dataclass(frozen=True)
class Piece(Message):
    """A part of the answer: tokens of four bytes each, or UTF-8."""

    TYPE = 0x83
    request: Request
    offset: Annotated[int, U32, "bytes of the answer before this part"]
    data: Annotated[bytes, Rest(), "the answer from there on: whole token ids of 4 bytes each, up to the end"] = b""


@dataclass(frozen=True)
class Done(Message):
    """The end of an answer, after its last piece."""

    TYPE = 0x84
    request: Request
    length: Annotated[int, U32, "bytes of the whole answer"]
    finish: Annotated[Finish, U8, "why it ended: a stop token; `max_new` or the end of the context; a `Cancel`"]
    prompt_tokens: Annotated[int, U32, "the prefix included"]
    cached_tokens: Annotated[int, U32, "of these, how many were in the kv_cache already"]
    completion_tokens: Annotated[int, U32, "the stop token included"]
    first_ms: Annotated[int, U32, "from the whole prompt to the first token"]
    decode_ms: Annotated[int, U32, "from the first token to the last"]
    confidence: Annotated[
        int, U16, f"of an answer with a schema: {CERTAIN} is certain; 0: unknown, or no schema", Since(2)
    ] = 0
    share_count: Annotated[int, U8, f"of the answer's fields, at most {MAX_FIELDS}; 0: unknown", Since(3)] = 0
    shares: Annotated[
        tuple[float, ...],
        Repeated(F32, "share_count", MAX_FIELDS),
        "the confidence of each, in the answer's order; -1 for a text of the model's own",
        Since(3),
    ] = ()


@dataclass(frozen=True)
class Fault(Message):
    """Why there is no answer. The request is over."""

    TYPE = 0x85
    request: Annotated[int, U32, "the request's number; 0: of none"]
    code: Annotated[
        FaultCode,
        U8,
        "another number than the board's; prompt or frame too long; needs what the board lacks; cannot be read; the "
        "model failed",
    ]
    reason: Annotated[str, Rest(MAX_REASON), f"for people, at most {MAX_REASON} bytes"] = ""


@dataclass(frozen=True)
class Status(Message):
    """How the board is, and how far with its request."""

    TYPE = 0x86
    request: Annotated[int, U32, "the request's number; 0: none"]
    work: Annotated[
        Work, U8, "no request known; waiting for the rest of a prompt; taking it in; answering; the answer has ended"
    ]
    length: Annotated[int, U32, "bytes of the answer so far"]
    uptime_ms: Annotated[int, U32, "since its start; wraps"]
    temperature: Annotated[int, I16, f"tenths of a degree Celsius; {UNKNOWN_TEMPERATURE}: unknown"] = (
        UNKNOWN_TEMPERATURE
    )
    steps: Annotated[int, U32, "that the model has taken since the board's start, those of prompts too; wraps"] = 0
    overruns: Annotated[int, U32, "bytes that found its receive buffer full; wraps", Since(2)] = 0


KINDS: dict[int, type[Message]] = {
    kind.TYPE: kind
    for kind in (Greet, Start, Prompt, Resume, Cancel, Ping, Hello, Taken, Piece, Done, Fault, Status)
}  # fmt: skip

LEAST_BODY_2 = len(Start(1, 0, 0, 0, 0, 0.0, 0.0, 0, MAX_STOPS, (0,) * MAX_STOPS).pack(2))  # the same, of version 2
LEAST_BODY_3 = LEAST_BODY_2 + 1 + 4 * MAX_FIELDS  # of version 3, whose fields are left out where a board takes less
LEAST_BODY = len(Start(1, 0, 0, 0, 0, 0.0, 0.0, 0, MAX_STOPS, (0,) * MAX_STOPS).pack(1))  # bytes: the largest `Start`


def parse(body: bytes) -> Message:
    """Read the body of a frame.

    Raises:
        MessageError: it is no message of this protocol.
    """
    kind = KINDS.get(body[0]) if body else None
    if kind is None:
        raise MessageError(f"no message has the type {body[:1].hex() or 'of nothing'}")
    return kind.unpack(body[1:])
