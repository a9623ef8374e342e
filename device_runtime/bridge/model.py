"""A microcontroller's model, at the seam where `device_runtime.mqtt` expects an engine."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device_runtime.bridge.link import Link
from device_runtime.bridge.messages import (
    MAX_FIELDS,
    MAX_STOPS,
    TOKEN_BYTES,
    UNKNOWN_TEMPERATURE,
    Capability,
    Finish,
    Hello,
)
from device_runtime.bridge.prompt_codec import Decoder, Text, Tokens
from device_runtime.bridge.request import Ask, Chunk, Ended, Failed
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MODEL, Manifest
from device_runtime.engine.chat import Message
from device_runtime.engine.generation import AnswerText, Completion, Stopwatch
from device_runtime.engine.prompts import tokenizer_of
from device_runtime.engine.sampler import Sampling
from device_runtime.engine.schema.identity import schema_identity
from device_runtime.engine.typed.abstention import Abstention
from device_runtime.engine.typed.form import free_texts
from device_runtime.errors import ConfigurationError, SchemaError, UnavailableError

if TYPE_CHECKING:
    from device_runtime.tasks.opened import OpenedTask, OpenedTasks

__all__ = ["SerialAnswer", "SerialModel"]

_FINISHES: dict[Finish, Any] = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.CANCELLED: "cancelled"}
_GREEDY = Sampling()


class SerialAnswer(Iterator[str]):
    """An answer as it comes: iterate for its pieces, then read `result`."""

    result: Completion  # set when the iteration has ended
    confidence: float | None = None  # then, of an answer that a schema held: the board's own, of all of it

    def __init__(
        self,
        link: Link,
        ask: Ask,
        decoder: Decoder,
        stop: Sequence[str],
        schema: Mapping[str, Any] | None = None,
        unfamiliar: tuple[str, ...] = (),
    ) -> None:
        self._link, self._ask, self._schema, self._unfamiliar = link, ask, schema, unfamiliar
        self._watch = Stopwatch()
        self._pieces = self._run(decoder, AnswerText(stop))
        self._cancelled = False

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Stop after the token that is being computed. May be called from another thread."""
        self._cancelled = True
        self._link.cancel()

    def _run(self, decoder: Decoder, answer: AnswerText) -> Iterator[str]:
        self._link.ask(self._ask)
        if self._cancelled:
            self._link.cancel()
        while True:
            event = self._link.next_event(1.0)
            match event:
                case Chunk():
                    self._watch.lap()
                    if piece := answer.push(decoder.push(event.data)):
                        yield piece
                    if answer.stopped:
                        self._link.cancel()
                case Failed():
                    raise event.error
                case Ended():
                    break
        self._watch.lap()
        if rest := answer.finish(decoder.flush()):
            yield rest
        self.confidence = event.confidence
        self.result = Completion(
            text=answer.text,
            finish="stop" if answer.stopped else _FINISHES[event.finish],
            prompt_tokens=event.prompt_tokens,
            cached_tokens=event.cached_tokens,
            completion_tokens=event.completion_tokens,
            ttft_ms=self._watch.ttft_ms,
            tokens_per_s=event.tokens_per_s,
            confidence=self._by_field(answer.text, event.shares)
            if event.finish is Finish.STOP and not answer.stopped
            else None,
            unfamiliar=self._unfamiliar,
        )

    def _by_field(self, text: str, shares: Sequence[float]) -> Mapping[str, float] | None:
        """The confidence of each field that is no free text.

        A board of version 2 has one figure, of the whole answer: a product, which each field has at least.
        """
        if self.confidence is None or self._schema is None:
            return None
        found, texts = json.loads(text), free_texts(self._schema)
        if not isinstance(found, dict):
            return None
        each = [*shares, *[self.confidence] * (len(found) - len(shares))]
        return {name: share for name, share in zip(found, each, strict=False) if name not in texts and share >= 0}


class SerialModel:
    """See `device_runtime.device.runner.Model` and `device_runtime.device.hardware.Hardware`."""

    def __init__(self, link: Link, bundle: Bundle | None = None) -> None:
        """Prepare; `open` starts it. Without a bundle the board needs a tokenizer of its own."""
        self._link, self._bundle = link, bundle
        self._language: Tokens | Text | None = None
        self._tasks = _tasks_of(bundle)
        self._updating = False

    @property
    def manifest(self) -> Manifest | None:
        """Of the bundle that the board runs; None: it was not named."""
        return self._bundle.manifest if self._bundle is not None else None

    def use(self, bundle: Bundle | None) -> None:
        """From the next `open` on the board runs this bundle."""
        self._bundle, self._language, self._tasks = bundle, None, _tasks_of(bundle)

    @contextmanager
    def updating(self) -> Iterator[None]:
        """While this lasts the port belongs to an update: requests wait, and the board does not count as gone."""
        self.close()
        self._updating = True
        try:
            yield
        finally:
            self._updating = False

    def open(self, wait_s: float = 5.0, interrupted: Callable[[], bool] = lambda: False) -> SerialModel:
        """Find the board; see `Link.open`.

        Raises:
            UnreachableError: there is none.
            ConfigurationError: its model is not the bundle's, or it needs a bundle.
        """
        hello = self._link.open(wait_s, interrupted)
        try:
            self._language = self._choose(hello)
        except BaseException:
            self._link.close()
            raise
        return self

    def close(self) -> None:
        """Give the port back."""
        self._link.close()

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new: int | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        head: str | None = None,
        nothing: str | None = None,
    ) -> SerialAnswer | Abstention:
        """Start an answer; the arguments are those of `LanguageModel.generate`. The last two are ignored.

        Raises:
            UnavailableError: the board is not there now.
            SchemaError: the board's image does not hold this schema.
            ConfigurationError: the prompt does not fit, or asks for what the board cannot do.
        """
        hello, trouble = self._link.session.hello, self.trouble
        if hello is None or trouble or self._language is None:
            raise UnavailableError(trouble or "the board has not said what it is.")
        unfamiliar: tuple[str, ...] = ()
        task = self._tasks.asked_with(schema) if self._tasks is not None else None
        if task is not None:  # as `LanguageModel.generate` has it
            given = task.read(prompt)
            if not given.readable:
                return Abstention(given.unfamiliar)
            words = given.text
            prompt, schema, unfamiliar = task.asked(given), schema or task.schema, given.unfamiliar
        ask = self._language.ask(prompt, max_new, hello)
        if task is not None and not ask.text:
            tokens = len(ask.prompt) // TOKEN_BYTES - hello.prefix
            unfamiliar += task.unknown_words(words, tokens)
        if schema is not None:
            ask = replace(ask, schema=_schema_of(schema, hello), softness=_softness(schema, task))
        if sampling.temperature > 0:
            if not hello.capabilities & Capability.SAMPLING:
                raise ConfigurationError(
                    f"temperature is {sampling.temperature}, and this board's firmware only answers greedily: "
                    "it must be 0."
                )
            seed = sampling.seed if sampling.seed is not None else secrets.randbits(32)
            ask = replace(
                ask, temperature=sampling.temperature, top_k=min(sampling.top_k, 65_535), top_p=sampling.top_p,
                seed=seed,
            )  # fmt: skip
        return SerialAnswer(self._link, ask, self._language.decoder(), stop, schema, unfamiliar)

    def check_schema(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        """Raise a `SchemaError` if the board cannot hold an answer to this schema; it has to be there."""
        if (hello := self._link.session.hello) is not None:
            _schema_of(schema, hello)

    @property
    def position(self) -> object:
        """Changes as the board gets on with an answer; see `device_runtime.device.runner.ModelRunner.progress`."""
        return self._link.session.progress

    # what the service reports of the hardware

    @property
    def trouble(self) -> str:
        """Why no request can be taken now; empty when one can."""
        session = self._link.session
        if self._updating:
            return ""
        if not self._link.up or session.hello is None:
            return session.trouble
        try:
            self._choose(session.hello)  # another board may have been plugged in
        except ConfigurationError as error:
            return str(error)
        return ""

    def info(self) -> dict[str, Any]:
        """For `out/info`."""
        hello = self._link.session.hello
        capabilities = ("generate", "stream", "cancel", "links")
        return {"board": hello.board if hello and hello.board else "microcontroller", "capabilities": capabilities,
                "firmware": hello.firmware or None if hello else None}  # fmt: skip

    def health(self) -> dict[str, Any]:
        """For `out/health`: the microcontroller's own figures, in place of this machine's."""
        session = self._link.session
        status, hello = session.status, session.hello
        known = status is not None and status.temperature != UNKNOWN_TEMPERATURE
        return {
            "rss_mb": None,
            "throttled": None,
            "temperature_c": status.temperature / 10 if status and known else None,
            "arena_bytes": hello.arena_bytes or None if hello else None,
            "board_uptime_s": status.uptime_ms // 1000 if status else None,
            "board_resets": session.resets,
            "board_starts": hello.boots or None if hello else None,
            "board_reset_by": hello.reset_cause.name.lower() if hello and hello.newest > 1 else None,
            "bytes_lost": status.overruns if status and hello and hello.newest > 1 else None,
            "line_noise": session.reader.noise,
        }

    def _choose(self, hello: Hello) -> Tokens | Text:
        if self._bundle is None:
            if hello.capabilities & Capability.TEXT:
                return self._language or Text()
            raise ConfigurationError(
                "this board takes tokens, which the bridge makes with the tokenizer of the board's bundle; "
                "name it with --bundle DIR, or in a fleet file."
            )
        if not hello.capabilities & Capability.TOKENS:
            return self._language or Text()
        _check_bundle(self._bundle.manifest, hello)
        return self._language or Tokens(self._bundle)


def _tasks_of(bundle: Bundle | None) -> OpenedTasks | None:
    """What a bundle's own tasks add to asking it; None: it has none."""
    if bundle is None or bundle.manifest.purpose is None:
        return None
    from device_runtime.tasks.opened import OpenedTasks  # reading one needs YAML, which takes its time at start-up

    return OpenedTasks(bundle.manifest, tokenizer_of(bundle))


def _softness(schema: Mapping[str, Any], task: OpenedTask | None) -> tuple[float, ...]:
    """The temperatures that the task's confidence was fitted with, in the order of the answer's fields."""
    names = list(schema.get("properties", ()))
    if task is None or set(names) != set(schema.get("required", ())):  # which fields come is not known
        return ()
    return tuple(task.temperatures.get(name, 1.0) for name in names[:MAX_FIELDS])


def _schema_of(schema: Mapping[str, Any], hello: Hello) -> int:
    """By what the board calls a schema. Raises a `SchemaError` where its image does not have it."""
    if not hello.capabilities & Capability.SCHEMAS:
        raise SchemaError(
            "this board holds no answers to a JSON schema: its image has none, or its firmware is older. Convert with "
            "--schema, flash the model and the firmware, or ask without one."
        )
    identity = schema_identity(schema)
    if identity not in hello.schemas:
        raise SchemaError(
            f"the board's image has {len(hello.schemas)} JSON schema(s), and this one is not among them; convert with "
            "--schema FILE or --task TASK for it, and flash the model."
        )
    return identity


def _check_bundle(manifest: Manifest, hello: Hello) -> None:
    """Raises a `ConfigurationError` where board and bundle are not of the same model."""
    sha256 = bytes.fromhex(manifest.files[MODEL].sha256)[: len(hello.model)]
    for what, found, expected in (
        ("model", hello.model.hex() if any(hello.model) else sha256.hex(), sha256.hex()),
        ("vocabulary", hello.vocabulary, manifest.graph.vocabulary),
        ("prefix", hello.prefix, len(manifest.prefix_tokens)),
    ):
        if found != expected:
            raise ConfigurationError(
                f"the board does not run the bundle {manifest.name!r}: its {what} is {found}, the bundle's {expected}. "
                "Name the bundle that was flashed, or flash this one."
            )
    if len(manifest.tokenizer.eos_ids) > MAX_STOPS:
        raise ConfigurationError(f"the bundle {manifest.name!r} has more than {MAX_STOPS} tokens that end an answer.")
