"""The state of a device, as it publishes it, and the end of its service."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from device_runtime.mqtt.client import Client
from device_runtime.mqtt.messages import DeviceState, State
from device_runtime.mqtt.topics import DeviceTopics

__all__ = ["Lifecycle"]

log = logging.getLogger("stonechat.serve")


class Lifecycle:
    """From `init` to `disconnected`. May be used from any thread."""

    def __init__(self, topics: DeviceTopics, boot: int, client: Client) -> None:
        self.state = DeviceState.INIT
        self.stopping = threading.Event()  # the service ends, or has ended
        self.failure: Exception | None = None  # that ended it
        self.is_open = threading.Event()  # the models have been opened
        self.seen = threading.Event()  # the broker has confirmed a state in which requests are answered
        self._topics, self._boot, self._client = topics, boot, client
        self._lock = threading.Lock()

    def enter(self, state: DeviceState) -> None:
        """Change to `state` and publish it, if the device may go there from where it is."""
        with self._lock:
            if state is not self.state and self.state.may_become(state):
                self.state = state
                self._publish()

    def opened(self) -> None:
        """The models are open; a trial at the start has ended. `connected` comes next, and publishes it."""
        with self._lock:
            if self.state is DeviceState.UPDATING:
                self.state = DeviceState.READY
            self.is_open.set()

    def connected(self, listening: bool) -> None:
        """Publish the state after a (re)connect: the last will may have replaced it at the broker.

        Args:
            listening: whether the broker has the subscriptions. A device is ready from then on: a request that came
                before would be lost.
        """
        with self._lock:
            if self.state is DeviceState.INIT and listening:
                self.state = DeviceState.READY
            serving = self.state in (DeviceState.READY, DeviceState.BUSY)
            self._publish(self._confirmed if serving else None)

    def repeat(self) -> None:
        """Publish the state again, for who has not been given it."""
        with self._lock:
            self._publish()

    def fail(self, error: Exception) -> None:
        """End the service with an error."""
        self.failure = error
        self.stopping.set()

    def _confirmed(self, refusal: str) -> None:
        if refusal:
            log.warning("the broker does not keep the state of this device: %s", refusal)
        self.seen.set()

    def _publish(self, on_confirmed: Callable[[str], None] | None = None) -> None:
        state = State(self.state, self._boot).to_json()
        self._client.publish(self._topics.state, state, qos=1, retain=True, on_confirmed=on_confirmed)
