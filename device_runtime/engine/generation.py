"""The decode loop: from the tokens of a prompt to pieces of text, and the figures of the finished answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from device_runtime.engine.backends import Logits
from device_runtime.engine.drafts import NO_DRAFT, Draft, EarlierAnswers, Repetition
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.sampler import Sampler
from device_runtime.engine.stop_strings import Finish, StopStrings
from device_runtime.engine.text_stream import TextStream
from device_runtime.errors import IncompleteError
from device_runtime.records.printable import counted

if TYPE_CHECKING:
    from device_runtime.engine.tokenizer import Tokenizer

__all__ = ["AnswerText", "Certainty", "Completion", "Generation", "Stopwatch"]


class Certainty(NamedTuple):
    """How sure a typed answer is: both by field; see `Completion`."""

    confidence: Mapping[str, float] | None = None
    probabilities: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Completion:
    """The figures of a finished generation."""

    text: str
    finish: Finish  # a stop token or string, the token limit or the end of the context, or a call of `cancel`
    prompt_tokens: int  # all of the prompt, the cached part included
    cached_tokens: int  # of these, how many were in the kv_cache already
    completion_tokens: int
    ttft_ms: float  # from the call of `generate` to the first token
    tokens_per_s: float  # decode rate after the first token; 0 when there was only one
    confidence: Mapping[str, float] | None = None  # of a typed answer, by field; texts have none
    unfamiliar: tuple[str, ...] = ()  # why the input is unlike those that the model was trained for
    embedding: tuple[float, ...] | None = None  # of a bundle of the task embed
    probabilities: Mapping[str, Mapping[str, float]] | None = None  # by field with labels, of each of them
    passes: int | None = None  # runs of the graph after the prompt's last one; None where they are not counted

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens of the answer for each run of the graph, the prompt's last one included."""
        return None if self.passes is None else round(self.completion_tokens / (self.passes + 1), 2)


class Stopwatch:
    """Times one answer."""

    def __init__(self) -> None:
        self._started_s = self._last_s = time.perf_counter()
        self._first_s: float | None = None

    def lap(self) -> None:
        """Call at each token, and at the end of the answer."""
        self._last_s = time.perf_counter()
        if self._first_s is None:
            self._first_s = self._last_s

    @property
    def ttft_ms(self) -> float:
        """From the start to the first token; 0 while there is none."""
        return 0.0 if self._first_s is None else (self._first_s - self._started_s) * 1e3

    def tokens_per_s(self, count: int) -> float:
        """The rate of `count` tokens, counted after the first; 0 when there are fewer than two."""
        if self._first_s is None or count < 2:
            return 0.0
        return (count - 1) / max(self._last_s - self._first_s, 1e-9)


class Answering(Protocol):
    """What holds an answer to a form: `structured.Constraint`, or an answer that is decided already."""

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""

    def choose(self, logits: Logits, left: int, choose: Callable[[Logits], int]) -> int:
        """The next token, of `left` that the answer may still have."""

    def forced(self) -> Sequence[int]:
        """Tokens that have to follow, or are likely to because only their text can."""

    def check(self, text: str) -> None:
        """Raise if the whole answer does not have the form after all."""


class AnswerText:
    """The text of one answer as it grows, up to its first stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._held = StopStrings([s for s in stop if s])
        self._shown: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._held.found

    @property
    def text(self) -> str:
        """What was returned so far."""
        return "".join(self._shown)

    def push(self, piece: str) -> str:
        """What can be shown once `piece` has come."""
        return self._show(self._held.push(piece))

    def finish(self, rest: str) -> str:
        """What is left to show at the end, of `rest` and of what was held back."""
        return "" if self.stopped else self._show(self._held.push(rest) + self._held.flush())

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text


class Generation(Iterator[str]):
    """An answer as it comes: iterate for its pieces, then read `result`.

    Leaving the iteration early is fine; the model is ready for the next call of `generate` at any time. An answer
    that another one of the same model has overtaken ends as cancelled. One that is held to a schema, and that its limit
    cuts in the middle of a value, raises an `IncompleteError` at its end.
    """

    result: Completion  # set when the iteration has ended, with an error or without

    def __init__(
        self,
        cache: KvCache,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_new: int,
        sampler: Sampler,
        eos_ids: Collection[int],
        stop: Sequence[str] = (),
        constraint: Answering | None = None,
        fixed: int | None = None,
        judge: Callable[[str], Certainty] = lambda text: Certainty(),
        unfamiliar: tuple[str, ...] = (),
        earlier: EarlierAnswers | None = None,
    ) -> None:
        """Prepare; the first step of the iteration computes the prompt.

        Args:
            prompt: token ids, those of the bundle's prefix included.
            eos_ids: tokens that end the answer; none lets it run to `max_new`.
            fixed: how many tokens of the prompt are likely to come again; None: all of them, and the answer.
            judge: says how sure the fields of a whole answer are.
            unfamiliar: why the input is unlike those that the model was trained for.
            earlier: answers in which to look for what comes next, as in the prompt; this one joins them. None: look
                nowhere.
        """
        self._earlier = earlier
        self._cache, self._tokenizer, self._eos_ids = cache, tokenizer, eos_ids
        self._judge, self._unfamiliar = judge, unfamiliar
        self._cancelled = threading.Event()
        self._watch = Stopwatch()
        self._pieces = self._run(prompt, max_new, sampler, stop, constraint, fixed)

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Stop after the token, or the part of the prompt, that is being computed. May be called from any thread."""
        self._cancelled.set()

    def _run(
        self,
        prompt: Sequence[int],
        max_new: int,
        sampler: Sampler,
        stop: Sequence[str],
        constraint: Answering | None,
        fixed: int | None,
    ) -> Iterator[str]:
        claim = self._cache.claim()
        cached = self._cache.rewind_to(prompt, fixed)
        logits = self._take_in(prompt[cached:])
        stream, answer = TextStream(self._tokenizer), AnswerText(stop)
        finish: Finish = "length"
        count, runs, answered = 0, self._cache.runs, list[int]()
        seen = None if self._earlier is None else Repetition(prompt, self._earlier)

        def guess(free: int, most: int) -> Draft:
            expected = [] if constraint is None else list(constraint.forced())[:free]
            if seen is not None and len(expected) < free:
                expected += seen.after(expected, free - len(expected))
            return Draft(expected, range(1, len(expected) + 1)) if expected else NO_DRAFT

        while count < max_new:
            if logits is None or self._cancelled.is_set() or self._cache.is_overtaken(claim):
                finish = "cancelled"
                break
            if constraint is None:
                token = sampler.choose(logits)
            else:
                token = constraint.choose(logits, max_new - count, sampler.choose)
            count += 1
            self._watch.lap()
            if token in self._eos_ids:
                finish = "stop"
                break
            if piece := answer.push(stream.push(token)):
                yield piece
            if answer.stopped or (constraint is not None and constraint.complete):
                finish = "stop"
                break
            if count == max_new or not self._cache.room:
                break
            answered.append(token)
            if seen is not None:
                seen.add(token)
            logits = self._cache.decode(token, guess)
        if self._earlier is not None:
            self._earlier.add(prompt, answered)
        if finish != "cancelled" and count:
            self._watch.lap()
        if rest := answer.finish(stream.flush()):
            yield rest
        passes = self._cache.runs - runs
        self._cache.count_answer(count, passes)
        certainty = self._judge(answer.text) if finish == "stop" and not answer.stopped else Certainty()
        self.result = Completion(
            text=answer.text,
            finish="stop" if answer.stopped else finish,
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            completion_tokens=count,
            ttft_ms=self._watch.ttft_ms,
            tokens_per_s=self._watch.tokens_per_s(count),
            confidence=certainty.confidence,
            unfamiliar=self._unfamiliar,
            probabilities=certainty.probabilities,
            passes=passes,
        )
        if constraint is not None and not answer.stopped:
            if finish == "length":
                raise IncompleteError(
                    f"The answer reached its limit of {counted(count, 'token')} before it fitted its schema; "
                    "give it more (max_new), or ask for less."
                )
            if finish == "stop":
                constraint.check(answer.text)

    def _take_in(self, tokens: Sequence[int]) -> Logits | None:
        """Compute the prompt. A long one takes a small board half a minute: between two runs of the graph it looks
        whether the answer was cancelled, and then there are no logits."""
        runs = self._cache.prefill(tokens)
        logits: Logits | None = None
        while not self._cancelled.is_set():
            following = next(runs, None)
            if following is None:
                return logits
            logits = following
        return None
