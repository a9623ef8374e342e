"""One generation under a deadline, that another thread may cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from device_runtime.mqtt.messages import Final, Finish, Usage

if TYPE_CHECKING:
    from device_runtime.engine.language_model import Completion
    from device_runtime.engine.sampler import Sampling

__all__ = ["Answer", "Model", "Run", "incomplete"]


def incomplete(final: Final) -> str:
    """What to say of an answer that was held to a schema and cut before it fitted it."""
    limit = "the deadline" if final.finish == "deadline" else "the limit of tokens"
    return (
        f"the answer met {limit} after {final.usage.completion_tokens} tokens, before it was complete; "
        "give it more, or ask for less."
    )


class Answer(Protocol):
    """What `Model.generate` returns: `device_runtime.engine.language_model.Generation`, or a script in tests."""

    result: Completion  # set when the iteration has ended

    def __iter__(self) -> Iterator[str]: ...

    def __next__(self) -> str: ...

    def cancel(self) -> None: ...


class Model(Protocol):
    """The seam between MQTT and the engine: `device_runtime.engine.language_model.LanguageModel` fits it."""

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        max_new: int | None = None,
        sampling: Sampling = ...,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> Answer: ...

    def close(self) -> None: ...


class Run:
    """Runs one generation to its end, its deadline or its cancellation, whichever comes first."""

    def __init__(self, deadline_s: float | None = None) -> None:
        """`deadline_s` is on the monotonic clock."""
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._reason: Literal["cancelled", "deadline"] | None = None

    def end(self, reason: Literal["cancelled", "deadline"]) -> None:
        """Stop after the token that is being computed; before the start, stop as soon as it starts. From any thread."""
        with self._lock:
            self._reason = self._reason or reason
            if self._answer is not None:
                self._answer.cancel()

    def to_end(self, answer: Answer, on_piece: Callable[[str], None] = lambda text: None) -> Final:
        """Drain `answer`; `on_piece` gets each piece. The `seq` of what is returned is 0."""
        with self._lock:
            self._answer = answer
            if self._reason is not None:
                answer.cancel()
        timer = None
        if self._deadline_s is not None:
            timer = threading.Timer(max(0.0, self._deadline_s - time.monotonic()), self.end, ["deadline"])
            timer.daemon = True
            timer.start()
        try:
            for text in answer:
                if text:
                    on_piece(text)
        finally:
            if timer:
                timer.cancel()
            with self._lock:
                self._answer = None
        r = answer.result
        finish: Finish = r.finish
        if finish == "cancelled" and self._reason is not None:
            finish = self._reason
        usage = Usage(r.prompt_tokens, r.cached_tokens, r.completion_tokens)
        return Final(0, r.text, finish, usage, r.ttft_ms, r.tokens_per_s)
