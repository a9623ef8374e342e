"""A device's model, or a pool's, asked over MQTT: what an application uses, with or without asyncio.

    with RemoteModel(BrokerAddress("broker.local"), "greenhouse-pi") as model:
        for piece in model.generate("It is 38 °C. What should I do?", max_new=40):
            print(piece, end="", flush=True)

    async with RemoteModel(BrokerAddress("broker.local"), pool="herd") as model:
        async for piece in model.generate("It is 38 °C. What should I do?", max_new=40):
            print(piece, end="", flush=True)

Any number of answers may be under way on one connection. Each has a reply topic of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

from device_runtime.client.exchange import GRACE_S, Exchange, Session, Signal, to_error
from device_runtime.client.last_wills import BROKER_ENDS_S
from device_runtime.client.pool import PoolExchange
from device_runtime.errors import ConfigurationError, StonechatError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import Accepted, DeviceState, ErrorReply, Final, Piece, Request, State, parse_reply
from device_runtime.mqtt.strict_json import MessageError
from device_runtime.mqtt.topics import DeviceTopics, PoolTopics

__all__ = ["RemoteAnswer", "RemoteModel", "why_unfamiliar"]

STATE_WAIT_S = 2.0  # a retained state follows the subscription at once
LONGEST_S = 86_400  # that an answer may take


class RemoteModel:
    """One connection to a broker, and one device or one pool on it. May be used from any thread."""

    def __init__(
        self, broker: BrokerAddress, device: str | None = None, *, pool: str | None = None, client: str | None = None
    ) -> None:
        """Prepare a connection; entering the context opens it.

        Args:
            device: whom to ask; or else
            pool: the group of devices of which any may answer. When the one that does vanishes, another is asked.
            client: who asks, as the broker knows it (docs/guides/broker.md): it may read no other's answers. None: a
                name that nobody else has, for brokers that let everyone in.

        Raises:
            ConfigurationError: there is neither device nor pool, or both, or one that is no id.
        """
        if (device is None) == (pool is None):
            raise ConfigurationError("a remote model is either one device or one pool; name exactly one of them.")
        self._device, self._pool = device, pool
        topics = DeviceTopics(device) if device is not None else PoolTopics(pool or "")
        self._exchange = Exchange(broker, topics, client)

    def open(self) -> None:
        """Connect.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses this client, or does not prove who it is.
        """
        self._exchange.open()

    def close(self) -> None:
        """Disconnect. Answers that are under way end with an error."""
        self._exchange.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        model: str | None = None,
        max_new: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        examples: Sequence[Mapping[str, Any]] = (),
        task: str | None = None,
        prompt_name: str | None = None,
        to: str | None = None,
        truncate: bool = False,
        stream: bool = True,
        timeout_s: float = 60.0,
        on_wait: Callable[[str], None] = lambda text: None,
        hops: int = 0,
        unfamiliar: bool = False,
    ) -> RemoteAnswer:
        """Ask; the request is sent when the answer is iterated.

        Args:
            prompt: a user's message, or chat messages.
            model: its name in the fleet file; None is the device's first.
            schema: a JSON schema that the answer fits; `stop` does not go with it.
            examples: what is right, shown to the model before the last message: `{"prompt": "…", "answer": …}` each,
                where the answer is an object that fits `schema`, or a text.
            task: what the model has to be for: generate, embed, classify or translate; None takes any. The vector of
                an encoder is `final.embedding`, a classifier's probabilities are `final.probabilities`.
            prompt_name: of an encoder, what the text is for.
            to: of a translator, the language.
            truncate: of these, cut off what is too long.
            stream: receive pieces as they come; else the whole answer is one piece.
            timeout_s: the device's deadline; what is ready by then is the answer. A pool is asked again until then.
            on_wait: gets a sentence each time that a pool has to be asked again: what is waited for.
            hops: how often the question was passed on before.
            unfamiliar: no model of the device is for it; it is to pass it on.

        Raises:
            ConfigurationError: an argument is out of its bounds.
        """
        if not 0 < timeout_s <= LONGEST_S:
            raise ConfigurationError(f"timeout_s is {timeout_s:g}; it must be above 0 and at most {LONGEST_S} seconds.")
        fields = {
            "prompt" if isinstance(prompt, str) else "messages": prompt if isinstance(prompt, str) else list(prompt),
            "model": model, "max_new": max_new, "stop": list(stop), "schema": schema, "stream": stream,
            "examples": list(examples), "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
            "task": task, "prompt_name": prompt_name, "to": to, "truncate": truncate,
            "deadline_ms": max(1, round(timeout_s * 1000)), "hops": hops, "unfamiliar": unfamiliar,
        }  # fmt: skip
        try:
            request = Request.from_value(fields)
            request.to_json()
        except MessageError as error:
            raise ConfigurationError(str(error)) from None
        except ValueError as error:  # NaN, or half of a surrogate pair
            raise ConfigurationError(f"the request cannot be written as JSON: {error}.") from None
        if self._device is not None:
            return RemoteAnswer(_DeviceExchange(self._exchange, self._device, request, timeout_s))
        return RemoteAnswer(PoolExchange(self._exchange, self._pool or "", request, timeout_s, on_wait))


class _Course(Protocol):
    """How one answer comes about."""

    final: Final  # set when `run` has ended

    @property
    def device(self) -> str | None: ...

    def run(self) -> Iterator[str]: ...

    def cancel(self) -> None: ...


def why_unfamiliar(final: Final) -> tuple[str, ...]:
    """Why an input is unlike those that the model was trained for; none where the device does not say that it is."""
    return (final.reason or "it does not say why",) if final.unfamiliar else ()


class RemoteAnswer(Iterator[str], AsyncIterator[str]):
    """An answer as it comes: iterate for its pieces, with `for` or `async for`, then read `final`.

    A `for` that is left early takes the request back. Code that leaves an `async for` calls `cancel`, unless it is left
    because its task was cancelled.

    Raises, while iterated:
        UnreachableError: no such device is online, it is busy, was stopped, or fell silent; or nobody in the pool
            has answered by the deadline, or a second one not with the words of the first; or the connection was closed.
        ConfigurationError: the device says that the request cannot be served as it is.
    """

    def __init__(self, course: _Course) -> None:
        self._course = course
        self._pieces = course.run()
        self._relay: _Relay | None = None

    @property
    def final(self) -> Final:
        """The whole answer, once the iteration has ended."""
        return self._course.final

    @property
    def device(self) -> str | None:
        """Who answers; of a pool, None until one has taken the request."""
        return self._course.device

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._relay is None:
            self._relay = _Relay(self._pieces)
        try:
            return await self._relay.next()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Ask the device to stop; the iteration ends with what it has, also where the device says nothing for 5 s.

        From any thread; does not wait.
        """
        self._course.cancel()


class _Relay:
    """Iterates in a thread of its own for an event loop.

    The loop's own threads are few, and shared with all else that the application does in them: answers that wait would
    keep them from each other. Nor could the loop end before they do.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        """For the running loop."""
        self._pieces = pieces
        self._loop = asyncio.get_running_loop()
        self._came: asyncio.Queue[str | BaseException] = asyncio.Queue()
        self._end: BaseException | None = None
        threading.Thread(target=self._run, name="stonechat-answer", daemon=True).start()

    async def next(self) -> str:
        if self._end is None:
            came = await self._came.get()
            if isinstance(came, str):
                return came
            self._end = came
        raise self._end

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            try:
                for piece in self._pieces:
                    self._loop.call_soon_threadsafe(self._came.put_nowait, piece)
            except Exception as error:
                self._loop.call_soon_threadsafe(self._came.put_nowait, error)
            else:
                self._loop.call_soon_threadsafe(self._came.put_nowait, StopAsyncIteration())


class _DeviceExchange:
    """The course of one answer of one device."""

    final: Final

    def __init__(self, exchange: Exchange, device: str, request: Request, timeout_s: float) -> None:
        self._exchange, self.device, self._request, self._timeout_s = exchange, device, request, timeout_s
        self._session: Session | None = None
        self._boot: int | None = None  # of the device that was asked
        self._end_s = 0.0  # on the monotonic clock
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the device to stop; what was not sent yet is not sent any more."""
        self._cancelled.set()
        if (session := self._session) is not None:
            self._exchange.cancel(session, self.device)
            session.heard.put(Signal.WAKE)

    def run(self) -> Iterator[str]:
        """The pieces of the answer."""
        state = self._await_state()
        if not self._cancelled.is_set():
            self._check_state(state)
            self._boot = state.boot if state is not None else None
        if self._cancelled.is_set():
            self.final = Final(0, "", "cancelled")
            return
        session = self._session = self._exchange.send(*self._due())
        try:
            if self._cancelled.is_set():  # `cancel` may have found no session
                self.cancel()
            yield from self._hear(session)
        except BaseException as error:
            if not isinstance(error, StonechatError):  # nobody iterates any more
                self._exchange.cancel(session, self.device)
            raise
        finally:
            self._exchange.forget(session)

    def _hear(self, session: Session) -> Iterator[str]:
        early: dict[int, str] = {}  # pieces whose forerunners are missing
        said, due = "", 0
        lost: State | None = None  # what the broker has said of the device, and may have said of itself
        believed_s = self._end_s  # when `lost` holds
        missed = False  # whether the connection was gone, and an answer may be with it
        while True:
            message = session.next(min(believed_s, self._end_s))
            if message is None:
                if lost is not None and not self._exchange.doubts(self.device):
                    self._check_state(lost)
                if time.monotonic() >= self._end_s and self._cancelled.is_set():
                    self.final = Final(due, said, "cancelled")
                    return
                if time.monotonic() >= self._end_s:
                    raise UnreachableError(self._why_silent())
                lost, believed_s = None, self._end_s
                continue
            if isinstance(message, Signal):
                if self._cancelled.is_set():  # a device that hangs, or has never had the request, says nothing
                    self._end_s = min(self._end_s, time.monotonic() + GRACE_S)
                    believed_s = min(believed_s, self._end_s)
                if message is Signal.RECONNECTED:
                    missed = True
                    if not self._exchange.doubts(self.device):  # its state came before this signal
                        self._ask_again(session)
                continue
            if reported := self._exchange.state_in(message):
                state = reported[1]
                if state is not None and state.state is DeviceState.LOST:
                    lost, believed_s = state, time.monotonic() + BROKER_ENDS_S
                    continue
                lost, believed_s = None, self._end_s
                self._check_boot(state)
                self._check_state(state)
                if missed:
                    self._ask_again(session)
                    missed = message.retained  # it may be older than the connection that the device will have
                continue
            try:
                reply = parse_reply(message.payload)
            except MessageError as error:
                raise StonechatError(f"device {self.device!r} sent an answer that cannot be read: {error}") from None
            match reply:
                case Accepted():
                    pass
                case ErrorReply():
                    raise to_error(f"device {self.device!r}", reply)
                case Piece():
                    early[reply.seq] = reply.text
                    while due in early:
                        text = early.pop(due)
                        due, said = due + 1, said + text
                        yield text
                case Final():
                    self.final = reply
                    if reply.finish == "cancelled" and not self._cancelled.is_set():
                        raise UnreachableError(
                            f"device {self.device!r} stopped in the middle of its answer: it is shutting down, or "
                            "somebody else has taken the request back. Ask again."
                        )
                    if reply.text[len(said) :]:
                        yield reply.text[len(said) :]
                    return

    def _await_state(self) -> State | None:
        """The device's state, as it is since the last time that the connection was gone."""
        state = self._exchange.await_state(self.device, STATE_WAIT_S)
        self._end_s = time.monotonic() + self._timeout_s + GRACE_S
        if not self._exchange.doubts(self.device):
            return state
        while not self._exchange.await_return(self.device, 0.5) and not self._cancelled.is_set():
            if time.monotonic() >= self._end_s - GRACE_S:
                if not self._exchange.left_behind(self.device):
                    break  # it is lost, as far as anybody knows
                raise UnreachableError(self._why_silent())
        return self._exchange.await_state(self.device, STATE_WAIT_S)

    def _ask_again(self, session: Session) -> None:
        """The request or its answer may have been lost with the broker; the device knows which."""
        if self._cancelled.is_set():
            self._exchange.cancel(session, self.device)
        else:
            self._exchange.send_again(session, *self._due())

    def _due(self) -> tuple[Request, float]:
        """The request with what is left of its time, and that in seconds."""
        left_s = max(0.001, self._end_s - GRACE_S - time.monotonic())
        return replace(self._request, deadline_ms=max(1, round(left_s * 1000))), left_s

    def _why_silent(self) -> str:
        if not self._exchange.connected:
            why = self._exchange.without_broker
            return f"device {self.device!r} gave no answer within {self._timeout_s:g} s: {why}"
        if self._exchange.left_behind(self.device):
            return (
                f"device {self.device!r} has not come back within {self._timeout_s:g} s since the connection to the "
                f"broker at {self._exchange.broker} was gone. Check its power and network."
            )
        return (
            f"device {self.device!r} took the request but did not answer within {self._timeout_s:g} s. "
            "Try again, or allow more with --timeout."
        )

    def _check_boot(self, state: State | None) -> None:
        if state is not None and self._boot is not None and state.boot > self._boot:
            raise UnreachableError(
                f"device {self.device!r} has restarted in the middle of its answer, which is lost. Ask again."
            )

    def _check_state(self, state: State | None) -> None:
        if state is None:
            return  # one that a newer version knows; the reply will show it
        why = {
            DeviceState.LOST: "lost: it vanished without a word. Check its power and network",
            DeviceState.DISCONNECTED: "disconnected: it was stopped. Start it with: stonechat serve",
            DeviceState.INIT: "still opening its model. Try again in a few seconds",
        }.get(state.state)
        if why:
            raise UnreachableError(f"device {self.device!r} is {why}.")
