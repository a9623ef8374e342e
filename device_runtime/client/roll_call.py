"""Who is in the fleet: what each device last published of itself, as the broker keeps it."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from device_runtime.client.last_wills import RETURNS_S, doubted_s
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
            on_news: gets a device and the kind of message that came: state, info, health, link or ota. A `lost` is
                reported once it is believed. Called in threads of the watch, one call at a time.
            on_connection: whether there is a broker, and why not. Called in the network thread.
        """
        self._found: dict[str, DeviceReport] = {}
        self._lock = threading.Lock()
        # until when a device's state is doubted, on the monotonic clock, and which; None: it has said nothing
        self._doubted: dict[str, tuple[float, State | None]] = {}
        self._timer: threading.Timer | None = None  # while somebody is doubted
        self._telling = threading.Lock()  # held from a change to the end of `on_news`, so that the last word stays it
        self._on_news, self._on_connection = on_news, on_connection
        self.last_s = time.monotonic()  # when the last message came
        self.listening = threading.Event()
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
        with self._lock:
            self._doubted.clear()
            if self._timer is not None:
                self._timer.cancel()

    def settle(self, wait_s: float = WAIT_S, whole_wait: bool = False) -> None:
        """Wait until the broker has sent all that it keeps, at most so long."""
        end_s = time.monotonic() + wait_s
        self.listening.wait(wait_s)
        self.last_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s and (whole_wait or now_s - self.last_s < QUIET_S):
            time.sleep(0.05)

    def await_returns(self) -> None:
        """Wait until no state is doubted: a broker that was restarted calls devices lost that are on their way back."""
        while self._doubted:
            time.sleep(0.05)

    def devices(self) -> dict[str, DeviceReport]:
        """All that is known, by id. States are from the connection that there is: without one, nobody knows.

        A `lost` is no state until it is believed, see `doubts`.
        """
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

    def doubts(self, device: str) -> bool:
        """Whether the broker may have been restarted, or be about to end, and a device not be back yet."""
        return device in self._doubted

    def _connection_changed(self, connected: bool, reason: str) -> None:
        with self._lock:
            self._doubted.clear()
            self._found = {device: replace(report, state=None) for device, report in self._found.items()}
            if connected:
                for device in self._found:
                    self._doubt(device, None, RETURNS_S)
        self._on_connection(connected, reason)

    def _receive(self, message: Incoming) -> None:
        with self._telling:
            with self._lock:
                self.last_s = time.monotonic()
                noted = self._note(message)
            if noted is not None:
                self._on_news(*noted)

    def _note(self, message: Incoming) -> tuple[DeviceReport, str] | None:
        """Whose message it was, and of which kind; None where it says nothing that can be read, or believed as yet."""
        parts = parse(message.topic)
        if parts is None or not is_id(parts.id):
            return None
        is_first = parts.id not in self._found
        known = self._found.setdefault(parts.id, DeviceReport(parts.id))
        try:
            match parts.kind:
                case "state":
                    until_s, _ = self._doubted.pop(parts.id, (math.inf, None))
                    state = State.from_json(message.payload)
                    if (for_s := doubted_s(state, message.retained)) > 0:
                        self._doubt(parts.id, state, min(for_s, until_s - time.monotonic()))
                        return (known, parts.kind) if is_first else None
                    known = replace(known, state=state)
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
            return None  # a newer version may know it
        self._found[parts.id] = known
        return known, parts.kind

    def _doubt(self, device: str, state: State | None, for_s: float) -> None:
        self._doubted[device] = time.monotonic() + for_s, state
        if self._timer is None:
            self._wait(for_s)

    def _wait(self, for_s: float) -> None:
        self._timer = threading.Timer(for_s, self._believe)
        self._timer.daemon = True
        self._timer.start()

    def _believe(self) -> None:
        """Report what nothing has contradicted for so long."""
        with self._telling:
            with self._lock:
                now_s = time.monotonic()
                due = {device: state for device, (when_s, state) in self._doubted.items() if when_s <= now_s}
                for device, state in due.items():
                    del self._doubted[device]
                    self._found[device] = replace(self._found[device], state=state)
                reports = [self._found[device] for device in due]
                self._timer = None
                if self._doubted:
                    self._wait(min(when_s for when_s, _ in self._doubted.values()) - now_s)
            for report in reports:
                self._on_news(report, "state")


def roll_call(
    broker: BrokerAddress, *, client: str | None = None, wait_s: float = WAIT_S, whole_wait: bool = False
) -> dict[str, DeviceReport]:
    """Every device that the broker knows, by id.

    Args:
        client: who asks, as the broker knows it.
        wait_s: at most so long, and until what the broker calls lost would be back; a device's health comes once a
            minute.
        whole_wait: wait so long in any case; else until nothing has come for a moment.

    Raises:
        UnreachableError: there is no broker.
        ConfigurationError: the broker refuses this client, or does not prove who it is.
    """
    watch = FleetWatch(broker, client=client)
    watch.open()
    try:
        watch.settle(wait_s, whole_wait)
        watch.await_returns()
        return watch.devices()
    finally:
        watch.close()
