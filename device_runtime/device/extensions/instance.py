"""Says that the device is there where somebody asks, and notices a second process that is the same device.

A client finds devices by what they have published retained. A cluster of brokers may give that at one node alone; so
the client asks, and each device publishes its state and what it is once more.

A broker ends a connection when another client comes with its client id, and not every broker gives the reason. Two
processes of one id then throw each other out for ever, which looks like a broker that restarts again and again. So a
process leaves its name in a retained message after each connect, with the number of that connect. The name of another
process, with a number that rises, is left by nobody but a second process that lives. Each of the two sees that of the
other, so what they have seen does not say which of them ends. When they started does: the later one ends.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence

from device_runtime.device.extension import Device, Extension, Route
from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.messages import Info
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError, dump, parse
from device_runtime.mqtt.topics import ANNOUNCE

__all__ = ["Instance"]

log = logging.getLogger("stonechat.serve")


class Instance(Extension):
    """Which process is the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._name = secrets.token_hex(8)
        self._since_ms = time.time_ns() // 1_000_000  # a board's clock may be wrong: it is then another one that ends
        self._connects = 0
        self._info: Info | None = None  # as it was published last
        self._other: tuple[str, int] | None = None  # the name and the number that were seen last
        self._told = False  # that there is another

    def routes(self) -> Sequence[Route]:
        """What was left there, at each subscription; and who asks."""
        return [
            Route(Subscription(self._device.topics.instance), self._receive),
            Route(Subscription(ANNOUNCE, tell_retained=True), self._asked),
        ]

    def announce(self, info: Info) -> None:
        """Leave the name of this process."""
        self._info = info
        self._connects += 1
        payload = dump({"instance": self._name, "connects": self._connects, "since_ms": self._since_ms})
        self._device.client.publish(self._device.topics.instance, payload, qos=1, retain=True)

    def _asked(self, message: Incoming) -> None:
        device, info = self._device, self._info
        meant = message.payload in (b"", device.config.device.encode())
        if message.retained or not meant or info is None or not device.limiter.admits("announcements"):
            return
        device.client.publish(device.topics.info, info.to_json(), qos=1, retain=True)
        device.lifecycle.repeat()

    def _receive(self, message: Incoming) -> None:
        try:
            value = parse(message.payload)
            name, connects = str(value["instance"]), int(value["connects"])
            since_ms = int(value.get("since_ms", 0))
        except (MessageError, KeyError, TypeError, ValueError):
            return  # an empty one, or of a version that is not known here
        if name == self._name:
            return
        if self._other is not None and self._other[0] == name and connects > self._other[1]:
            self._found_alive(later=(self._since_ms, self._name) > (since_ms, name))
        self._other = name, connects

    def _found_alive(self, *, later: bool) -> None:
        """A second process is this device, too; `later`: this one started after it."""
        config = self._device.config
        found = f"another process is {config.device!r} at the broker {config.broker}, and the two throw each other out"
        if later:
            self._device.lifecycle.fail(
                ConfigurationError(
                    f"{found}: is {config.device!r} running elsewhere? The one that started later ends, which is this "
                    "one. Stop the other, or give this one another id."
                )
            )
        elif not self._told:
            self._told = True
            log.warning("%s. It started later, and so it is the one that ends; give it another id.", found)
