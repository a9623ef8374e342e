"""Who is in the fleet: what each device last published of itself, as the broker keeps it."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field, replace

from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.messages import HealthReport, Info, LinkAnswer, State
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError
from device_runtime.mqtt.topics import DevicePatterns, is_id, parse

__all__ = ["DeviceReport", "roll_call"]

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
    found: dict[str, DeviceReport] = {}
    lock = threading.Lock()
    last_s = time.monotonic()
    listening = threading.Event()

    def receive(message: Incoming) -> None:
        nonlocal last_s
        with lock:
            last_s = time.monotonic()
            _note(found, message)

    connection = Client(
        broker,
        f"{client or 'fleet'}-{secrets.token_hex(4)}",
        on_message=receive,
        on_subscribed=lambda _: listening.set(),
    )
    topics = DevicePatterns("+")
    connection.subscribe(*map(Subscription, (topics.state, topics.info, topics.health, topics.latest_of_links)))
    connection.connect()
    try:
        end_s = time.monotonic() + wait_s
        listening.wait(wait_s)
        last_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s and (whole_wait or now_s - last_s < QUIET_S):
            time.sleep(0.05)
    finally:
        connection.close()
    with lock:
        return dict(sorted(found.items()))


def _note(found: dict[str, DeviceReport], message: Incoming) -> None:
    parts = parse(message.topic)
    if parts is None or not is_id(parts.id):
        return
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
    except MessageError:
        pass  # a newer version may know it
    found[parts.id] = known
