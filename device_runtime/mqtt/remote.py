"""A device's model, asked over MQTT: what an application uses, with or without asyncio.

    with RemoteModel(BrokerAddress("broker.local"), "greenhouse-pi") as model:
        for piece in model.generate("It is 38 °C. What should I do?", max_new=40):
            print(piece, end="", flush=True)

    async with RemoteModel(BrokerAddress("broker.local"), "greenhouse-pi") as model:
        async for piece in model.generate("It is 38 °C. What should I do?", max_new=40):
            print(piece, end="", flush=True)

Any number of answers may be under way on one connection. Each has a reply topic of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from device_runtime.errors import ConfigurationError, StonechatError, UnreachableError
from device_runtime.mqtt.client import BrokerAddress, Client, Incoming, Subscription
from device_runtime.mqtt.messages import DeviceState, ErrorReply, Final, Piece, Request, State, parse_reply
from device_runtime.mqtt.payload import MessageError, dump
from device_runtime.mqtt.topics import DeviceTopics

__all__ = ["RemoteAnswer", "RemoteModel"]

STATE_WAIT_S = 2.0  # a retained state follows the subscription at once
LONGEST_S = 86_400  # that an answer may take
GRACE_S = 5.0  # beyond the deadline that the device keeps itself
_CLIENTS_FAULT = {"invalid_request", "unknown_model", "retained", "configuration", "context_overflow", "schema"}
_END = object()


class RemoteModel:
    """One connection to a broker, and one device on it. May be used from any thread."""

    def __init__(self, broker: BrokerAddress, device: str, *, client: str | None = None) -> None:
        """Prepare a connection; entering the context opens it.

        Args:
            client: who asks, as the broker knows it (see docs/broker.md): it may read no other's answers. None: a name
                that nobody else has, for brokers that let everyone in.
        """
        self._broker, self._topics = broker, DeviceTopics(device)
        connection = secrets.token_hex(4)
        self._name = client or f"ask-{connection}"
        self._answers: dict[str, queue.SimpleQueue[Incoming]] = {}  # by reply topic
        self._state: Incoming | None = None
        self._state_known = threading.Event()
        self._lock = threading.Lock()
        self._client = Client(broker, f"{client or 'ask'}-{connection}", on_message=self._receive)

    def open(self) -> None:
        """Connect.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses this client, or does not prove who it is.
        """
        self._client.subscribe(Subscription(self._topics.replies(self._name)), Subscription(self._topics.state))
        self._client.connect()

    def close(self) -> None:
        """Disconnect. Answers that are under way end with an error."""
        self._client.close()

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
        max_new: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        stream: bool = True,
        timeout_s: float = 60.0,
    ) -> RemoteAnswer:
        """Ask; the request is sent when the answer is iterated.

        Args:
            prompt: a user's message, or chat messages.
            schema: a JSON schema that the answer fits.
            stream: hear pieces as they come; else the whole answer is one piece.
            timeout_s: the device's deadline; what is ready by then is the answer.

        Raises:
            ConfigurationError: an argument is out of its bounds.
        """
        if not 0 < timeout_s <= LONGEST_S:
            raise ConfigurationError(f"timeout_s is {timeout_s:g}; it must be above 0 and at most {LONGEST_S} seconds.")
        fields = {
            "prompt" if isinstance(prompt, str) else "messages": prompt if isinstance(prompt, str) else list(prompt),
            "max_new": max_new, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
            "stop": list(stop), "schema": schema, "stream": stream,
            "deadline_ms": max(1, round(timeout_s * 1000)),
        }  # fmt: skip
        try:
            request = Request.from_value(fields)
        except MessageError as error:
            raise ConfigurationError(str(error)) from None
        return RemoteAnswer(self, request, timeout_s)

    # for RemoteAnswer

    def _send(self, request: Request, timeout_s: float) -> tuple[str, bytes, queue.SimpleQueue[Incoming]]:
        session, correlation_data = secrets.token_hex(8), secrets.token_bytes(8)
        reply_to = self._topics.reply(self._name, session)
        heard = self._answers[reply_to] = queue.SimpleQueue()
        payload = request.to_json()
        if self._broker.protocol == "3.1.1":
            payload = dump({**json.loads(payload), "reply_to": reply_to, "id": session})
        self._client.publish(
            self._topics.generate,
            payload,
            qos=1,
            response_topic=reply_to,
            correlation_data=correlation_data,
            expiry_s=math.ceil(timeout_s),
        )
        return reply_to, correlation_data, heard

    def _take_back(self, reply_to: str, correlation_data: bytes) -> None:
        fields = {"reply_to": reply_to, "id": reply_to.rpartition("/")[2]} if self._broker.protocol == "3.1.1" else {}
        self._client.publish(
            self._topics.cancel, dump(fields), qos=1, response_topic=reply_to, correlation_data=correlation_data
        )
        self._client.flush()

    def _forget(self, reply_to: str) -> None:
        self._answers.pop(reply_to, None)

    def _receive(self, message: Incoming) -> None:
        if message.topic == self._topics.state:
            self._state = message
            self._state_known.set()
            for heard in list(self._answers.values()):
                heard.put(message)
        elif heard_by := self._answers.get(message.topic):
            heard_by.put(message)

    def _await_device(self) -> None:
        if not self._state_known.wait(STATE_WAIT_S) or self._state is None:
            raise UnreachableError(
                f"no device {self._topics.device!r} is known to the broker at {self._broker}. "
                "Check the id, or start it with: stonechat serve"
            )
        self._check_state(self._state)

    def _check_state(self, message: Incoming) -> None:
        try:
            state = State.from_json(message.payload).state
        except MessageError:
            return  # a state that a newer version knows; the reply will tell
        why = {
            DeviceState.LOST: "lost: it vanished without a word. Check its power and network",
            DeviceState.DISCONNECTED: "disconnected: it was stopped. Start it with: stonechat serve",
            DeviceState.INIT: "still opening its model. Try again in a few seconds",
        }.get(state)
        if why:
            raise UnreachableError(f"device {self._topics.device!r} is {why}.")

    def _error(self, reply: ErrorReply) -> StonechatError:
        text = f"device {self._topics.device!r} answers {reply.code}: {reply.message}"
        if reply.retry_after_ms is not None:
            text += f" Retry in {reply.retry_after_ms / 1000:.1f} s."
        if reply.code in ("busy", "unavailable"):
            return UnreachableError(text)
        return ConfigurationError(text) if reply.code in _CLIENTS_FAULT else StonechatError(text)


class RemoteAnswer(Iterator[str], AsyncIterator[str]):
    """An answer as it comes: iterate for its pieces, with `for` or `async for`, then read `final`.

    Raises, while iterated:
        UnreachableError: no such device is on the air, it is busy, or it fell silent.
        ConfigurationError: the device says that the request cannot be served as it is.
    """

    final: Final  # set when the iteration has ended

    def __init__(self, model: RemoteModel, request: Request, timeout_s: float) -> None:
        self._model, self._request, self._timeout_s = model, request, timeout_s
        self._sent: tuple[str, bytes] | None = None
        self._pieces = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            piece = await asyncio.to_thread(next, self._pieces, _END)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is _END:
            raise StopAsyncIteration
        return str(piece)

    def cancel(self) -> None:
        """Tell the device to stop; the iteration ends with what it has. May be called from another thread."""
        if self._sent is not None:
            self._model._take_back(*self._sent)

    def _run(self) -> Iterator[str]:
        model = self._model
        model._await_device()
        reply_to, correlation_data, heard = model._send(self._request, self._timeout_s)
        self._sent = reply_to, correlation_data
        try:
            yield from self._hear(heard)
        finally:
            model._forget(reply_to)

    def _hear(self, heard: queue.SimpleQueue[Incoming]) -> Iterator[str]:
        model, device = self._model, self._model._topics.device
        end_s = time.monotonic() + self._timeout_s + GRACE_S
        early: dict[int, str] = {}  # pieces whose forerunners are missing
        printed, due = 0, 0
        while True:
            message = _next(heard, end_s)
            if message is None:
                raise UnreachableError(
                    f"device {device!r} took the request but did not answer within {self._timeout_s:g} s. "
                    "Try again, or allow more with --timeout."
                )
            if message.topic == model._topics.state:
                model._check_state(message)
                continue
            try:
                reply = parse_reply(message.payload)
            except MessageError as error:
                raise StonechatError(f"device {device!r} sent an answer that cannot be read: {error}") from None
            match reply:
                case ErrorReply():
                    raise model._error(reply)
                case Piece():
                    early[reply.seq] = reply.text
                    while due in early:
                        text = early.pop(due)
                        due, printed = due + 1, printed + len(text)
                        yield text
                case Final():
                    self.final = reply
                    if reply.text[printed:]:
                        yield reply.text[printed:]
                    return


def _next(heard: queue.SimpleQueue[Incoming], end_s: float) -> Incoming | None:
    while (left_s := end_s - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            return heard.get(timeout=min(left_s, 0.5))  # so that Ctrl-C is heard
    return None
