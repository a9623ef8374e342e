"""One connection that asks: sends requests, and sorts what comes back to the session that waits for it."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from device_runtime.client.last_wills import doubted_s, is_lost
from device_runtime.engine.schema.identity import canonical_schema
from device_runtime.errors import (
    CannotRedactError,
    ConfigurationError,
    ContextOverflowError,
    IncompleteError,
    LinkError,
    SchemaError,
    StonechatError,
    UnfamiliarError,
    UnreachableError,
)
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.messages import ErrorReply, Request, State, parse_reply
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES, MessageError, dump
from device_runtime.mqtt.strict_json import parse as parse_json
from device_runtime.mqtt.topics import ANNOUNCE, DeviceTopics, PoolTopics, parse

__all__ = ["GRACE_S", "Exchange", "Received", "Session", "Signal", "to_error"]

GRACE_S = 5.0  # beyond the deadline that a device keeps itself
ASKED_AFTER_S = 0.5  # without a device's retained state, which follows the subscription at once, it is asked for it
MAX_ABANDONED = 256  # sessions that were given up, and are still cancelled at the device that turns out to have them
_NOT_OPEN = "the connection is not open; enter the model's context first, or call `open`."
_KNOWN = (CannotRedactError, ContextOverflowError, IncompleteError, LinkError, SchemaError, UnfamiliarError)
_CLIENTS_FAULT = {"invalid_request", "unknown_model", "retained", "configuration"}


class Signal(Enum):
    """What a session receives besides messages."""

    RECONNECTED = "the connection was gone; what was sent meanwhile may be lost"
    CLOSED = "the connection was closed on purpose"
    WAKE = "look whether there is something to do"


Received = Incoming | Signal


@dataclass(frozen=True, eq=False)
class Session:
    """One request on its way."""

    reply_to: str
    correlation_data: bytes
    heard: queue.SimpleQueue[Received] = field(default_factory=queue.SimpleQueue)

    def next(self, end_s: float) -> Received | None:
        """What comes next; None when nothing comes until `end_s` on the monotonic clock.

        Raises:
            UnreachableError: the connection was closed.
        """
        while (left_s := end_s - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                heard = self.heard.get(timeout=min(left_s, 0.5))  # so that Ctrl-C is noticed
                if heard is Signal.CLOSED:
                    raise UnreachableError("the connection was closed before the answer was whole; ask again.")
                return heard
        return None


class Exchange:
    """A connection to a broker, and the device or the pool that it asks. May be used from any thread."""

    def __init__(self, broker: BrokerAddress, topics: DeviceTopics | PoolTopics, client: str | None) -> None:
        """Prepare a connection; `open` opens it."""
        self.broker, self.topics = broker, topics
        connection = secrets.token_hex(4)
        self._name, self._named = client or f"ask-{connection}", client is not None
        self._sessions: dict[str, Session] = {}  # by reply topic
        self._abandoned: OrderedDict[str, Session] = OrderedDict()
        self._states: dict[str, State | None] = {}  # of the devices that are watched; None: it says what we cannot read
        self._watched: set[str] = set()
        self._wills: dict[str, tuple[float, bool]] = {}  # of who is lost: see `_just_lost`
        self._doubted: set[str] = set()  # whose state is from before the connection was gone
        self._news = threading.Condition()
        self._open = False
        self._back = False  # connected again, but not yet subscribed
        self.heard_anyone = False  # whether this connection ever had a reply
        self._client = Client(
            broker,
            f"{client or 'ask'}-{connection}",
            on_message=self._receive,
            on_subscribed=self._subscribed,
            on_connection=self._connection_changed,
        )
        self._client.subscribe(Subscription(topics.replies(self._name)))
        if isinstance(topics, DeviceTopics):
            self.watch(topics.device)

    def open(self) -> None:
        """Connect.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses this client, or does not prove who it is.
        """
        self._client.connect()
        self._open = True

    def close(self) -> None:
        """Disconnect; a session that still waits for an answer ends with an error, and the device that answers is."""
        self._open = False
        for session in list(self._sessions.values()):
            session.heard.put(Signal.CLOSED)
            if isinstance(self.topics, DeviceTopics):
                self.cancel(session, self.topics.device)
        self._client.close()

    def send(self, request: Request, timeout_s: float) -> Session:
        """Publish a request that is worth an answer for so long; it has a session of its own.

        Raises:
            ConfigurationError: it is larger than a device reads.
            UnreachableError: the connection is not open.
        """
        reply_to = self.topics.reply(self._name, secrets.token_hex(8))
        session = Session(reply_to, secrets.token_bytes(8))
        payload = self._payload(request, session)
        self._sessions[reply_to] = session
        if not self._open:  # looked at after the session is known to `close`
            self.forget(session)
            raise UnreachableError(_NOT_OPEN)
        self._publish(payload, session, timeout_s)
        return session

    def send_again(self, session: Session, request: Request, timeout_s: float) -> None:
        """Publish a request once more, when it or its answer may be lost: it is the same request to the device."""
        self._publish(self._payload(request, session), session, timeout_s)

    def _payload(self, request: Request, session: Session) -> bytes:
        payload = request.to_json()
        if self._address_in_payload():
            fields = {**json.loads(payload), "reply_to": session.reply_to, "id": session.reply_to.rpartition("/")[2]}
            if request.schema is not None:  # as a board recognizes it, which keeps no other form of it
                fields["schema"] = json.loads(canonical_schema(request.schema))
            payload = dump(fields)
        if len(payload) > MAX_PAYLOAD_BYTES:  # a broker drops it, if it is much larger, without a word
            raise ConfigurationError(
                f"the request has {len(payload)} bytes; a device reads at most {MAX_PAYLOAD_BYTES}. Shorten the prompt."
            )
        return payload

    def _publish(self, payload: bytes, session: Session, timeout_s: float) -> None:
        in_payload = self._address_in_payload()
        self._client.publish(
            self.topics.generate_by(self._name) if self._named else self.topics.generate,
            payload,
            qos=1,
            response_topic=None if in_payload else session.reply_to,
            correlation_data=None if in_payload else session.correlation_data,
            expiry_s=math.ceil(timeout_s),
        )

    def query(self, topic: str, fields: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Publish a query that has one answer, and wait for it.

        Args:
            topic: of the query, without a client's name.

        Raises:
            ConfigurationError: `fields` cannot be written as JSON in UTF-8.
            UnreachableError: nothing came in time.
            StonechatError: the answer is an error.
        """
        number = secrets.token_hex(8)
        reply_to = self.topics.reply(self._name, number)
        old = {"reply_to": reply_to, "id": number} if self.broker.protocol == "3.1.1" else {}
        try:
            payload = dump({**fields, **old})
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"{error.object[error.start]!r} in what is sent is no character; give it in UTF-8."
            ) from None
        except ValueError:
            raise ConfigurationError("JSON has no NaN and no infinite numbers; send others.") from None
        session = self._sessions[reply_to] = Session(reply_to, secrets.token_bytes(8))
        try:
            self._client.publish(
                f"{topic}/{self._name}" if self._named else topic,
                payload,
                qos=1,
                response_topic=reply_to,
                correlation_data=session.correlation_data,
                expiry_s=math.ceil(timeout_s),
            )
            end_s = time.monotonic() + timeout_s
            while (message := session.next(end_s)) is not None:
                if not isinstance(message, Signal) and message.topic == reply_to:
                    value: Mapping[str, Any] = parse_json(message.payload)
                    if "error" in value:
                        reply = parse_reply(message.payload)
                        assert isinstance(reply, ErrorReply)
                        raise to_error(f"device {parts.id!r}" if (parts := parse(topic)) else topic, reply)
                    return value
        finally:
            self.forget(session)
        raise UnreachableError(f"nothing answers on {topic} within {timeout_s:g} s; is the device online?")

    def cancel(self, session: Session, device: str) -> None:
        """Tell a device to stop answering."""
        number = session.reply_to.rpartition("/")[2]
        in_payload = self._address_in_payload()
        fields = {"reply_to": session.reply_to, "id": number} if in_payload else {}
        self._client.publish(
            DeviceTopics(device).cancel_by(self._name) if self._named else DeviceTopics(device).cancel,
            dump(fields),
            qos=1,
            response_topic=None if in_payload else session.reply_to,
            correlation_data=None if in_payload else session.correlation_data,
        )

    def _address_in_payload(self) -> bool:
        """Whether the answer's address has to be in the payload: we or the device that is asked speak MQTT 3.1.1."""
        state = self._states.get(self.topics.device) if isinstance(self.topics, DeviceTopics) else None
        return self.broker.protocol == "3.1.1" or (state is not None and state.mqtt == 3)

    def forget(self, session: Session) -> None:
        """Ignore it from now on."""
        self._sessions.pop(session.reply_to, None)

    def abandon(self, session: Session) -> None:
        """Ignore it from now on; a device that takes it up later is asked to stop."""
        self.forget(session)
        self._abandoned[session.reply_to] = session
        while len(self._abandoned) > MAX_ABANDONED:
            self._abandoned.popitem(last=False)

    def watch(self, device: str) -> State | None:
        """Receive a device's states from now on, in every session; its last one, if it is known already."""
        with self._news:
            known = self._states.get(device)
            if device in self._watched:
                return known
            self._watched.add(device)
        self._client.subscribe(Subscription(DeviceTopics(device).state))
        return None

    def await_state(self, device: str, timeout_s: float) -> State | None:
        """The state of a watched device; None when it says what we cannot read.

        Raises:
            UnreachableError: the broker knows no such device, or the connection is not open.
        """
        if not self._open:
            raise UnreachableError(_NOT_OPEN)
        with self._news:
            known = self._news.wait_for(lambda: device in self._states, min(ASKED_AFTER_S, timeout_s))
            if not known:  # a cluster's node may keep nothing of a device at another
                self._client.publish(ANNOUNCE, device.encode())
                known = self._news.wait_for(lambda: device in self._states, max(0.0, timeout_s - ASKED_AFTER_S))
            if not known and not self.connected:
                raise UnreachableError(f"{self.without_broker} Try again when it is.")
            if not known:
                raise UnreachableError(
                    f"no device {device!r} is known to the broker at {self.broker}. "
                    "Check the id, or start it with: stonechat serve"
                )
            return self._states[device]

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._client.connected

    @property
    def without_broker(self) -> str:
        """A sentence for when there is none."""
        return f"the connection to the broker at {self.broker} is gone, and it is not back yet."

    def doubts(self, device: str) -> bool:
        """Whether a device's last state is from before the connection was gone, or may be the broker's own end."""
        with self._news:
            return device in self._doubted or self._just_lost(device)

    def left_behind(self, device: str) -> bool:
        """Whether nothing of a device was received since the connection was gone."""
        with self._news:
            return device in self._doubted

    def await_return(self, device: str, timeout_s: float) -> bool:
        """Wait until a device's state is not doubted; whether it is so.

        Raises:
            UnreachableError: the connection is not open.
        """
        with self._news:
            sure = self._news.wait_for(lambda: not self.doubts(device) or not self._open, timeout_s)
        if not self._open:
            raise UnreachableError(_NOT_OPEN)
        return sure

    def state_in(self, message: Incoming) -> tuple[str, State | None] | None:
        """Whose state a message reports, and which; None when it reports none."""
        parts = parse(message.topic)
        if parts is None or parts.kind != "state":
            return None
        try:
            return parts.id, State.from_json(message.payload)
        except MessageError:
            return parts.id, None  # a newer version may know it

    # the network thread

    def _connection_changed(self, connected: bool, reason: str) -> None:
        self._back = connected and self._client.connections > 1
        if not connected:
            with self._news:
                self._doubted |= {
                    device
                    for device, state in self._states.items()
                    if not is_lost(state) or self._just_lost(device, kept=False)
                }

    def _subscribed(self, listening: bool) -> None:
        if self._back:  # from here on nothing is missed
            self._back = False
            for session in list(self._sessions.values()):
                session.heard.put(Signal.RECONNECTED)
            if isinstance(self.topics, DeviceTopics):  # the broker may have forgotten what it kept of it
                self._client.publish(ANNOUNCE, self.topics.device.encode())

    def _receive(self, message: Incoming) -> None:
        if session := self._sessions.get(message.topic):
            self.heard_anyone = True
            session.heard.put(message)
        elif session := self._abandoned.get(message.topic):
            self._still_answering(session, message)
        elif reported := self.state_in(message):
            self._note(*reported, message.retained)
            if message.retained and is_lost(reported[1]):
                self._client.publish(ANNOUNCE, reported[0].encode())
            for session in list(self._sessions.values()):
                session.heard.put(message)

    def _note(self, device: str, state: State | None, retained: bool) -> None:
        with self._news:
            self._states[device] = state
            if not (retained and is_lost(state)):  # a broker that was stopped may have kept its own last word
                self._doubted.discard(device)
            self._wills.pop(device, None)
            if is_lost(state):
                self._wills[device] = time.monotonic() + doubted_s(state, retained), retained
            self._news.notify_all()

    def _just_lost(self, device: str, kept: bool = True) -> bool:
        """Whether it is lost, and that is still doubted; with `kept`, also where the broker has kept it."""
        until_s, was_kept = self._wills.get(device, (-math.inf, False))
        return time.monotonic() < until_s and (kept or not was_kept)

    def _still_answering(self, session: Session, message: Incoming) -> None:
        with contextlib.suppress(MessageError):
            device = parse_reply(message.payload).device
            if device is not None:
                self._abandoned.pop(session.reply_to, None)
                self.cancel(session, device)


def to_error(who: str, reply: ErrorReply) -> StonechatError:
    """The exception for an error that a device has replied."""
    text = f"{who} answers {reply.code}: {reply.message}"
    if reply.retry_after_ms is not None:
        text += f" Retry in {reply.retry_after_ms / 1000:.1f} s."
    if reply.code in ("busy", "unavailable"):
        return UnreachableError(text, retry_after_ms=reply.retry_after_ms)
    for known in _KNOWN:
        if reply.code == known.code:
            return known(text)
    return ConfigurationError(text) if reply.code in _CLIENTS_FAULT else StonechatError(text)
