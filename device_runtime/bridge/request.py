"""A request to a board: what is asked, how far it is, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from device_runtime.bridge.messages import Finish
from device_runtime.errors import StonechatError

__all__ = ["Ask", "Chunk", "Ended", "Event", "Failed", "Request", "Stage"]


@dataclass(frozen=True)
class Ask:
    """A request, as the board will get it."""

    prompt: bytes  # token ids of four bytes each, or messages (section 5)
    max_new: int = 0  # tokens; 0 leaves it to the board
    stop_tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    text: bool = False  # messages in, UTF-8 out, instead of tokens
    schema: int = 0  # that holds the answer, by its identity; 0: none
    softness: tuple[float, ...] = ()  # temperatures of the confidence of its fields; of those that are missing 1


@dataclass(frozen=True)
class Chunk:
    """The next bytes of the answer."""

    data: bytes


@dataclass(frozen=True)
class Ended:
    """The answer is whole, or was cancelled."""

    finish: Finish
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    tokens_per_s: float = 0.0  # by the board's clock
    confidence: float | None = None  # of an answer that a schema held; None: unknown
    shares: tuple[float, ...] = ()  # of its fields in order, where the board says them; -1 for a text


@dataclass(frozen=True)
class Failed:
    """There will be no more of the answer."""

    error: StonechatError


Event = Chunk | Ended | Failed


class Stage(Enum):
    """How far a request is."""

    START = "start"  # the board has not confirmed the request
    PROMPT = "prompt"  # it takes in the prompt
    ANSWER = "answer"


@dataclass
class Request:
    """A request that is under way."""

    ask: Ask
    number: int
    stage: Stage = Stage.START
    taken: int = 0  # bytes of the prompt that the board has confirmed
    prompt: bytes = b""  # of this part: after a reset, what was answered before belongs to it
    before: int = 0  # bytes of the answer that came before a reset of the board
    answer: bytearray = field(default_factory=bytearray)
    # of the answer, before a reset after which all of it is asked for: it comes again, and is no news
    told: bytes = b""
    due_s: float = 0.0  # when to send again
    tries: int = 0
    cancelled_s: float | None = None  # when
    rewind_s: float = float("-inf")  # when a gap was last asked for …
    rewind_at: int = -1  # … and from where
    resets: int = 0

    @property
    def offset(self) -> int:
        """Bytes of this part's answer that have arrived."""
        return len(self.answer) - self.before
