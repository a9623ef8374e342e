"""Models on this machine: one answer at a time, and a queue in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.device.queue import Job, JobQueue
from device_runtime.device.runner import CancellableRun, options_of
from device_runtime.errors import ConfigurationError, DamagedWeightsError, StonechatError, UnreachableError
from device_runtime.mqtt.messages import Final, Request
from toolkit.gateway.source import Card

if TYPE_CHECKING:
    from device_runtime.engine.opening import OpenedModel

__all__ = ["Bundles", "by_name"]

_FIRST_GUESS_S = 2.0  # how long an answer takes, before there was one

log = logging.getLogger("stonechat.gateway")


def by_name(folders: Sequence[tuple[str | None, Path]]) -> dict[str, Path]:
    """Bundle folders by name; one without a name is called as its manifest says.

    Raises:
        ConfigurationError: two have one name, or a path has no bundle.
    """
    from device_runtime.update.active import open_bundle

    found: dict[str, Path] = {}
    for given, folder in folders:
        name = given or open_bundle(folder).manifest.name
        if name in found:
            raise ConfigurationError(
                f"two bundles are called {name!r}: {found[name]} and {folder}; name one of them: other={folder}"
            )
        found[name] = folder
    return found


class Bundles:
    """The source `stonechat gateway BUNDLE…`."""

    raw = True

    def __init__(
        self, folders: Mapping[str, Path], *, backend: str | None = None, threads: int | None = None, queue: int = 16
    ) -> None:
        """Prepare; `open` opens the models. `queue`: requests that may wait."""
        self._folders, self._backend, self._threads = dict(folders), backend, threads
        self._queue = JobQueue(queue)
        self._models: dict[str, OpenedModel] = {}
        self._average_s = _FIRST_GUESS_S
        self._running: _Answer | None = None
        self._worker = threading.Thread(target=self._work, name="stonechat-gateway", daemon=True)

    def open(self) -> None:
        """Open every model.

        Raises:
            StonechatError: one cannot be opened.
        """
        for name in self._folders:
            self._models[name] = self._open(name)
        self._worker.start()

    def close(self) -> None:
        """End what is under way, and what waits."""
        for job in self._queue.close():
            job.drop()
        if running := self._running:
            running.cancel()
        if self._worker.is_alive():
            self._worker.join(10)
        for model in self._models.values():
            with contextlib.suppress(StonechatError):
                model.close()

    def cards(self) -> list[Card]:
        """One for each bundle."""
        return [
            Card(name, model.manifest.task, int((self._folders[name] / "manifest.json").stat().st_mtime))
            if (self._folders[name] / "manifest.json").is_file()
            else Card(name, model.manifest.task)
            for name, model in self._models.items()
        ]

    def why_absent(self, name: str) -> str | None:
        """None: what is known is there."""
        return None

    async def ask(self, card: Card, request: Request, *, raw: bool, client: str, timeout_s: float) -> _Answer:
        """Queue a request.

        Raises:
            UnreachableError: the queue is full.
        """
        answer = _Answer(self, card.id, request, raw, client, time.monotonic() + timeout_s)
        for turned_away in self._queue.add_request(answer):
            turned_away.give_way()
        return answer

    def busy(self) -> UnreachableError:
        """What a client gets for whom there is no place."""
        wait_s = max(1.0, self._average_s * self._queue.limit)
        return UnreachableError(
            f"{self._queue.limit} requests wait already; ask again later, or start the gateway with a longer --queue.",
            retry_after_ms=round(min(wait_s, 60.0) * 1000),
        )

    def take_back(self, answer: _Answer) -> None:
        """Free the place of an answer that nobody waits for any more."""
        if self._queue.remove(answer):
            answer.drop()

    def generate(self, name: str, request: Request, raw: bool, answer: _Answer) -> Final:
        """Answer, in the worker thread."""
        try:
            return answer.run_of(self._start(name, request, raw))
        except DamagedWeightsError as error:
            log.error("%s The model is opened again.", error)
            with contextlib.suppress(DamagedWeightsError):
                self._models[name].close()
            self._models[name] = self._open(name)
            if answer.said:
                raise
            return answer.run_of(self._start(name, request, raw))

    def _open(self, name: str) -> OpenedModel:
        from device_runtime.engine.opening import open_model

        if self._backend is not None:
            from device_runtime.engine.language_model import LanguageModel

            return LanguageModel.open(self._folders[name], backend=self._backend, threads=self._threads)
        return open_model(self._folders[name], threads=self._threads)

    def _start(self, name: str, request: Request, raw: bool) -> Any:
        from device_runtime.engine.sampler import Sampling

        model = self._models[name]
        generate: Any = model.generate
        return generate(
            request.messages[-1]["content"] if raw else request.messages,
            max_new=request.max_new,
            sampling=Sampling(request.temperature, request.top_k, request.top_p, request.seed),
            stop=request.stop,
            schema=request.schema,
            **options_of(request, model),
        )

    def _work(self) -> None:
        while (job := self._queue.take()) is not None:
            for late in self._queue.remove_late():
                late.expire()
            self._running = job if isinstance(job, _Answer) else None
            started_s = time.monotonic()
            job.run()
            self._running = None
            self._average_s += 0.3 * (time.monotonic() - started_s - self._average_s)


class _Answer(Job):
    """One request, and its answer for the event loop that asked. See `Answering`."""

    device = None

    def __init__(self, of: Bundles, model: str, request: Request, raw: bool, client: str, deadline_s: float) -> None:
        self._of, self._model, self._request, self._raw = of, model, request, raw
        self.client, self.start_by_s = client, deadline_s
        self.memory_bytes = sum(len(message["content"]) for message in request.messages) + 1024
        self.said = False
        self._run = CancellableRun(deadline_s)
        self._loop = asyncio.get_running_loop()
        self._came: asyncio.Queue[str | Final | BaseException] = asyncio.Queue()
        self._end: BaseException | None = None
        self.final: Final

    # the event loop

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> str:
        if self._end is None:
            came = await self._came.get()
            if isinstance(came, str):
                return came
            self._end = came if isinstance(came, BaseException) else StopAsyncIteration()
            if isinstance(came, Final):
                self.final = came
        raise self._end

    # any thread

    def cancel(self) -> None:
        self._run.end("cancelled")
        self._of.take_back(self)

    # the worker, and who empties the queue

    def run(self) -> None:
        try:
            self._put(self._of.generate(self._model, self._request, self._raw, self))
        except StonechatError as error:
            self._put(error)
        except Exception as error:  # one request must not end the others
            log.exception("an answer failed")
            self._put(error)

    def run_of(self, generation: Any) -> Final:
        """Drain a generation."""
        return self._run.to_end(generation, self._say)

    def expire(self) -> None:
        self._put(UnreachableError("it waited in the queue until its time was up; ask again, or allow more time."))

    def drop(self) -> None:
        self._put(UnreachableError("the gateway is shutting down; ask again."))

    def give_way(self) -> None:
        self._put(self._of.busy())

    def _say(self, text: str) -> None:
        self.said = True
        self._put(text)

    def _put(self, what: str | Final | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._came.put_nowait, what)
