"""An MQTT client that is not ours (tests only)."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

__all__ = ["Peer"]

PATIENCE_S = 30.0  # a busy machine is no fault of what is tested


@dataclass
class Peer:
    """An independent client: plain paho, MQTT 5 or 3.1.1."""

    port: int
    protocol: int = paho.MQTTv5
    heard: queue.Queue[paho.MQTTMessage] = field(default_factory=queue.Queue)
    deaf_to: str = "(nothing)"  # messages whose topics end like that are not for this test

    def __post_init__(self) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=self.protocol)
        self.client.on_message = lambda c, u, m: None if m.topic.endswith(self.deaf_to) else self.heard.put(m)
        subscribed = self._subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()

    def subscribe(self, *filters: str) -> None:
        self._subscribed.clear()
        self.client.subscribe([(f, 1) for f in filters])
        assert self._subscribed.wait(PATIENCE_S)

    def publish(self, topic: str, payload: Any, *, retain: bool = False, **properties: Any) -> None:
        p = None
        if properties:
            p = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                setattr(p, name, value)
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.client.publish(topic, data, qos=1, retain=retain, properties=p).wait_for_publish(PATIENCE_S)

    def next(self, timeout_s: float = PATIENCE_S) -> tuple[str, Any]:
        """The next message: topic and parsed payload."""
        message = self.heard.get(timeout=timeout_s)
        return message.topic, json.loads(message.payload or b"{}")  # an empty one takes back what was retained

    def until(self, wanted: Callable[[str, Any], bool], timeout_s: float = PATIENCE_S) -> list[tuple[str, Any]]:
        """All messages up to the first one that is `wanted`."""
        end_s, got = time.monotonic() + timeout_s, []
        while True:
            got.append(self.next(max(0.01, end_s - time.monotonic())))
            if wanted(*got[-1]):
                return got

    def silent(self, for_s: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        try:
            self.heard.get(timeout=for_s)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
