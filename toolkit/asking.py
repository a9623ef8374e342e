"""The client's side of request and reply: ask a device, put the pieces in order, heal what was lost."""

from __future__ import annotations

import contextlib
import math
import queue
import secrets
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from device_runtime.errors import ConfigurationError, StonechatError, UnreachableError
from device_runtime.mqtt.client import BrokerAddress, Client, Incoming, Subscription
from device_runtime.mqtt.messages import DeviceState, ErrorReply, Final, Piece, Request, State, parse_reply
from device_runtime.mqtt.payload import MessageError
from device_runtime.mqtt.topics import DeviceTopics

__all__ = ["Question"]

STATE_WAIT_S = 2.0  # a retained state follows the subscription at once
GRACE_S = 5.0  # beyond the deadline that the device keeps itself
_CLIENTS_FAULT = {"invalid_request", "unknown_model", "retained", "configuration", "context_overflow", "schema"}


class Question:
    """One request to one device. Use it as a context manager; iterate `pieces`, then read `final`."""

    final: Final

    def __init__(
        self, broker: BrokerAddress, device: str, request: Request, timeout_s: float, client: str | None = None
    ) -> None:
        """Prepare a question; `client` is who asks, as the broker knows it. It may read no other's answers."""
        self._broker, self._topics, self._request, self._timeout_s = broker, DeviceTopics(device), request, timeout_s
        session = secrets.token_hex(4)
        client_id = f"{client or 'ask'}-{session}"
        self._reply_to = self._topics.reply(client or client_id, session)
        self._correlation_data = secrets.token_bytes(8)
        self._heard: queue.Queue[Incoming] = queue.Queue()
        self._client = Client(broker, client_id, on_message=self._heard.put)

    def __enter__(self) -> Self:
        self._client.subscribe(Subscription(self._reply_to), Subscription(self._topics.state))
        self._client.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def pieces(self) -> Iterator[str]:
        """Send the request; yield the answer's text in order, and set `final` at the end.

        Raises:
            UnreachableError: no such device is on the air, it is busy, or it fell silent.
            ConfigurationError: the device says that the request cannot be served as it is.
        """
        self._await_device()
        self._client.publish(
            self._topics.generate,
            self._request.to_json(),
            qos=1,
            response_topic=self._reply_to,
            correlation_data=self._correlation_data,
            expiry_s=math.ceil(self._timeout_s),
        )
        end_s = time.monotonic() + self._timeout_s + GRACE_S
        early: dict[int, str] = {}  # pieces whose forerunners are missing
        printed, due = 0, 0
        while True:
            message = self._hear(end_s)
            if message is None:
                raise UnreachableError(
                    f"device {self._topics.device!r} took the request but did not answer within {self._timeout_s:g} s. "
                    "Try again, or allow more with --timeout."
                )
            if message.topic == self._topics.state:
                self._check_state(message)
                continue
            try:
                reply = parse_reply(message.payload)
            except MessageError as e:
                raise StonechatError(
                    f"device {self._topics.device!r} sent an answer that cannot be read: {e}"
                ) from None
            match reply:
                case ErrorReply():
                    raise self._error(reply)
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

    def cancel(self) -> None:
        """Tell the device to stop."""
        self._client.publish(
            self._topics.cancel, b"{}", qos=1, response_topic=self._reply_to, correlation_data=self._correlation_data
        )
        self._client.flush()

    def _await_device(self) -> None:
        end_s = time.monotonic() + STATE_WAIT_S
        while (message := self._hear(end_s)) is not None:
            if message.topic == self._topics.state:
                return self._check_state(message)
        raise UnreachableError(
            f"no device {self._topics.device!r} is known to the broker at {self._broker}. "
            "Check the id, or start it with: stonechat serve"
        )

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

    def _hear(self, end_s: float) -> Incoming | None:
        while (left_s := end_s - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._heard.get(timeout=min(left_s, 0.5))
        return None

    def _error(self, reply: ErrorReply) -> StonechatError:
        text = f"device {self._topics.device!r} answers {reply.code}: {reply.message}"
        if reply.retry_after_ms is not None:
            text += f" Retry in {reply.retry_after_ms / 1000:.1f} s."
        if reply.code in ("busy", "unavailable"):
            return UnreachableError(text)
        return ConfigurationError(text) if reply.code in _CLIENTS_FAULT else StonechatError(text)
