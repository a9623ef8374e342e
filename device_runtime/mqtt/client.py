"""A thin layer over paho-mqtt: one connection that keeps itself up.

It adds what paho leaves to its users: a broker URL, TCP_NODELAY (paho leaves Nagle on, which more than doubles the
time to a first token), a last will, an offline queue that drops the oldest (paho's drops the newest), subscriptions
that survive a reconnect, a limit to what the broker may send, and errors that say what to do.

Callbacks run in paho's network thread: they must not block. `publish` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.mqtt.address import (
    PASSWORD_VARIABLE,
    BrokerAddress,
    reason,
)
from device_runtime.mqtt.no_connection import no_connection
from device_runtime.mqtt.packets import Capabilities, Incoming, Subscription, Will
from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES
from device_runtime.mqtt.tolerant_paho import TolerantClient

__all__ = ["Client"]

KEEPALIVE_S = 15  # a device without power is lost after one and a half of these
MAX_PACKET_BYTES = MAX_PAYLOAD_BYTES + 16_384  # a payload, its topic and its properties; more is not taken off the wire
RECEIVE_MAXIMUM = 200  # messages that the broker may send ahead of our confirmations
OFFLINE_MESSAGES = 100  # what waits for the connection to come back
LAG_MESSAGES = 8
SESSION_TAKEN_OVER = 0x8E  # MQTT 5.0, section 3.14.2.1
CUT_OFF = 2  # connections in one `connect` that end before the broker's answer: it does not want us. One may be chance
_REFUSED_FOR_GOOD = {0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C}  # protocol, client id, password, authorization, ban, method

_RETAIN_NOT_SUPPORTED, _QOS_NOT_SUPPORTED = 0x9A, 0x9B  # MQTT 5, section 3.2.2.2: a last will asks for both
_UNSPECIFIED = 0x80  # MQTT 5, section 3.14.2.1
_NOT_AUTHORIZED = 0x87  # MQTT 5, section 3.4.2.1
_HEADER_BYTES = 600  # of a packet, at most: its fixed header and our properties

log = logging.getLogger("stonechat.mqtt")


@dataclass(frozen=True)
class _Outgoing:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties | None


class Client:
    """One connection to a broker."""

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        *,
        on_message: Callable[[Incoming], None],
        on_subscribed: Callable[[bool], None] | None = None,
        on_connection: Callable[[bool, str], None] | None = None,
        on_oversized: Callable[[str, int], None] | None = None,
        will: Will | None = None,
    ) -> None:
        """Prepare a connection; `connect` opens it.

        Args:
            on_subscribed: called after each (re)connect, once the broker has confirmed every subscription, with whether
                there are any.
            on_connection: called with True on connect and False, with the reason, on disconnect, and where an attempt
                to come back fails for another reason than was said last.
            on_oversized: called with the topic and the bytes of a payload that was dropped. MQTT 5 brokers drop it
                themselves; an MQTT 3.1.1 connection has no way to send them.
        """
        self.broker = broker
        self._on_message, self._on_subscribed, self._on_connection = on_message, on_subscribed, on_connection
        self._on_oversized = on_oversized
        self._subscriptions: list[Subscription] = []
        self._unconfirmed: set[int] = set()
        self._offline: deque[_Outgoing] = deque(maxlen=OFFLINE_MESSAGES)
        self._unacknowledged: deque[paho.MQTTMessageInfo] = deque(maxlen=OFFLINE_MESSAGES)
        self._unsent: deque[paho.MQTTMessageInfo] = deque(maxlen=LAG_MESSAGES)
        self._lock = threading.Lock()
        self._to_confirm: deque[tuple[paho.MQTTMessageInfo, Callable[[str], None]]] = deque()
        self._refused_here: deque[tuple[Callable[[str], None], str]] = deque()  # what this broker cannot take
        self._turned_down: dict[int, str] = {}  # packet ids of what the broker did not take (MQTT 5), and why
        self._answered = threading.Event()  # the first CONNACK is here
        self._refusal: tuple[int, str] | None = None  # why the broker did not take us
        self.takeover = threading.Event()  # another client uses our client id
        self.forbidden = threading.Event()  # a message of ours was dropped for want of rights; MQTT 5 brokers say so
        self.connections = 0  # so many were there, this one included
        self.capabilities = Capabilities()  # of the broker, from the first connection on
        self._network: threading.Thread | None = None  # paho's, once it has called us
        self._closed = False
        self._told = ""  # why there is no connection, as it was last said
        self._cut_off = 0  # connections that have ended before the broker's answer
        self._v5 = broker.protocol == "5"
        self._will = will
        self._paho = TolerantClient(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5 if self._v5 else paho.MQTTv311,
            clean_session=None if self._v5 else True,
        )
        self._paho.reconnect_delay_set(1, random.randint(20, 40))  # so that a fleet does not come back as one
        self._paho.on_socket_open = _disable_nagle
        self._paho.on_connect = self._guarded(self._connected)
        self._paho.on_disconnect = self._guarded(self._disconnected)
        self._paho.on_connect_fail = self._guarded(self._not_connected)
        self._paho.on_subscribe = self._guarded(self._subscribed)
        self._paho.on_message = self._guarded(self._received)
        self._paho.on_publish = self._guarded(self._published)
        if broker.user is not None:
            self._paho.username_pw_set(broker.user, broker.password)
        if broker.tls:
            self._paho.tls_set_context(broker.certificates.context())
        if will:
            self._paho.will_set(will.topic, will.payload, qos=will.qos, retain=will.retain)

    def connect(self, timeout_s: float = 5.0) -> None:
        """Connect, and stay connected until `close`. What could not connect may try again.

        Raises:
            UnreachableError: nobody answers there within `timeout_s`, or not as an MQTT broker does.
            ConfigurationError: the broker refuses the user, the client id or the protocol.
        """
        try:
            self._open(timeout_s)
        except (OSError, ValueError) as error:
            raise no_connection(self.broker, error) from None
        self._paho.loop_start()
        if not self._answered.wait(timeout_s):
            self.close(0)
            if self.broker.tls and self._cut_off >= CUT_OFF:
                raise ConfigurationError(
                    f"the broker at {self.broker} closes the connection before it begins; it may want a certificate "
                    "of its own authority (certs in the fleet file, --certs)."
                )
            raise UnreachableError(
                f"{self.broker} accepts connections but did not answer as an MQTT broker within {timeout_s:g} s. "
                "Check the port (1883 is MQTT, 8883 is MQTT with TLS and needs mqtts://)."
            )
        if self._refusal:
            code, why = self._refusal
            self.close(0)
            if self._lower_will(code):
                return self.connect(timeout_s)
            if code in _REFUSED_FOR_GOOD:
                raise ConfigurationError(
                    f"the broker at {self.broker} refuses this client: {why}. Check the user in the broker URL, "
                    f"its password (--password-file or {PASSWORD_VARIABLE}) and the broker's MQTT version."
                )
            raise UnreachableError(f"the broker at {self.broker} is not ready: {why}. Try again later.")
        return None

    def _lower_will(self, code: int) -> bool:
        """Ask for less with the last will, if that is what the broker refused; False if there is nothing to lower."""
        if self._will is None or code not in (_RETAIN_NOT_SUPPORTED, _QOS_NOT_SUPPORTED):
            return False
        retain = self._will.retain and code != _RETAIN_NOT_SUPPORTED
        qos = 0 if code == _QOS_NOT_SUPPORTED else self._will.qos
        lowered = replace(self._will, retain=retain, qos=qos)
        if lowered == self._will:
            return False
        self._will = lowered
        self._paho.will_set(lowered.topic, lowered.payload, qos=lowered.qos, retain=lowered.retain)
        return True

    def _open(self, timeout_s: float) -> None:
        self._answered.clear()
        self._refusal, self._cut_off, self._closed = None, 0, False
        self._paho.connect_timeout = timeout_s
        properties = None
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
        clean_start = True if self._v5 else paho.MQTT_CLEAN_START_FIRST_ONLY
        try:
            self._paho.connect(
                self.broker.host, self.broker.port, KEEPALIVE_S, clean_start=clean_start, properties=properties
            )
        except BaseException:
            self._paho.disconnect()  # or paho would take itself for connecting, and refuse to try again
            raise

    def subscribe(self, *subscriptions: Subscription) -> None:
        """Subscribe now and after each reconnect. A filter that is subscribed to twice replaces the first."""
        with self._lock:
            self._subscriptions += subscriptions
            if self._paho.is_connected():
                self._send_subscriptions(list(subscriptions))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Take a subscription back, now and for each reconnect."""
        with self._lock:
            self._subscriptions = [s for s in self._subscriptions if s.filter != subscription.filter]
            if self._paho.is_connected():
                self._paho.unsubscribe(subscription.filter)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        expiry_s: int | None = None,
        on_confirmed: Callable[[str], None] | None = None,
    ) -> bool:
        """Publish; while offline, QoS 1 waits in a bounded queue that drops the oldest and QoS 0 is lost.

        Args:
            on_confirmed: called by `tell_confirmed` once the broker has answered for the message (QoS 1), with why it
                did not take it: empty when it did. Such a message does not wait here while offline, because its sender
                keeps it.

        Returns:
            Whether it was sent, or will be.
        """
        properties = None
        if self._v5 and not (response_topic is None and correlation_data is None and expiry_s is None):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if response_topic is not None:
                properties.ResponseTopic = response_topic
            if correlation_data is not None:
                properties.CorrelationData = correlation_data
            if expiry_s is not None:
                properties.MessageExpiryInterval = expiry_s
        message = _Outgoing(topic, payload, qos, retain, properties)
        with self._lock:
            if not self._paho.is_connected():
                if qos > 0 and on_confirmed is None:
                    self._offline.append(message)
                    return True
                return False
        limit = self.capabilities.max_packet_bytes
        if limit is not None and len(payload) + _HEADER_BYTES + len(topic.encode()) > limit:
            why = f"it has {len(payload)} bytes, and the broker takes packets of {limit}"
            log.warning("a message is not sent: %s", why)
            if on_confirmed is not None:
                self._refused_here.append((on_confirmed, why))
            return on_confirmed is not None
        info = self._send(message)
        if on_confirmed is not None:
            if message.qos > self.capabilities.max_qos:  # nothing will confirm it
                self._refused_here.append((on_confirmed, ""))
            else:
                self._to_confirm.append((info, on_confirmed))
        return True

    def tell_confirmed(self) -> None:
        """Call `on_confirmed` for what the broker has answered for since. For one thread.

        paho's own callback will not do: it comes while paho holds a lock that `publish` needs in other threads.
        """
        self._revive()
        while self._refused_here:
            on_confirmed, why = self._refused_here.popleft()
            on_confirmed(why)
        for _ in range(len(self._to_confirm)):
            info, on_confirmed = self._to_confirm.popleft()
            if info.is_published():
                on_confirmed(self._turned_down.get(info.mid, ""))
            else:
                self._to_confirm.append((info, on_confirmed))

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait until the broker has confirmed everything published before with QoS 1."""
        end_s = time.monotonic() + timeout_s
        for info in list(self._unacknowledged):
            try:
                info.wait_for_publish(max(0.0, end_s - time.monotonic()))
            except (RuntimeError, ValueError):  # paho could not send it
                return False
            if not info.is_published():
                return False
        return True

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is queued, then disconnect: the broker discards the last will."""
        if timeout_s > 0 and self._paho.is_connected():
            self.flush(timeout_s)
        self._closed = True
        self._paho.disconnect()
        self._paho.loop_stop()

    def _revive(self) -> None:
        """Start the network thread again if an error has ended it: without it this client is deaf."""
        if self._closed or self._network is None or self._network.is_alive() or self.takeover.is_set():
            return
        log.error("the network thread has ended; the connection is restarted")
        self._network = None
        self._paho.loop_stop()
        with contextlib.suppress(OSError):  # then the thread tries again
            self._paho.reconnect()
        self._paho.loop_start()

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """A callback whose errors restart the connection: paho's thread would end, and leave a process that is deaf."""

        def call(*arguments: Any) -> None:
            self._network = threading.current_thread()
            try:
                callback(*arguments)
            except Exception as error:
                log.error("%s in %s; the connection is restarted", type(error).__name__, callback.__name__)
                log.debug("details", exc_info=error)
                sock: Any = self._paho.socket()
                if sock is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

        return call

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._paho.is_connected()

    @property
    def lagging(self) -> bool:
        """Whether the socket lags: it has not yet taken the last few messages of QoS 0."""
        while self._unsent and _left(self._unsent[0]):
            self._unsent.popleft()
        return len(self._unsent) >= LAG_MESSAGES

    def _send(self, message: _Outgoing) -> paho.MQTTMessageInfo:
        qos, retain = min(message.qos, self.capabilities.max_qos), message.retain and self.capabilities.retain
        info = self._paho.publish(message.topic, message.payload, qos, retain, message.properties)
        if qos > 0:
            if info.rc == paho.MQTT_ERR_NO_CONN:  # it went just now; paho keeps the message, but `info` raises for ever
                info.rc = paho.MQTT_ERR_SUCCESS
            self._unacknowledged.append(info)
        else:
            self._unsent.append(info)
        return info

    def _send_subscriptions(self, subscriptions: list[Subscription]) -> None:
        for s in subscriptions:
            if why := self.capabilities.refuses(s):
                log.error("%s is not subscribed to: %s", s.filter, why)
                continue
            qos = min(s.qos, self.capabilities.max_qos)
            if self._v5:
                properties = None
                if s.id is not None and self.capabilities.subscription_ids:
                    properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
                    properties.SubscriptionIdentifier = s.id
                handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
                if not s.replay_retained:
                    handling = SubscribeOptions.RETAIN_DO_NOT_SEND
                options = SubscribeOptions(qos=qos, retainAsPublished=s.tell_retained, retainHandling=handling)
                _, mid = self._paho.subscribe(s.filter, options=options, properties=properties)
            else:
                _, mid = self._paho.subscribe(s.filter, qos=qos)
            if mid is not None:
                self._unconfirmed.add(mid)

    def _connected(self, client: paho.Client, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            self._refusal = (code.value, str(code))
            self._answered.set()
            self._tell(False, str(code))
            return
        self._refusal = None
        self.connections += 1
        if self._v5:
            self.capabilities = Capabilities.of(properties)
        with self._lock:
            self._unconfirmed.clear()
            self._send_subscriptions(self._subscriptions)
            waiting = list(self._offline)
            self._offline.clear()
        for message in waiting:
            self._send(message)
        self._tell(True, "")
        self._answered.set()
        if not self._unconfirmed and self._on_subscribed:
            self._on_subscribed(bool(self._subscriptions))

    def _disconnected(self, client: paho.Client, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        self._cut_off += not self._answered.is_set()
        if code.value == SESSION_TAKEN_OVER:
            self.takeover.set()
            client.disconnect()  # or the two would throw each other out for ever
        lost = code.value == _UNSPECIFIED and not flags.is_disconnect_packet_from_server  # as paho calls it
        self._tell(False, "the connection broke off" if lost else str(code))

    def _not_connected(self, client: paho.Client, userdata: Any) -> None:
        """An attempt to come back has failed; paho calls this while it handles the error."""
        error = sys.exception()
        if isinstance(error, Exception) and (why := reason(error)) != self._told:
            self._tell(False, why)

    def _subscribed(self, client: paho.Client, userdata: Any, mid: int, codes: list[Any], properties: Any) -> None:
        for code in codes:
            if code.is_failure:
                log.error("the broker refuses a subscription: %s", code)
        with self._lock:
            self._unconfirmed.discard(mid)
            complete = not self._unconfirmed
        if complete and self._on_subscribed:
            self._on_subscribed(True)

    def _published(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        self._acknowledge_now()
        if reason.is_failure:
            self._turned_down[mid] = str(reason)
        else:
            self._turned_down.pop(mid, None)
        if self._v5 and reason.value == _NOT_AUTHORIZED:
            self.forbidden.set()

    def _acknowledge_now(self) -> None:
        """Confirm what has come to the broker's TCP at once, not after Linux's usual 40 ms.

        mosquitto leaves Nagle on, so it holds a small message back until the one before is confirmed; after the
        confirmation of a request, that would be the first piece of its answer.
        """
        sock: Any = self._paho.socket()
        if sock is not None:
            with contextlib.suppress(OSError):  # it was closed just now
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _received(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._acknowledge_now()
        try:
            topic = message.topic
        except UnicodeDecodeError:
            log.warning("dropped a message whose topic is not UTF-8")
            return
        if len(message.payload) > MAX_PACKET_BYTES:
            if self._on_oversized:
                self._on_oversized(topic, len(message.payload))
            return
        p = message.properties
        incoming = Incoming(
            topic=topic,
            payload=bytes(message.payload),
            retained=message.retain,
            response_topic=getattr(p, "ResponseTopic", None),
            correlation_data=getattr(p, "CorrelationData", None),
            expiry_s=getattr(p, "MessageExpiryInterval", None),
            subscription_ids=tuple(getattr(p, "SubscriptionIdentifier", ())),
        )
        try:
            self._on_message(incoming)
        except Exception as e:  # this one message is lost, and no reason to lose the connection
            log.error("a message on %s could not be handled: %s", incoming.topic, type(e).__name__)
            log.debug("details", exc_info=e)

    def _tell(self, connected: bool, reason: str) -> None:
        self._told = reason
        if self._on_connection:
            self._on_connection(connected, reason)


def _left(info: paho.MQTTMessageInfo) -> bool:
    """Whether a message of QoS 0 waits no more: it was sent, or lost with its connection."""
    try:
        return info.is_published()
    except RuntimeError:
        return True


def _disable_nagle(client: paho.Client, userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
