"""One engine for every backend: a bundle in, pieces of text out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Manifest
from device_runtime.bundle.trust import TrustStore
from device_runtime.engine.backends import Backend, Logits, open_backend
from device_runtime.engine.chat import Message
from device_runtime.engine.prompts import PromptEncoder
from device_runtime.engine.sampler import Sampler, Sampling
from device_runtime.engine.stop_strings import StopStrings
from device_runtime.engine.structured import Constraint, SchemaCompiler
from device_runtime.engine.tokenizer import TextStream, Tokenizer, read_tokenizer
from device_runtime.update.slots import open_bundle

__all__ = ["Completion", "Generation", "LanguageModel", "Message"]

Finish = Literal["stop", "length", "cancelled"]
_GREEDY = Sampling()


@dataclass(frozen=True)
class Completion:
    """What a finished generation says of itself."""

    text: str
    finish: Finish  # a stop token or string, the token limit or the end of the context, or a call of `cancel`
    prompt_tokens: int  # all of the prompt, the cached part included
    cached_tokens: int  # of these, how many were in the kv_cache already
    completion_tokens: int
    ttft_ms: float  # from the call of `generate` to the first token
    tokens_per_s: float  # decode rate after the first token; 0 when there was only one


class Generation(Iterator[str]):
    """An answer as it comes: iterate for its pieces, then read `result`.

    Leaving the iteration early is fine; the model is ready for the next call of `generate` at any time. An answer
    that another one of the same model has overtaken ends as cancelled.
    """

    result: Completion  # set when the iteration has ended

    def __init__(
        self,
        model: LanguageModel,
        prompt: list[int],
        max_new: int,
        sampling: Sampling,
        stop: Sequence[str],
        constraint: Constraint | None = None,
    ) -> None:
        self._cancelled = threading.Event()
        self._started_s = time.perf_counter()
        self._pieces = self._run(model, prompt, max_new, Sampler(sampling), [s for s in stop if s], constraint)

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Stop after the token, or the part of the prompt, that is being computed. May be called from any thread."""
        self._cancelled.set()

    def _run(
        self,
        model: LanguageModel,
        prompt: list[int],
        max_new: int,
        sampler: Sampler,
        stop: list[str],
        constraint: Constraint | None,
    ) -> Iterator[str]:
        model._answering = self
        logits, cached = model._take_in(prompt, self._cancelled.is_set)
        stream, held = TextStream(model._tokenizer), StopStrings(stop)
        finish: Finish = "length"
        count, first_s = 0, 0.0
        text: list[str] = []
        while count < max_new:
            if logits is None or self._cancelled.is_set() or model._answering is not self:
                finish = "cancelled"
                break
            if constraint is None:
                token = sampler.choose(logits)
            else:
                token = constraint.choose(logits, max_new - count, sampler.choose)
            count += 1
            if count == 1:
                first_s = time.perf_counter()
            if token in model.manifest.tokenizer.eos_ids:
                finish = "stop"
                break
            piece = held.push(stream.push(token))
            if piece:
                text.append(piece)
                yield piece
            if held.found or (constraint is not None and constraint.complete):
                finish = "stop"
                break
            if count == max_new or not model._has_room():
                break
            logits = model._step(token)
        end_s = time.perf_counter()
        if finish == "length" and constraint is not None and constraint.satisfied:
            finish = "stop"
        if not held.found:
            rest = held.push(stream.flush()) + held.flush()
            if rest:
                text.append(rest)
                yield rest
            if held.found:
                finish = "stop"
        self.result = Completion(
            text="".join(text),
            finish=finish,
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            completion_tokens=count,
            ttft_ms=(first_s - self._started_s) * 1e3 if count else 0.0,
            tokens_per_s=(count - 1) / (end_s - first_s) if count > 1 else 0.0,
        )


class LanguageModel:
    """A bundle, opened. Not thread-safe: one generation at a time.

    The kv_cache outlives a call: when a prompt begins with the tokens of the last one (a conversation that goes
    on), only the rest is computed.
    """

    _answering: Generation | None = None  # the one that the kv_cache follows

    def __init__(self, bundle: Bundle, backend: Backend, tokenizer: Tokenizer) -> None:
        self.backend, self._tokenizer = backend, tokenizer
        self.manifest: Manifest = bundle.manifest
        self._prompts = PromptEncoder(bundle.manifest, tokenizer)
        self._schemas = SchemaCompiler(bundle)
        self._cached = list(bundle.manifest.prefix_tokens)  # the tokens behind the positions of the kv_cache

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        backend: str | None = None,
        threads: int | None = None,
        verify: bool = False,
        trust: TrustStore | None = None,
    ) -> LanguageModel:
        """Open a bundle folder, or the active bundle of a slot folder.

        Args:
            backend: a name in `device_runtime.engine.backends.BACKENDS`; None takes the best one that is installed.
            threads: CPU threads; None takes one per core, at most 4.
            verify: check every file's hash even if it has not changed since the last check.
            trust: whose signature the bundle must have; None asks for none.

        Raises:
            ConfigurationError: there is no bundle at `path`, or no such backend.
            SignatureError: nobody who is trusted has signed it.
            BundleError: the bundle is damaged.
            BackendError: no installed runtime can run it.
        """
        bundle = open_bundle(path, verify=verify, trust=trust)
        # The tokenizer first: reading it takes and frees memory that the graph can then have.
        tokenizer = read_tokenizer(bundle.path / bundle.manifest.tokenizer.file)
        graph = open_backend(bundle, backend, threads)
        return cls(bundle, graph, tokenizer)

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """The tokens of a prompt as `generate` takes them in, the prefix included.

        Where the bundle has an instruction, messages get it as their system message, and plain text continues it.

        Raises:
            ConfigurationError: the prompt is not text, or has another system message than the bundle's instruction.
        """
        return self._prompts.encode(prompt)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new: int | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> Generation:
        """Start an answer.

        Args:
            prompt: a plain text, taken as it is, or chat messages, which go through the bundle's template.
            max_new: at most so many tokens; None means until the model stops or the context is full.
            stop: the answer ends before the first of these strings.
            schema: a JSON schema that the answer fits if its result's `finish` is "stop"; only a stop string or
                `cancel` can cut it short.

        Raises:
            ConfigurationError: the prompt is empty or no text.
            SchemaError: no answer can be held to the schema, or none that is short enough.
            ContextOverflowError: the prompt leaves no room for even one token.
        """
        tokens, limit = self._prompts.plan(prompt, max_new)
        constraint = None if schema is None else self._schemas.constraint(schema, limit)
        return Generation(self, tokens, limit, sampling, stop, constraint)

    def check_schema(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        """Raise a `SchemaError` if no answer of at most `max_new` tokens can be held to this JSON schema."""
        self._schemas.check(schema, max_new)

    @property
    def position(self) -> int:
        """How far the kv_cache is filled: it moves while the model works. May be read from any thread."""
        return self.backend.position

    def close(self) -> None:
        """Give back memory."""
        self.backend.close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_in(self, tokens: list[int], cancelled: Callable[[], bool]) -> tuple[Logits | None, int]:
        """Bring the kv_cache to `tokens`; returns the logits after the last and how many were there already.

        A long prompt takes a small board half a minute: between two runs of the graph it looks whether it was
        `cancelled`, and then there are no logits.
        """
        common = 0
        limit = min(len(self._cached), len(tokens) - 1)  # the last token is computed again for its logits
        while common < limit and self._cached[common] == tokens[common]:
            common += 1
        self.backend.rewind(common)
        self._cached = tokens[:common]
        logits: Logits | None = None
        for start in range(common, len(tokens), self.backend.chunk):
            if cancelled():
                return None, common
            part = tokens[start : start + self.backend.chunk]
            logits = self.backend.prefill(part)
            self._cached += part
        return logits, common

    def _step(self, token: int) -> Logits:
        logits = self.backend.decode(token)
        self._cached.append(token)
        return logits

    def _has_room(self) -> bool:
        return self.backend.position < self.backend.context
