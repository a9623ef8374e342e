"""The operator's side of updates over the air: one connection that orders them, serves files, and receives reports.

A device asks for the bytes it lacks (`ChunkRequest`); they are read from the bundle's folder and sent in pieces, by a
thread of their own. Any number of devices may be under way.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.bundle.trust import SIGNATURE
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.messages import Info, State
from device_runtime.mqtt.ota_messages import MAX_PIECE_BYTES, Chunk, ChunkRequest, Order, Report, parse_report
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError
from device_runtime.mqtt.topics import DeviceTopics, parse

__all__ = ["Received", "Sender"]

Received = tuple[str, Report | State | Info]  # a device, and what it says

log = logging.getLogger("stonechat.deploy")


class Sender:
    """One bundle on its way to devices. May be used from any thread."""

    def __init__(self, broker: BrokerAddress, bundle: Bundle, *, name: str | None = None) -> None:
        """Prepare a connection; entering the context opens it.

        Args:
            name: who sends, as the broker knows it.
        """
        self.heard: queue.SimpleQueue[Received] = queue.SimpleQueue()  # reports, states and infos, as they come
        self.manifest_sha256 = bundle.manifest_sha256
        self._folder = bundle.path
        self._files = {MANIFEST, SIGNATURE, *bundle.manifest.files}
        self._sizes = {
            file: (bundle.path / file).stat().st_size for file in self._files if (bundle.path / file).is_file()
        }
        self._needs: queue.SimpleQueue[tuple[str, ChunkRequest] | None] = queue.SimpleQueue()
        self._orders: dict[str, Order] = {}  # device -> the last one
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="stonechat-sender", daemon=True)
        self._client = Client(
            broker,
            f"{name or 'deploy'}-{secrets.token_hex(4)}",
            on_message=self._receive,
            on_subscribed=self._order_again,
        )

    def __enter__(self) -> Sender:
        """Connect.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses this client, or does not prove who it is.
        """
        self._client.connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._needs.put(None)
        self._thread.join(5.0)
        self._client.close()

    def watch(self, device: str) -> None:
        """Receive what a device reports about itself and its updates; what it keeps at the broker comes at once."""
        topics = DeviceTopics(device)
        self._client.subscribe(*map(Subscription, (topics.ota_report, topics.state, topics.info)))

    def order(self, device: str, order: Order) -> None:
        """Order an update. It is ordered again after each reconnect: an order has one answer however often it comes."""
        with self._lock:
            self._orders[device] = order
        self._publish_order(device, order)

    @property
    def forbidden(self) -> bool:
        """Whether the broker lets us order nothing, and says so."""
        return self._client.forbidden.is_set()

    def end(self, device: str) -> None:
        """Nothing more of this device's update is to be sent."""
        with self._lock:
            self._orders.pop(device, None)

    # the network thread

    def _order_again(self, listening: bool) -> None:
        with self._lock:
            orders = dict(self._orders)
        for device, order in orders.items():
            self._publish_order(device, order)

    def _publish_order(self, device: str, order: Order) -> None:
        self._client.publish(DeviceTopics(device).ota, order.to_json(), qos=1)

    def _receive(self, message: Incoming) -> None:
        parts = parse(message.topic)
        if parts is None:
            return
        try:
            match parts.kind:
                case "ota":
                    said = parse_report(message.payload)
                    if isinstance(said, ChunkRequest):
                        self._needs.put((parts.id, said))
                    else:
                        self.heard.put((parts.id, said))
                case "state":
                    self.heard.put((parts.id, State.from_json(message.payload)))
                case "info":
                    self.heard.put((parts.id, Info.from_json(message.payload)))
        except MessageError as error:
            log.warning("%s says something that cannot be read: %s", parts.id, error)

    # the sending thread

    def _serve(self) -> None:
        while (item := self._needs.get()) is not None:
            device, need = item
            with self._lock:
                order = self._orders.get(device)
            if order is None or order.session != need.session or need.file not in self._files:
                continue  # of an earlier run, or of another operator
            try:
                self._send(device, need)
            except OSError as error:
                log.error("%s cannot be read (%s)", self._folder / need.file, error.strerror)

    def _send(self, device: str, need: ChunkRequest) -> None:
        size, topic = self._sizes.get(need.file, 0), DeviceTopics(device).ota_piece
        offset, end = need.offset, min(need.offset + need.length, size)
        if offset >= end:  # no such file, or an empty one
            self._client.publish(topic, Chunk(need.session, need.file, size, size, b"").to_payload(), qos=1)
            return
        with open(self._folder / need.file, "rb") as stream:
            stream.seek(offset)
            while offset < end and (data := stream.read(min(MAX_PIECE_BYTES, end - offset))):
                self._client.publish(topic, Chunk(need.session, need.file, offset, size, data).to_payload(), qos=1)
                offset += len(data)
