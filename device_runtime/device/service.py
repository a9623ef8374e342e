"""A device that is online: connects, hands messages to its extensions, and runs the jobs that they queue.

Three threads, each with one job. paho's network thread reads messages and queues jobs; the worker thread runs them, the
only one to touch the models; the caller's thread watches over both. A generation in the network thread would hold
back every piece until the last one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import device_runtime
from device_runtime.brain.recorder import Recorder
from device_runtime.brain.router import Router
from device_runtime.device.boot_counter import next_boot
from device_runtime.device.delivery import Delivery
from device_runtime.device.extension import Device, Extension, RoutingTable
from device_runtime.device.extensions.corrections import Corrections
from device_runtime.device.extensions.escalation import Escalations
from device_runtime.device.extensions.health import HealthReports
from device_runtime.device.extensions.home_assistant import HomeAssistant
from device_runtime.device.extensions.instance import Instance
from device_runtime.device.extensions.link_places import LinkPlaces
from device_runtime.device.extensions.link_runner import LinkRunner
from device_runtime.device.extensions.pool_member import PoolMember
from device_runtime.device.extensions.records import RecordsReader
from device_runtime.device.extensions.requests import Requests
from device_runtime.device.extensions.updates import UpdatePlan, Updates
from device_runtime.device.hardware import Hardware, ThisMachine
from device_runtime.device.lifecycle import Lifecycle
from device_runtime.device.outbox import Outbox
from device_runtime.device.queue import JobQueue
from device_runtime.device.rate_limit import RateLimiter
from device_runtime.device.runner import Model, ModelRunner
from device_runtime.device.state_lock import state_lock
from device_runtime.device.statistics import Statistics
from device_runtime.device.watchdog import CONNECTING, Heartbeat, ServiceManager
from device_runtime.errors import ConfigurationError
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.machine.power import find_meter
from device_runtime.mqtt import backoff
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.messages import DeviceState, Info, State
from device_runtime.mqtt.packets import Incoming, Will
from device_runtime.mqtt.strict_json import dump
from device_runtime.mqtt.topics import DeviceTopics, PoolTopics

__all__ = ["Service", "stop_on_signals"]

TICK_S = 0.2

log = logging.getLogger("stonechat.serve")


class Service:
    """One device, online from `run` until `stop`."""

    def __init__(
        self,
        config: DeviceConfig,
        open_model: Callable[[str], Model],
        manager: ServiceManager | None = None,
        hardware: Hardware | None = None,
        updates: UpdatePlan | None = None,
        extensions: Sequence[Callable[[Device], Extension]] = (),
    ) -> None:
        """Prepare the device.

        Args:
            open_model: called with each model's name once there is a connection, and when a model was updated.
            manager: receives status and watchdog messages.
            hardware: what the model runs on; None is this machine.
            updates: what the device takes over the air; None takes nothing.
            extensions: more features, each made with the device.
        """
        self.config = config
        self._manager = manager or ServiceManager()
        self._worker_beat, self._network_beat = Heartbeat(), Heartbeat()
        self._said: dict[str, Any] | None = None  # what changes in `out/info`, as it was published; None before
        self._threads: dict[str, threading.Thread] = {}  # worker and network, once they run
        topics, boot, statistics = DeviceTopics(config.device), next_boot(config.state_dir), Statistics()
        self._client = Client(
            config.broker,
            "-".join(filter(None, ("stonechat", config.device, config.broker.proof()))),
            on_message=self._receive,
            on_subscribed=self._announce,
            on_connection=self._connection_changed,
            on_oversized=self._oversized,
            will=Will(topics.state, State(DeviceState.LOST, boot).to_json()),
        )
        meter = find_meter(config.power) if hardware is None else None  # a microcontroller's is not this machine's
        runner = ModelRunner(config.models, open_model, statistics, self._worker_beat, meter)
        limiter = RateLimiter(config.limits, self._report_event)
        router = None
        if config.routing is not None:
            router = Router(config.routing, runner.names, runner.purpose_of, runner.is_general)
        self._outbox = Outbox(config.state_dir / "outbox.sqlite")
        self._device = Device(
            config=config,
            topics=topics,
            pool=PoolTopics(config.pool) if config.pool else None,
            boot=boot,
            hardware=hardware or ThisMachine(),
            client=self._client,
            delivery=Delivery(
                config.device, self._outbox, self._client, on_lost=lambda why: limiter.drop("answers", why)
            ),
            limiter=limiter,
            queue=JobQueue(config.queue),
            runner=runner,
            router=router,
            lifecycle=Lifecycle(topics, boot, self._client),
            announce=self._publish_info,
        )
        self._extensions = _extensions(self._device, statistics, updates, extensions)
        self._table = RoutingTable([route for extension in self._extensions for route in extension.routes()])
        self._heard: list[Extension] = []  # whose topics are subscribed to

    def run(self, *, wait_for_broker: bool = False) -> None:
        """Connect, open the models and serve until `stop` is called.

        Args:
            wait_for_broker: try until there is a broker.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses the device, or another process is the same device.
        """
        with state_lock(self.config.device, self.config.state_dir):
            self._run(wait_for_broker)

    def _run(self, wait_for_broker: bool) -> None:
        device = self._device
        self._manager.status(f"{CONNECTING} {self.config.broker}")
        if not wait_for_broker:
            self._client.connect()
        elif not backoff.connect(self._client, device.lifecycle.stopping):
            return self._outbox.close()
        try:
            self._manager.status(f"opening {', '.join(device.runner.names)}")
            device.runner.open()
            worker = self._threads["worker"] = threading.Thread(target=self._work, name="stonechat-worker")
            worker.start()
            try:
                device.lifecycle.opened()
                self._listen()
                while not device.lifecycle.stopping.wait(TICK_S):
                    self._tick()
            finally:
                self._manager.stopping()
                self._leave()
                worker.join()
                for extension in self._extensions:
                    extension.join()
            if device.lifecycle.failure is not None:
                raise device.lifecycle.failure
        finally:
            if self._client.connected:
                device.lifecycle.enter(DeviceState.DISCONNECTED)
            self._client.close()
            self._client.tell_confirmed()
            self._outbox.close()

    def say_trying(self) -> None:
        """For `open_model` at the start: say that a new model is tried, until it is open.

        Requests wait in the queue meanwhile, as in any update; the pool is joined afterwards.
        """
        if self._device.lifecycle.state is DeviceState.INIT:
            self._device.lifecycle.enter(DeviceState.UPDATING)
            self._listen(joined=False)

    def stop(self) -> None:
        """End `run`: the running answer is cut, waiting requests are refused, and the state becomes `disconnected`."""
        self._device.lifecycle.stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._device.lifecycle.stopping.is_set()

    # the thread of `run`

    def _listen(self, *, joined: bool = True) -> None:
        """Subscribe to what is not subscribed to yet; the pool only where it is `joined`."""
        later = () if joined else (PoolMember,)
        due = [e for e in self._extensions if e not in self._heard and not isinstance(e, later)]
        self._heard += due
        subscriptions = [route.subscription for extension in due for route in extension.routes()]
        if subscriptions:
            self._client.subscribe(*subscriptions)
        else:
            self._announce(True)

    def _tick(self) -> None:
        self._client.tell_confirmed()
        self._report_ready()
        for extension in self._extensions:
            extension.tick()
        self._follow_hardware()
        self._follow_models()
        self._manager.keep_alive(self._stalled_s())
        if self._client.takeover.is_set():
            raise ConfigurationError(
                f"the broker at {self.config.broker} dropped this device for another client with its id: is "
                f"{self.config.device!r} running elsewhere? Stop the other, or give this one another id."
            )

    def _report_ready(self) -> None:
        """Not before the broker has our state: who waits for us finds there what was left when we went."""
        if self._device.lifecycle.seen.is_set():
            self._device.lifecycle.seen.clear()
            self._manager.ready()
            self._report_serving()

    def _follow_models(self) -> None:
        """After an update another bundle answers, and perhaps other links."""
        updating = self._device.lifecycle.state is DeviceState.UPDATING
        if self._said is not None and not updating and self._changing() != self._said:
            self._publish_info()

    def _stalled_s(self) -> float:
        """How long a thread that has work has made no progress with it. A long answer is no stall, a hanging one is."""
        if any(not thread.is_alive() for thread in self._threads.values()):
            return math.inf
        self._worker_beat.observe(self._device.runner.progress)
        updating = self._device.lifecycle.state is DeviceState.UPDATING  # a trial has its own limit
        return max(0.0 if updating else self._worker_beat.stalled_s, self._network_beat.stalled_s)

    def _follow_hardware(self) -> None:
        """A microcontroller that goes is `lost`, as a Pi without power is; one that comes back may be another."""
        device = self._device
        if trouble := device.hardware.trouble:
            if device.runner.idle:  # an answer that is under way may still go on when it comes back
                device.lifecycle.enter(DeviceState.LOST)
                self._manager.status(f"{self.config.device}: {trouble}")
        elif device.lifecycle.state is DeviceState.LOST:
            self._publish_info()
            device.lifecycle.enter(DeviceState.READY)
            self._report_serving()

    def _leave(self) -> None:
        self.stop()
        for extension in self._extensions:
            extension.stop()
        for job in self._device.queue.close():
            job.drop()
        self._device.runner.stop()

    # the network thread

    def _receive(self, message: Incoming) -> None:
        with self._network_beat.working():
            for handle in self._table.handlers(message.topic):
                handle(message)

    def _oversized(self, topic: str, size: int) -> None:
        self._device.limiter.drop("oversized", f"{topic[:64]} came with {size} bytes")

    def _announce(self, listening: bool) -> None:
        """Runs after each (re)connect."""
        self._publish_info()
        self._device.delivery.resume()
        self._device.lifecycle.connected(listening)

    def _connection_changed(self, connected: bool, reason: str) -> None:
        self._threads["network"] = threading.current_thread()
        if connected:
            log.info("connected to %s as %s", self.config.broker, self.config.device)
        else:
            log.info("disconnected from %s: %s", self.config.broker, reason)
            self._manager.status(f"no connection to {self.config.broker}: {reason}")

    # the worker thread

    def _work(self) -> None:
        device = self._device
        while job := device.queue.take():
            device.lifecycle.enter(DeviceState.BUSY)
            try:
                with self._worker_beat.working():
                    if job.start_by_s is not None and time.monotonic() > job.start_by_s:
                        job.expire()
                    else:
                        job.run()
            except Exception as e:  # the next request must still be served
                log.error("a job failed: %s", _place(e))
                log.debug("details", exc_info=e)
            if not len(device.queue) and not device.hardware.trouble:
                device.lifecycle.enter(DeviceState.READY)

    # any thread

    def _publish_info(self) -> None:
        hardware = self._device.hardware.info()
        for extension in self._extensions:
            hardware["capabilities"] += extension.capabilities
        self._said = self._changing()
        info = Info(
            self.config.device,
            version=device_runtime.__version__,
            models=self._device.runner.names,
            pool=self.config.pool,
            **self._said,
            **hardware,
        )
        self._client.publish(self._device.topics.info, info.to_json(), qos=1, retain=True)
        for extension in self._extensions:
            extension.announce(info)

    def _changing(self) -> dict[str, Any]:
        """Fields of `Info` that another model changes."""
        runner = self._device.runner
        found: dict[str, Any] = {
            "bundles": runner.bundles or None,
            "not_open": runner.not_open or None,
            "tasks": runner.tasks or None,
        }
        for extension in self._extensions:
            found |= extension.info()
        return found

    def _report_event(self, event: dict[str, object]) -> None:
        self._client.publish(self._device.topics.event, dump(event), qos=1)

    def _report_serving(self) -> None:
        runner = self._device.runner
        not_open = runner.not_open
        serving = ", ".join(name for name in runner.names if name not in not_open) or "no model"
        without = f"; not open: {', '.join(not_open)}" if not_open else ""
        self._manager.status(f"{self.config.device} at {self.config.broker}, serving {serving}{without}")


def _extensions(
    device: Device,
    statistics: Statistics,
    updates: UpdatePlan | None,
    more: Sequence[Callable[[Device], Extension]],
) -> list[Extension]:
    """The features of a device, in the order in which they are called."""
    escalations = Escalations(device)
    recorder = Recorder(device)
    requests = Requests(device, escalations, recorder)
    corrections = Corrections(device, escalations, recorder)
    reader = RecordsReader(device, recorder, escalations.examples, corrections.kept)
    extensions: list[Extension] = [escalations, requests, corrections, reader]
    if device.pool is not None:
        extensions.append(PoolMember(device, device.pool, requests))
    if updates is not None:
        extensions.append(Updates(device, updates))
    links = LinkRunner(device, LinkPlaces(device.config.links, device.config.state_dir), escalations, recorder)
    extensions += [links, Instance(device), HomeAssistant(device, links)]
    extensions += [make(device) for make in more]
    return [*extensions, HealthReports(device, statistics, extensions)]


def _place(error: BaseException) -> str:
    """Where an exception was raised. Its message stays out of the log: it may hold what a model was asked."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"


@contextlib.contextmanager
def stop_on_signals(service: Service) -> Iterator[None]:
    """Within this context, SIGTERM and SIGINT stop the service cleanly. For the main thread."""
    before = {s: signal.signal(s, lambda *_: service.stop()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
