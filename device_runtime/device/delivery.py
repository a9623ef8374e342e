"""Delivers what must not be lost: from the disk to the broker, as often as it takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from device_runtime.device.outbox import Kept, Outbox
from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.client import Client

__all__ = ["Delivery"]

log = logging.getLogger("stonechat.serve")


class Delivery:
    """An outbox and a connection. May be used from any thread."""

    def __init__(self, device: str, outbox: Outbox, client: Client, on_lost: Callable[[str], object]) -> None:
        """`on_lost` is called for each message that was given up, with the reason."""
        self._device, self._outbox, self._client, self._on_lost = device, outbox, client, on_lost
        self._lock = threading.Lock()
        self._sent_up_to = 0  # the highest number that paho has, or had: it sends again what is not confirmed

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> str:
        """Publish: it is on the disk until the broker has it.

        Returns:
            Why it is not on the disk; empty when it is. It is published all the same.
        """
        given_up = self._outbox.given_up
        try:
            self._outbox.put(topic, payload, retain=retain)
        except ConfigurationError as error:
            self._client.publish(topic, payload, qos=1, retain=retain)
            return str(error)
        for _ in range(self._outbox.given_up - given_up):
            self._on_lost("the box of unsent answers was full, and its oldest was given up")
        self.resume()
        return ""

    def resume(self) -> None:
        """Send what waits, the oldest first: what is retained must end with the newest."""
        with self._lock:
            if not self._client.connected:
                return
            try:
                waiting = self._outbox.waiting(after=self._sent_up_to)
            except ConfigurationError as error:
                log.warning("%s", error)
                return
            for kept in waiting:
                if not self._send(kept):
                    return
                self._sent_up_to = kept.number

    def _send(self, kept: Kept) -> bool:
        # By its number a reader knows a message that came twice: its confirmation may have been lost.
        name = f"{self._device}-{kept.number}".encode()
        return self._client.publish(
            kept.topic, kept.payload, qos=1, retain=kept.retain, correlation_data=name,
            on_confirmed=lambda refusal: self._confirmed(kept.number, kept.topic, refusal),
        )  # fmt: skip

    def _confirmed(self, number: int, topic: str, refusal: str) -> None:
        if refusal:
            self._on_lost(f"the broker did not take an answer on {topic!r}: {refusal}")
        try:
            self._outbox.done(number)
        except ConfigurationError as error:  # it is taken out with the next, or comes twice, after a start
            log.warning("%s", error)
