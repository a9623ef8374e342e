"""The device: answers requests over MQTT and wakes on readings.

Three threads, each with one job. paho's network thread reads messages and puts work in a bounded line; the worker
thread runs the model, the only one to touch it; the caller's thread waits for the end. A generation in the network
thread would hold back every piece until the last one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import device_runtime
from device_runtime.device import home_assistant as discovery
from device_runtime.device.boot_counter import next_boot
from device_runtime.device.delivery import Delivery
from device_runtime.device.generation import Model
from device_runtime.device.generator import Generator
from device_runtime.device.hardware import Hardware, ThisMachine
from device_runtime.device.health import Health
from device_runtime.device.link_runner import Sensors
from device_runtime.device.models import Models
from device_runtime.device.outbox import Outbox
from device_runtime.device.pool_member import Membership
from device_runtime.device.queue import Job, WorkLine
from device_runtime.device.rate_limit import Gate
from device_runtime.device.requests import Requests
from device_runtime.device.updates import Updates
from device_runtime.device.watchdog import CONNECTING, Pulse, ServiceManager
from device_runtime.errors import ConfigurationError, StonechatError, UnreachableError
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt import backoff as patience
from device_runtime.mqtt.client import Client, Incoming, Subscription, Will
from device_runtime.mqtt.messages import DeviceState, Info, State
from device_runtime.mqtt.strict_json import MessageError, dump
from device_runtime.mqtt.topics import DeviceTopics, PoolTopics

__all__ = ["Service", "stop_on_signals"]

log = logging.getLogger("stonechat.serve")


class Service:
    """One device on the air, from `run` until `stop`."""

    def __init__(
        self,
        config: DeviceConfig,
        open_model: Callable[[str], Model],
        manager: ServiceManager | None = None,
        hardware: Hardware | None = None,
    ) -> None:
        """Prepare the device.

        Args:
            open_model: called with each model's name once there is a connection, and when a model was updated.
            manager: hears how we are.
            hardware: what the model runs on; None is this machine.
        """
        self.config = config
        self._hardware = hardware or ThisMachine()
        self._manager = manager or ServiceManager()
        self._working, self._hearing = Pulse(), Pulse()  # of the worker and of the network thread
        self._threads: dict[str, threading.Thread] = {}  # the same two, once they run
        self._open_model = open_model
        self._topics = DeviceTopics(config.device)
        self._pool = PoolTopics(config.pool) if config.pool else None
        self._line = WorkLine(config.queue)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._health = Health()
        self._generator = Generator(self._health, self._working)
        self._gate = Gate(config.limits, lambda event: self._client.publish(self._topics.event, dump(event), qos=1))
        self._boot = next_boot(config.state_dir)
        self._state = DeviceState.INIT
        self._client = Client(
            config.broker,
            "-".join(filter(None, ("stonechat", config.device, config.broker.proof()))),
            on_message=self._receive,
            on_subscribed=self._announce,
            on_connection=self._connection_changed,
            on_oversized=lambda topic, size: self._gate.drop("oversized", f"{topic[:64]} came with {size} bytes"),
            will=Will(self._topics.state, State(DeviceState.LOST, self._boot).to_json()),
        )
        self._membership = Membership(self._pool, self._client, self._line) if self._pool else None
        self._requests = Requests(
            self._topics, self._pool, self._membership, self._boot, self._model_names, self._client, self._line,
            self._gate, self._generator, lambda: self._hardware.trouble,
        )  # fmt: skip
        self._outbox = Outbox(config.state_dir / "outbox.sqlite")
        self._delivery = Delivery(
            config.device, self._outbox, self._client, on_lost=lambda why: self._gate.drop("answers", why)
        )
        self._failure: Exception | None = None  # ends `run`
        self._updates: Updates | None = None
        if config.updates is not None:
            self._updates = Updates(
                config.updates,
                config.state_dir,
                publish=lambda payload: self._client.publish(self._topics.ota_report, payload, qos=1),
                reopen=self._reopen,
            )
        self._sensors = Sensors(
            config.device,
            config.links,
            self._line,
            self._client.publish,
            self._delivery.deliver,
            self._generator.generate,
        )

    def run(self, *, wait_for_broker: bool = False) -> None:
        """Connect, open the models and serve until `stop` is called.

        Args:
            wait_for_broker: try until there is a broker.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses the device, or another client has taken its id.
        """
        self._manager.status(f"{CONNECTING} {self.config.broker}")
        if not wait_for_broker:
            self._client.connect()
        elif not patience.connect(self._client, self._stopping):
            return self._outbox.close()
        try:
            self._manager.status(f"opening {', '.join(self._model_names)}")
            self._generator.models = Models(self.config.models, self._open_model)
            worker = self._threads["worker"] = threading.Thread(target=self._work, name="stonechat-worker")
            worker.start()
            try:
                self._client.subscribe(*self._subscriptions())
                next_health_s = time.monotonic()
                while not self._stopping.wait(0.2):
                    self._client.tell_confirmed()
                    self._requests.give_up_late()
                    self._follow_hardware()
                    self._manager.keep_alive(self._stalled_s())
                    if time.monotonic() >= next_health_s:
                        next_health_s = time.monotonic() + self.config.health_s
                        self._client.publish(self._topics.health, dump(self._health_fields()))
                    if self._client.takeover.is_set():
                        raise ConfigurationError(
                            f"the broker at {self.config.broker} dropped this device for another client, it seems: is "
                            f"{self.config.device!r} running elsewhere? Stop the other, or give this one another id."
                        )
            finally:
                self._manager.stopping()
                self._leave()
                worker.join()
                if self._updates is not None:
                    self._updates.join()
            if self._failure is not None:
                raise self._failure
        finally:
            if self._client.connected:
                self._enter(DeviceState.DISCONNECTED)
            self._client.close()
            self._client.tell_confirmed()
            self._outbox.close()

    def _health_fields(self) -> dict[str, Any]:
        fields = self._health.to_fields(len(self._line), dict(self._gate.counts), self._sensors.troubles())
        fields |= self._hardware.health()
        return {name: value for name, value in fields.items() if value is not None}

    def stop(self) -> None:
        """End `run`: the running answer is cut, waiting requests are refused, and the state becomes `disconnected`."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def _stalled_s(self) -> float:
        """How long a thread that has work has not got on with it. A long answer is no stall, one that hangs is."""
        if any(not thread.is_alive() for thread in self._threads.values()):
            return math.inf
        models = self._generator.models
        self._working.observe(models.progress if models is not None else None)
        working_s = 0.0 if self._state is DeviceState.UPDATING else self._working.stalled_s  # a trial has its own limit
        return max(working_s, self._hearing.stalled_s)

    # the network thread

    def _subscriptions(self) -> list[Subscription]:
        commands = [self._topics.generate, self._topics.cancel, *([self._topics.ota] if self._updates else [])]
        return [
            *(Subscription(topic, tell_retained=True) for topic in commands),
            *([Subscription(self._topics.ota_piece)] if self._updates else []),
            *([self._membership.subscription] if self._membership else []),
            *([Subscription(discovery.STATUS_TOPIC, replay_retained=False)] if self.config.home_assistant else []),
            *self._sensors.subscriptions(),
        ]

    def _announce(self, listening: bool) -> None:
        """Runs after each (re)connect: the last will may have overwritten what the broker keeps.

        A device is ready when the broker has its subscriptions: a request that came before would be lost.
        """
        self._client.publish(self._topics.info, self._info().to_json(), qos=1, retain=True)
        self._describe()
        self._delivery.resume()
        with self._lock:
            if self._state is DeviceState.INIT and listening:
                self._state = DeviceState.READY
            self._publish_state()
            ready = self._state in (DeviceState.READY, DeviceState.BUSY)
        if ready:
            self._manager.ready()
            self._tell_what_it_serves()

    def _tell_what_it_serves(self) -> None:
        self._manager.status(f"{self.config.device} at {self.config.broker}, serving {', '.join(self._model_names)}")

    @property
    def _model_names(self) -> tuple[str, ...]:
        return tuple(settings.name for settings in self.config.models)

    def _info(self) -> Info:
        hardware = self._hardware.info()
        hardware["capabilities"] += ("ota",) if self._updates else ()
        return Info(
            self.config.device,
            version=device_runtime.__version__,
            models=self._model_names,
            pool=self.config.pool,
            **hardware,
        )

    def _describe(self) -> None:
        """To Home Assistant; an empty message takes back what an earlier start may have said."""
        message = discovery.describe(self._info(), self.config.links) if self.config.home_assistant else b""
        self._client.publish(discovery.config_topic(self.config.device), message, qos=1, retain=True)

    def _connection_changed(self, connected: bool, reason: str) -> None:
        self._threads["network"] = threading.current_thread()
        if connected:
            log.info("connected to %s as %s", self.config.broker, self.config.device)
        else:
            log.info("disconnected from %s: %s", self.config.broker, reason)
            self._manager.status(f"no connection to {self.config.broker}: {reason}")

    def _receive(self, message: Incoming) -> None:
        with self._hearing.working():
            self._sort(message)

    def _sort(self, message: Incoming) -> None:
        if self._requests.receive(message):
            return
        if message.topic in (self._topics.ota, self._topics.ota_piece):
            self._update(message)
        elif message.topic == discovery.STATUS_TOPIC and self.config.home_assistant:
            if message.payload == b"online" and self._gate.admits("announcements"):
                self._describe()
        elif self._gate.admits("readings"):
            self._sensors.receive(message)

    def _update(self, message: Incoming) -> None:
        assert self._updates is not None  # or there would be no subscription
        try:
            if message.topic == self._topics.ota_piece:
                self._updates.piece(message.payload)
            elif message.retained:
                raise MessageError("a command must not be retained.")
            elif self._gate.admits("updates"):
                self._updates.order(message.payload)
        except MessageError as e:
            if self._gate.admits("refusals"):
                log.info("refused a message on %s: %s", message.topic, e)

    # the worker thread

    def _work(self) -> None:
        while job := self._line.take():
            self._enter(DeviceState.BUSY)
            try:
                with self._working.working():
                    if job.start_by_s is not None and time.monotonic() > job.start_by_s:
                        job.expired()
                    else:
                        job.run()
            except Exception as e:  # the next request must still be served
                log.error("failed: %s", type(e).__name__)
                log.debug("details", exc_info=e)
            if not len(self._line) and not self._hardware.trouble:
                self._enter(DeviceState.READY)

    # any thread

    def _reopen(self, name: str) -> None:
        """Have the worker close a model and open it again, and wait until it has."""
        done = threading.Event()

        def run() -> None:
            self._enter(DeviceState.UPDATING)
            try:
                assert self._generator.models is not None
                self._generator.models.reopen(name)
            except Exception as error:  # there is no model to serve any more
                self._failure = error
                self._stopping.set()
            finally:
                done.set()

        if not self._line.add_task(Job(None, run, dropped=done.set)):
            raise UnreachableError("the device is shutting down.")
        done.wait()
        if self._failure is not None:
            raise StonechatError(f"the model cannot be opened any more: {self._failure}")

    def _leave(self) -> None:
        self._stopping.set()
        if self._updates is not None:
            self._updates.stop()
        for job in self._line.close():
            job.dropped()
        self._generator.stop()

    def _enter(self, state: DeviceState) -> None:
        with self._lock:
            if state is not self._state and self._state.may_become(state):
                self._state = state
                self._publish_state()

    def _follow_hardware(self) -> None:
        """A microcontroller that goes is `lost`, as a Pi without power is; one that comes back may be another."""
        trouble = self._hardware.trouble
        if self._membership is not None:
            self._membership.follow(not trouble)
        if trouble:
            if self._generator.idle:  # an answer that is under way may still go on when it comes back
                self._enter(DeviceState.LOST)
                self._manager.status(f"{self.config.device}: {trouble}")
        elif self._state is DeviceState.LOST:
            self._client.publish(self._topics.info, self._info().to_json(), qos=1, retain=True)
            self._describe()
            self._enter(DeviceState.READY)
            self._tell_what_it_serves()

    def _publish_state(self) -> None:
        payload = State(self._state, self._boot).to_json()
        self._client.publish(self._topics.state, payload, qos=1, retain=True)


@contextlib.contextmanager
def stop_on_signals(service: Service) -> Iterator[None]:
    """Within this context, SIGTERM and SIGINT stop the service cleanly. For the main thread."""
    before = {s: signal.signal(s, lambda *_: service.stop()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
