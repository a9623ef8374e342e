"""Who is in the fleet: what each device last published of itself, as the broker keeps it."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from device_runtime.client.exchange import RETURNS_S
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.messages import HealthReport, Info, LinkAnswer, State
from device_runtime.mqtt.ota_messages import Report, parse_report
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError
from device_runtime.mqtt.topics import ANNOUNCE, DevicePatterns, is_id, parse

__all__ = ["DeviceReport", "FleetWatch", "roll_call"]

WAIT_S = 2.0  # retained messages follow the subscription at once; this is for slow lines
QUIET_S = 0.5  # without another message: the broker has sent all that it keeps


@dataclass(frozen=True)
class DeviceReport:
    """What is known of one device; None where it has published nothing, or nothing that this version can read."""

    device: str
    state: State | None = None
    info: Info | None = None
    health: HealthReport | None = None  # not retained: once a minute
    links: dict[str, LinkAnswer] = field(default_factory=dict)  # the last answer of each link
    update: Report | None = None  # how far an update is; not retained


class FleetWatch:
    """What devices publish of themselves, from now on, and what the broker keeps of before. For any thread."""

    def __init__(
        self,
        broker: BrokerAddress,
        *,
        client: str | None = None,
        device: str = "+",
        updates: bool = False,
        on_news: Callable[[DeviceReport, str], None] = lambda report, kind: None,
        on_connection: Callable[[bool, str], None] = lambda connected, reason: None,
    ) -> None:
        """Prepare; `open` connects.

        Args:
            client: who asks, as the broker knows it.
            device: the only one that is of interest; `+` is any.
            updates: receive `out/ota` as well, which an access list may not allow.
            on_news: gets a device and the kind of message that came: state, info, health, link or ota. Called in the
                network thread.
            on_connection: whether there is a broker, and why not. Called in the network thread.
        """
        self._found: dict[str, DeviceReport] = {}
        self._lock = threading.Lock()
        self._on_news, self._on_connection = on_news, on_connection
        self.last_s = time.monotonic()  # when the last message came
        self.listening = threading.Event()
        self._connected_s = -math.inf  # since when there is this connection, on the monotonic clock
        self._client = Client(
            broker,
            f"{client or 'fleet'}-{secrets.token_hex(4)}",
            on_message=self._receive,
            on_subscribed=self._subscribed,
            on_connection=self._connection_changed,
        )
        topics = DevicePatterns(device)
        filters = [topics.state, topics.info, topics.health, topics.latest_of_links]
        self._client.subscribe(*map(Subscription, filters + [topics.ota_report] * updates))
        self._whom = b"" if device == "+" else device.encode()

    def open(self) -> None:
        """Connect.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses this client, or does not prove who it is.
        """
        self._client.connect()

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def settle(self, wait_s: float = WAIT_S, whole_wait: bool = False) -> None:
        """Wait until the broker has sent all that it keeps, at most so long."""
        end_s = time.monotonic() + wait_s
        self.listening.wait(wait_s)
        self.last_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s and (whole_wait or now_s - self.last_s < QUIET_S):
            time.sleep(0.05)

    def devices(self) -> dict[str, DeviceReport]:
        """All that is known, by id. States are from the connection that there is: without one, nobody knows."""
        with self._lock:
            return dict(sorted(self._found.items()))

    def _subscribed(self, listening: bool) -> None:
        """Have devices say that they are there: the node of a cluster may keep nothing of those at another."""
        self._client.publish(ANNOUNCE, self._whom)
        self.listening.set()

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._client.connected

    @property
    def is_new(self) -> bool:
        """Whether the connection is so new that the broker may have been restarted, and devices not be back yet."""
        return self.connected and time.monotonic() - self._connected_s < RETURNS_S

    def _connection_changed(self, connected: bool, reason: str) -> None:
        if connected:
            self._connected_s = time.monotonic()
        else:
            with self._lock:
                self._found = {device: replace(report, state=None) for device, report in self._found.items()}
        self._on_connection(connected, reason)

    def _receive(self, message: Incoming) -> None:
        with self._lock:
            self.last_s = time.monotonic()
            noted = _note(self._found, message)
        if noted is not None:
            self._on_news(*noted)


def roll_call(
    broker: BrokerAddress, *, client: str | None = None, wait_s: float = WAIT_S, whole_wait: bool = False
) -> dict[str, DeviceReport]:
    """Every device that the broker knows, by id.

    Args:
        client: who asks, as the broker knows it.
        wait_s: at most so long; a device's health comes once a minute.
        whole_wait: wait so long in any case; else until nothing has come for a moment.

    Raises:
        UnreachableError: there is no broker.
        ConfigurationError: the broker refuses this client, or does not prove who it is.
    """
    watch = FleetWatch(broker, client=client)
    watch.open()
    try:
        watch.settle(wait_s, whole_wait)
        return watch.devices()
    finally:
        watch.close()


def _note(found: dict[str, DeviceReport], message: Incoming) -> tuple[DeviceReport, str] | None:
    """Whose message it was, and of which kind; None where it says nothing that can be read."""
    parts = parse(message.topic)
    if parts is None or not is_id(parts.id):
        return None
    known = found.get(parts.id, DeviceReport(parts.id))
    try:
        match parts.kind:
            case "state":
                known = replace(known, state=State.from_json(message.payload))
            case "info":
                known = replace(known, info=Info.from_json(message.payload))
            case "health":
                known = replace(known, health=HealthReport.from_json(message.payload))
            case "link":
                known = replace(known, links={**known.links, parts.link: LinkAnswer.from_json(message.payload)})
            case "ota":
                reported = parse_report(message.payload)
                if not isinstance(reported, Report):
                    return None
                known = replace(known, update=reported)
    except MessageError:
        found.setdefault(parts.id, known)
        return None  # a newer version may know it
    found[parts.id] = known
    return known, parts.kind
