"""Delivers what must not be lost: from the disk to the broker, as often as it takes."""

from __future__ import annotations

import logging
import threading

from device_runtime.mqtt.client import Client
from device_runtime.mqtt.outbox import Kept, Outbox

__all__ = ["Delivery"]

log = logging.getLogger("stonechat.serve")


class Delivery:
    """An outbox and a connection. May be used from any thread."""

    def __init__(self, device: str, outbox: Outbox, client: Client) -> None:
        self._device, self._outbox, self._client = device, outbox, client
        self._lock = threading.Lock()
        self._under_way: set[int] = set()  # numbers of messages that paho has

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish: it is on the disk until the broker has it."""
        given_up = self._outbox.given_up
        self._send(self._outbox.put(topic, payload, retain=retain))
        if self._outbox.given_up > given_up:
            log.warning("the box of unsent answers is full; %d were given up so far", self._outbox.given_up)

    def resume(self) -> None:
        """After a (re)connect: send what waits."""
        for kept in self._outbox.waiting():
            self._send(kept)

    def _send(self, kept: Kept) -> None:
        with self._lock:
            if kept.number in self._under_way:  # paho sends it again after a reconnect
                return
            self._under_way.add(kept.number)

        def confirmed() -> None:
            self._outbox.done(kept.number)
            with self._lock:
                self._under_way.discard(kept.number)

        # By its number a reader knows a message that came twice: the confirmation of the first may have been lost.
        name = f"{self._device}-{kept.number}".encode()
        sent = self._client.publish(
            kept.topic, kept.payload, qos=1, retain=kept.retain, correlation_data=name, on_confirmed=confirmed
        )
        if not sent:
            with self._lock:
                self._under_way.discard(kept.number)
