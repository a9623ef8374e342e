"""What is said in frames: docs/reference/serial-protocol.md, section 4.

How they are packed is in codec.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from device_runtime.bridge.codec import Message, MessageError, WithData

__all__ = [
    "LEAST_BODY",
    "TOKEN_BYTES",
    "UNKNOWN_TEMPERATURE",
    "VERSION",
    "Cancel",
    "Capability",
    "Done",
    "Fault",
    "FaultCode",
    "Finish",
    "Greet",
    "Hello",
    "Message",
    "MessageError",
    "Piece",
    "Ping",
    "Prompt",
    "Resume",
    "Start",
    "Status",
    "Taken",
    "Work",
    "parse",
]

VERSION = 1
MAX_STOPS = 8  # tokens that end an answer
MAX_NAME = 32  # bytes of a name in `Hello`
MAX_REASON = 100  # bytes of the text in `Fault`
UNKNOWN_TEMPERATURE = -32768
TOKEN_BYTES = 4  # of a token id in a prompt or an answer


class Capability(IntFlag):
    """What a board can do. Bits that are not named here are ignored."""

    TOKENS = 1  # takes and gives token ids; every board does, unless it has TEXT
    TEXT = 2  # takes messages and gives UTF-8: it has a tokenizer and a chat template of its own
    SAMPLING = 4  # temperature, top_k, top_p, seed; without it answers are greedy


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


@dataclass(frozen=True)
class Greet(Message):
    """Who are you? The board answers with `Hello`."""

    TYPE, LAYOUT = 0x01, "B"
    version: int = VERSION  # the newest that the bridge speaks


@dataclass(frozen=True)
class Start(Message):
    """A request begins: its prompt follows. The board answers with `Taken`."""

    TYPE, LAYOUT = 0x02, "IIIIHffQB"
    request: int  # any number but 0, a new one for each request
    prompt_bytes: int  # of the whole prompt
    max_new: int  # tokens; 0: until it stops or the context is full
    drawn: int  # random numbers that this answer has used before: it goes on where a reset cut it
    top_k: int
    temperature: float  # 0 is greedy
    top_p: float
    seed: int
    stop_count: int
    stop_tokens: tuple[int, ...] = ()  # stop_count times u32

    def pack(self) -> bytes:
        """The body of a frame."""
        return super().pack() + struct.pack(f"<{self.stop_count}I", *self.stop_tokens)

    @classmethod
    def unpack(cls, data: bytes) -> Start:
        """From the bytes after the type."""
        values, rest = cls._head(data)
        count = values["stop_count"]
        if count > MAX_STOPS or len(rest) < 4 * count:
            raise MessageError(f"Start has {count} stop tokens and {len(rest)} bytes of them; at most {MAX_STOPS}")
        return cls(**values, stop_tokens=struct.unpack_from(f"<{count}I", rest))


LEAST_BODY = 1 + struct.calcsize("<" + Start.LAYOUT) + 4 * MAX_STOPS  # bytes: the largest `Start`


@dataclass(frozen=True)
class Prompt(WithData):
    """A part of the prompt. The board answers with `Taken`."""

    TYPE, LAYOUT = 0x03, "II"
    request: int
    offset: int  # bytes of the prompt before this part
    data: bytes = b""


@dataclass(frozen=True)
class Resume(Message):
    """Send the answer from here on (again). The board answers with `Piece`, `Done` or `Status`."""

    TYPE, LAYOUT = 0x04, "II"
    request: int
    offset: int  # bytes of the answer that have arrived


@dataclass(frozen=True)
class Cancel(Message):
    """Stop after the token that is being computed. The board answers with `Done`."""

    TYPE, LAYOUT = 0x05, "I"
    request: int


@dataclass(frozen=True)
class Ping(Message):
    """How are you? The board answers with `Status`."""

    TYPE, LAYOUT = 0x06, ""


# from the board


@dataclass(frozen=True)
class Hello(Message):
    """What the board is. Sent when it starts, and as the answer to `Greet`."""

    TYPE, LAYOUT = 0x81, "BHHIIIHHI8s"
    version: int  # the one that the board will speak
    capabilities: Capability
    largest_body: int  # bytes of the largest body that the board takes
    window: int  # bytes that may be on their way to it unanswered: the size of its receive buffer
    context: int  # positions
    vocabulary: int
    prefix: int  # tokens at the start of every prompt that its kv_cache holds from the beginning
    deaf_ms: int  # the longest time in which it does not read its port: one step of the model
    arena_bytes: int  # memory that the model works in; 0: not told
    model: bytes = bytes(8)  # the first 8 bytes of the graph's sha256; zeros: not told
    board: str = ""
    firmware: str = ""  # its version
    name: str = ""  # of the model

    def pack(self) -> bytes:
        """The body of a frame."""
        names = (text.encode()[:MAX_NAME] for text in (self.board, self.firmware, self.name))
        return super().pack() + b"".join(bytes([len(name)]) + name for name in names)

    @classmethod
    def unpack(cls, data: bytes) -> Hello:
        """From the bytes after the type."""
        values, rest = cls._head(data)
        for name in ("board", "firmware", "name"):
            length = rest[0] if rest else 0
            if length > MAX_NAME or len(rest) < 1 + length:
                raise MessageError(f"Hello.{name} is cut, or longer than {MAX_NAME} bytes")
            text = rest[1 : 1 + length].decode(errors="replace")
            values[name], rest = "".join(c for c in text if c.isprintable()), rest[1 + length :]
        return cls(**values)


@dataclass(frozen=True)
class Taken(Message):
    """How much of a prompt the board has."""

    TYPE, LAYOUT = 0x82, "II"
    request: int
    offset: int  # bytes, without a gap


@dataclass(frozen=True)
class Piece(WithData):
    """A part of the answer: tokens of four bytes each, or UTF-8."""

    TYPE, LAYOUT = 0x83, "II"
    request: int
    offset: int  # bytes of the answer before this part
    data: bytes = b""


@dataclass(frozen=True)
class Done(Message):
    """The end of an answer, after its last piece."""

    TYPE, LAYOUT = 0x84, "IIBIIIII"
    request: int
    length: int  # bytes of the whole answer
    finish: Finish
    prompt_tokens: int
    cached_tokens: int  # of these, how many were in the kv_cache already
    completion_tokens: int  # the stop token included
    first_ms: int  # from the whole prompt to the first token
    decode_ms: int  # from the first token to the last


@dataclass(frozen=True)
class Fault(Message):
    """Why there is no answer."""

    TYPE, LAYOUT = 0x85, "IB"
    request: int  # 0: of no request
    code: FaultCode
    reason: str = ""  # for people

    def pack(self) -> bytes:
        """The body of a frame."""
        return super().pack() + self.reason.encode()[:MAX_REASON]

    @classmethod
    def unpack(cls, data: bytes) -> Fault:
        """From the bytes after the type."""
        values, rest = cls._head(data)
        text = rest[:MAX_REASON].decode(errors="replace")
        return cls(**values, reason="".join(c for c in text if c.isprintable()))


@dataclass(frozen=True)
class Status(Message):
    """How the board is, and how far with its request."""

    TYPE, LAYOUT = 0x86, "IBIIhI"
    request: int  # 0: none
    work: Work
    length: int  # bytes of the answer so far
    uptime_ms: int  # since its start; wraps
    temperature: int = UNKNOWN_TEMPERATURE  # tenths of a degree Celsius
    steps: int = 0  # that the model has taken since the board's start, those of prompts too; wraps


_KINDS: dict[int, type[Message]] = {
    kind.TYPE: kind
    for kind in (Greet, Start, Prompt, Resume, Cancel, Ping, Hello, Taken, Piece, Done, Fault, Status)
}  # fmt: skip


def parse(body: bytes) -> Message:
    """Read the body of a frame.

    Raises:
        MessageError: it is no message of this protocol.
    """
    kind = _KINDS.get(body[0]) if body else None
    if kind is None:
        raise MessageError(f"no message has the type {body[:1].hex() or 'of nothing'}")
    return kind.unpack(body[1:])
