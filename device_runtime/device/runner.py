"""Runs the models of a device, one answer at a time, each under a deadline and open to cancelling."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from device_runtime.bundle.manifest import Manifest
from device_runtime.device.statistics import Statistics
from device_runtime.device.watchdog import Heartbeat
from device_runtime.errors import (
    BundleError,
    ConfigurationError,
    DamagedWeightsError,
    OutdatedBundleError,
    StonechatError,
)
from device_runtime.fleet.questions import example_turns
from device_runtime.fleet.settings import ModelSettings
from device_runtime.machine.power import EnergyMeter, energy_fields
from device_runtime.mqtt.messages import Final, Finish, Request, Usage
from device_runtime.records.printable import counted

if TYPE_CHECKING:
    from device_runtime.engine.language_model import Completion
    from device_runtime.engine.sampler import Sampling
    from device_runtime.engine.states.store import PromptStates
    from device_runtime.tasks.purpose import Purpose

__all__ = ["Answer", "CancellableRun", "Model", "ModelRunner", "incomplete", "options_of"]

_NO_HINTS: Mapping[str, str] = {}
# what a request may have beyond a prompt, and the tasks that it is for
_TASKS_OF = {"prompt_name": ("embed",), "to": ("translate",), "truncate": ("embed", "classify", "translate")}
log = logging.getLogger("stonechat.serve")

FIRST_GUESS_MS = 2_000  # how long an answer takes, before there was one
RETRY_S = 30.0  # between attempts to open a model that could not be opened: they hold up the other models


def incomplete(final: Final) -> str:
    """The error text for an answer that was held to a schema and cut before it fitted it."""
    limit = "the deadline" if final.finish == "deadline" else "the limit of tokens"
    return (
        f"the answer met {limit} after {counted(final.usage.completion_tokens, 'token')}, before it was complete; "
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
        head: str | None = None,
        nothing: str | None = ...,
    ) -> Answer: ...

    def close(self) -> None: ...


@runtime_checkable
class _KeepsStates(Protocol):
    """A model that keeps what prompts begin with: `LanguageModel`, and not one of a microcontroller."""

    states: PromptStates


class CancellableRun:
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
        return Final(
            0, r.text, finish, usage, r.ttft_ms, r.tokens_per_s,
            confidence={name: round(share, 4) for name, share in r.confidence.items()} if r.confidence else None,
            unfamiliar=True if r.unfamiliar else None,
            reason="; ".join(r.unfamiliar) or None,
            embedding=r.embedding,
            probabilities={
                name: {value: round(share, 6) for value, share in shares.items()}
                for name, shares in (r.probabilities or {}).items()
            }
            or None,
        )  # fmt: skip


class ModelRunner:
    """The models of one device, by name. The first answers requests that name none.

    `open`, `reopen` and `generate` are for one thread at a time, the rest for any.
    """

    def __init__(
        self,
        settings: Sequence[ModelSettings],
        open_model: Callable[[str], Model],
        statistics: Statistics,
        heartbeat: Heartbeat,
        meter: EnergyMeter | None = None,
    ) -> None:
        """Prepare; `open` opens the models.

        Args:
            open_model: called with each model's name, when it is opened and when it was updated.
            heartbeat: beats with each piece of an answer.
            meter: of this machine's energy, where it is known.
        """
        self._meter = meter
        self.average_ms = float(FIRST_GUESS_MS)  # that an answer took lately
        self._settings = {entry.name: entry for entry in settings}
        self._open_model, self._statistics, self._heartbeat = open_model, statistics, heartbeat
        self._models: dict[str, Model] = {}
        self._reports: list[Callable[[str, Model], None]] = []
        self._not_open: dict[str, Exception] = {}  # why, by model
        self._tried_s: dict[str, float] = {}  # when each was opened last, or was tried to be, on the monotonic clock
        self._purposes: dict[str, tuple[Manifest, Purpose | None]] = {}  # by bundle
        self._lock = threading.Lock()
        self._current: CancellableRun | None = None
        self._stopped = False

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may name."""
        return tuple(self._settings)

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return self._current is None

    @property
    def progress(self) -> object:
        """Changes with every token that a model takes in or puts out."""
        return [getattr(model, "position", None) for model in list(self._models.values())]

    def health(self) -> dict[str, Any]:
        """Fields of `out/health`: tokens for each run of the graph, and what is kept of prompts, if there are any."""
        figures: dict[str, Any] = {}
        rates = [getattr(model, "tokens_per_pass", None) for model in list(self._models.values())]
        if known := [rate for rate in rates if rate is not None]:
            figures["tokens_per_pass"] = round(max(known), 2)
        kept = [model.states for model in list(self._models.values()) if isinstance(model, _KeepsStates)]
        if not kept:
            return figures
        used = sum(states.used_bytes for states in kept)
        return figures | {"kept_states": sum(states.count for states in kept), "kept_states_mb": round(used / 1e6, 1)}

    @property
    def bundles(self) -> dict[str, str]:
        """By model: name and version of the bundle that is open."""
        manifests = {name: getattr(model, "manifest", None) for name, model in list(self._models.items())}
        return {
            name: f"{found.name} {found.version}" for name, found in manifests.items() if isinstance(found, Manifest)
        }

    @property
    def tasks(self) -> dict[str, str]:
        """By model: its task, where that is not to write text."""
        manifests = {name: getattr(model, "manifest", None) for name, model in list(self._models.items())}
        found = {name: manifest.task for name, manifest in manifests.items() if isinstance(manifest, Manifest)}
        return {name: task for name, task in found.items() if task != "generate"}

    def manifest_of(self, name: str | None) -> Manifest | None:
        """Of the bundle that is open as this model; None where there is none. None is the first model."""
        manifest = getattr(self._models.get(name or next(iter(self._settings))), "manifest", None)
        return manifest if isinstance(manifest, Manifest) else None

    @property
    def open_names(self) -> frozenset[str]:
        """The models that are open."""
        return frozenset(self._models)

    def encode(self, name: str, messages: Sequence[Mapping[str, str]]) -> list[int] | None:
        """A prompt as the tokens of a model; None where it does not say them, as a microcontroller."""
        encode: Callable[..., list[int]] | None = getattr(self._models.get(name), "encode", None)
        try:
            return None if encode is None else [int(token) for token in encode(messages)]
        except StonechatError:  # what was left of it is no prompt any more
            return None

    def purpose_of(self, name: str | None) -> Purpose | None:
        """What a model was trained for; None where that is no task, or the model is not open. None is the first.

        May be asked from any thread.
        """
        from device_runtime.tasks.purpose import Purpose  # which needs YAML

        manifest = self.manifest_of(name)
        if manifest is None:
            return None
        known, purpose = self._purposes.get(manifest.name, (None, None))
        if known is not manifest:
            purpose = Purpose.of_manifest(manifest)
            self._purposes[manifest.name] = manifest, purpose
        return purpose

    def is_general(self, name: str) -> bool:
        """Whether a model writes whatever it is asked for; False where it is not open. May be asked from any thread."""
        from device_runtime.tasks.purpose import is_general

        manifest = self.manifest_of(name)
        if manifest is None:  # a microcontroller has none to show
            return name in self._models
        return is_general(manifest)

    @property
    def not_open(self) -> dict[str, str]:
        """By model: why it cannot be opened, where the device goes on without it."""
        return {name: _why(error) for name, error in list(self._not_open.items())}

    def when_opened(self, report: Callable[[str, Model], None]) -> None:
        """Have `report` called with each model and its name once it is open, in the thread that opens it."""
        self._reports.append(report)

    def open(self) -> None:
        """Open every model that can be opened; see `not_open` for the others.

        Raises:
            StonechatError: none can be; the error of the first. A bundle of before an upgrade is no reason: a device
                that ends could not be sent the next one.
        """
        for name in self._settings:
            self._try_to_open(name)
        self._require_one()

    def reopen(self, name: str) -> None:
        """Close a model, and open what its name stands for now; there is never memory needed for both.

        Raises:
            StonechatError: it cannot be opened, and no other model is open; see `open`.
        """
        try:
            if (model := self._models.pop(name, None)) is not None:
                model.close()
        except DamagedWeightsError as error:  # which go with it
            log.error("%s", error)
        self._try_to_open(name)
        self._require_one()

    def _try_to_open(self, name: str) -> None:
        """One damaged bundle is no reason to leave the readings of the other models unanswered."""
        self._tried_s[name] = time.monotonic()
        try:
            model = self._open_model(name)
        except (StonechatError, OSError, MemoryError) as error:
            log.error("%s is not open: %s", name, _why(error))
            self._not_open[name] = error
            return
        self._models[name] = model
        self._not_open.pop(name, None)
        for report in self._reports:
            report(name, model)

    def _require_one(self) -> None:
        errors = list(self._not_open.values())
        if not self._models and not any(isinstance(error, OutdatedBundleError) for error in errors):
            raise errors[0]

    def generate(
        self,
        request: Request,
        run: CancellableRun,
        on_piece: Callable[[str], None] = lambda text: None,
        hints: Mapping[str, str] = _NO_HINTS,
    ) -> Final:
        """Answer a request.

        Args:
            hints: `head` and `nothing` of `LanguageModel.generate`, where they are known.
            run: ends the answer, by its deadline or by `end`.
            on_piece: gets each piece.
        """
        with self._lock:
            self._current = run
            if self._stopped:
                run.end("cancelled")
        start_s, start_j = time.monotonic(), self._meter.joules() if self._meter is not None else 0.0
        said = False

        def beat(text: str) -> None:
            nonlocal said
            said = True
            self._heartbeat.beat()
            on_piece(text)

        try:
            try:
                final = run.to_end(self._start(request, hints), beat)
            except DamagedWeightsError as error:
                log.error("%s The model is opened again.", error)
                self.reopen(self._name(request))
                self._heartbeat.beat()
                if said:
                    raise
                final = run.to_end(self._start(request, hints), beat)
            if self._meter is not None:
                final = replace(final, energy=energy_fields(self._meter.joules() - start_j, self._meter.how))
            self._statistics.answered(final)
            return final
        except ConfigurationError:  # the request's own fault
            raise
        except Exception:
            self._statistics.failed()
            raise
        finally:
            with self._lock:
                self._current = None
            self.average_ms += 0.3 * ((time.monotonic() - start_s) * 1000 - self.average_ms)

    def stop(self) -> None:
        """End the answer that is under way, and each that begins from now on."""
        with self._lock:
            self._stopped = True
            if self._current:
                self._current.end("cancelled")

    def _name(self, request: Request) -> str:
        return request.model or next(iter(self._settings))

    def _start(self, request: Request, hints: Mapping[str, str]) -> Answer:
        from device_runtime.engine.sampler import Sampling  # numpy, which a client of these modules may not need

        name = self._name(request)
        if name not in self._models and time.monotonic() - self._tried_s.get(name, -RETRY_S) >= RETRY_S:
            self._try_to_open(name)
        if (error := self._not_open.get(name)) is not None:
            raise BundleError(f"the model {name!r} is not open: {_why(error)}") from error
        options = options_of(request, self._models[name])
        settings, messages = self._settings[name], request.messages
        if request.examples:
            shown = [turn for example in request.examples for turn in example_turns(example.prompt, example.answer)]
            messages = (*messages[:-1], *shown, messages[-1])
        if settings.system and not any(message["role"] == "system" for message in messages):
            messages = ({"role": "system", "content": settings.system}, *messages)
        generate: Callable[..., Answer] = self._models[name].generate  # some take more than every model does
        return generate(
            messages,
            max_new=request.max_new or settings.max_new,
            sampling=Sampling(request.temperature, request.top_k, request.top_p, request.seed),
            stop=request.stop,
            schema=request.schema,
            **hints,
            **options,
        )


def _why(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is too little free memory for it; end other programs, or take a smaller model."
    return str(error)


def options_of(request: Request, model: Model) -> dict[str, Any]:
    """What a request asks of one task alone.

    Raises:
        ConfigurationError: the model has another task.
    """
    manifest = getattr(model, "manifest", None)
    task = manifest.task if isinstance(manifest, Manifest) else "generate"
    if request.task not in (None, task):
        raise ConfigurationError(
            f"the request's task is {request.task}, and this model's is {task}; ask another model."
        )
    given = {name: getattr(request, name) for name in _TASKS_OF if getattr(request, name)}
    for name in given:
        if task not in _TASKS_OF[name]:
            raise ConfigurationError(
                f"{name} belongs to {' and '.join(_TASKS_OF[name])}, and this model's task is {task}; leave it out."
            )
    return given
