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
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import device_runtime
from device_runtime.errors import ConfigurationError, StonechatError, UnreachableError
from device_runtime.mqtt import discovery, patience
from device_runtime.mqtt.boot import next_boot
from device_runtime.mqtt.client import BrokerAddress, Client, Incoming, Subscription, Will
from device_runtime.mqtt.delivery import Delivery
from device_runtime.mqtt.generation import Model, Run, incomplete
from device_runtime.mqtt.hardware import Hardware, ThisMachine
from device_runtime.mqtt.health import INTERVAL_S, Health
from device_runtime.mqtt.limits import Gate, Limits
from device_runtime.mqtt.links import Link
from device_runtime.mqtt.messages import (
    Accepted,
    Address,
    Cancel,
    DeviceState,
    ErrorReply,
    Final,
    Info,
    Piece,
    Request,
    State,
)
from device_runtime.mqtt.models import Models, ModelSettings
from device_runtime.mqtt.ota import UpdatePlan, Updates
from device_runtime.mqtt.outbox import Outbox
from device_runtime.mqtt.payload import MessageError, dump, parse
from device_runtime.mqtt.sensors import Sensors
from device_runtime.mqtt.topics import DeviceTopics, PoolTopics
from device_runtime.mqtt.work import Job, WorkLine
from device_runtime.service_manager import Pulse, ServiceManager

__all__ = ["DeviceConfig", "Service", "next_boot", "stop_on_signals"]

REMEMBERED = 256  # requests whose repeats are recognised
FIRST_GUESS_MS = 2_000  # how long an answer takes, before there was one

log = logging.getLogger("stonechat.serve")


@dataclass(frozen=True)
class DeviceConfig:
    """What a device needs to know, apart from its model."""

    device: str  # its id
    broker: BrokerAddress
    state_dir: Path  # keeps the boot counter
    models: tuple[ModelSettings, ...] = (ModelSettings(),)  # the first answers requests that name none
    links: tuple[Link, ...] = ()
    pool: str | None = None  # the group whose requests this device shares
    queue: int = 8  # requests that may wait
    limits: Limits = field(default_factory=Limits)  # of what comes in
    updates: UpdatePlan | None = None  # what it takes over the air; None takes nothing
    home_assistant: bool = True  # show up there by discovery
    health_s: float = INTERVAL_S  # from one `out/health` to the next


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
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._current: tuple[Hashable | None, Run] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._average_ms = float(FIRST_GUESS_MS)
        self._health = Health()
        self._gate = Gate(config.limits, lambda event: self._client.publish(self._topics.event, dump(event), qos=1))
        self._boot = next_boot(config.state_dir)
        self._state = DeviceState.INIT
        self._models: Models | None = None
        self._client = Client(
            config.broker,
            f"stonechat-{config.device}",
            on_message=self._receive,
            on_subscribed=self._announce,
            on_connection=self._connection_changed,
            on_oversized=lambda topic, size: self._gate.drop("oversized", f"{topic[:64]} came with {size} bytes"),
            will=Will(self._topics.state, State(DeviceState.LOST, self._boot).to_json()),
        )
        self._outbox = Outbox(config.state_dir / "outbox.sqlite")
        self._delivery = Delivery(config.device, self._outbox, self._client)
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
            config.device, config.links, self._line, self._client.publish, self._delivery.deliver, self._generate
        )

    def run(self, *, wait_for_broker: bool = False) -> None:
        """Connect, open the models and serve until `stop` is called.

        Args:
            wait_for_broker: try until there is a broker.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses the device, or another client has taken its id.
        """
        self._manager.status(f"connecting to {self.config.broker}")
        if not wait_for_broker:
            self._client.connect()
        elif not patience.connect(self._client, self._stopping):
            return self._outbox.close()
        try:
            self._manager.status(f"opening {', '.join(self._model_names)}")
            self._models = Models(self.config.models, self._open_model)
            worker = self._threads["worker"] = threading.Thread(target=self._work, name="stonechat-worker")
            worker.start()
            try:
                self._client.subscribe(*self._subscriptions())
                next_health_s = time.monotonic()
                while not self._stopping.wait(0.2):
                    self._client.tell_confirmed()
                    self._follow_hardware()
                    self._manager.keep_alive(self._stalled_s())
                    if time.monotonic() >= next_health_s:
                        next_health_s += self.config.health_s
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
        fields = self._health.to_fields(len(self._line), dict(self._gate.counts)) | self._hardware.health()
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
        self._working.observe(self._models.progress if self._models is not None else None)
        working_s = 0.0 if self._state is DeviceState.UPDATING else self._working.stalled_s  # a trial has its own limit
        return max(working_s, self._hearing.stalled_s)

    # the network thread

    def _subscriptions(self) -> list[Subscription]:
        commands = [self._topics.generate, self._topics.cancel, *([self._topics.ota] if self._updates else [])]
        return [
            *(Subscription(topic, tell_retained=True) for topic in commands),
            *([Subscription(self._topics.ota_piece)] if self._updates else []),
            *([Subscription(self._pool.shared)] if self._pool else []),
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
            names = ", ".join(self._model_names)
            self._manager.status(f"{self.config.device} at {self.config.broker}, serving {names}")

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
        if message.topic == self._topics.generate or (self._pool and message.topic == self._pool.generate):
            if self._gate.admits("requests"):
                self._command(message, self._accept)
        elif message.topic == self._topics.cancel:
            if self._gate.admits("cancels"):
                self._command(message, self._cancel)
        elif message.topic in (self._topics.ota, self._topics.ota_piece):
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

    def _command(self, message: Incoming, act: Callable[[Incoming, Any, Address], None]) -> None:
        """Find out whom to answer, then `act`; what is wrong from there on is answered."""
        problem, value = None, None
        try:
            value = parse(message.payload)
        except MessageError as e:
            problem = e
        try:
            address = Address.find(value, message.response_topic, message.correlation_data)
        except MessageError as e:
            if self._gate.admits("refusals"):
                log.info("refused a message on %s: %s", message.topic, problem or e)
            return
        trees = [self._topics, *([self._pool] if self._pool else [])]
        if not any(tree.allows_reply(address.reply_to) for tree in trees):
            if self._gate.admits("refusals"):
                root = self._topics.reply_root
                log.info("refused a message on %s: its reply topic is outside %s/", message.topic, root)
            return
        try:
            if message.retained:
                self._turn_away(
                    address, "retained", "a command must not be retained: publish it without the retain flag."
                )
            elif problem:
                raise problem
            else:
                act(message, value, address)
        except MessageError as e:
            self._turn_away(address, e.code, str(e))

    def _accept(self, message: Incoming, value: Any, address: Address) -> None:
        now_s = time.monotonic()
        with self._lock:
            if address.key is not None and address.key in self._seen:
                log.info("dropped a repeated request of %s", address.reply_to)
                return None
        request = Request.from_value(value)
        if request.model is not None and request.model not in self._model_names:
            names = ", ".join(map(repr, self._model_names))
            return self._turn_away(
                address, "unknown_model", f"this device has no model {request.model!r}; it has {names}."
            )
        deadline_s = now_s + request.deadline_ms / 1000 if request.deadline_ms is not None else None
        limits = [t for t in (deadline_s, now_s + message.expiry_s if message.expiry_s is not None else None) if t]
        job = Job(
            address.key,
            run=lambda: self._answer(request, address, deadline_s),
            start_by_s=min(limits, default=None),
            expired=lambda: self._reply(address, Final(0, "", "deadline").to_fields(), qos=1),
            dropped=lambda: self._refuse(address, "unavailable", "the device is shutting down; ask again later."),
        )
        if request.accept and self._line.has_room:  # said first: the worker thread may answer at once
            self._reply(address, Accepted(self.config.device, self._boot).to_fields(), qos=1)
        if not self._line.add_request(job):
            wait_ms = int(self._average_ms * (len(self._line) + 1))
            return self._turn_away(
                address, "busy", f"{self.config.queue} requests are waiting already; ask again later.", wait_ms
            )
        if address.key is not None:
            with self._lock:
                self._seen[address.key] = None
                if len(self._seen) > REMEMBERED:
                    self._seen.popitem(last=False)
        return None

    def _cancel(self, message: Incoming, value: Any, address: Address) -> None:
        if value is not None:
            Cancel.from_value(value)
        if address.key is None:
            raise MessageError("a cancel command needs the Correlation Data (or id) of the request.")
        if self._line.remove(address.key):
            self._reply(address, Final(0, "", "cancelled").to_fields(), qos=1)
            return
        with self._lock:
            if self._current and self._current[0] == address.key:
                self._current[1].end("cancelled")

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
            if not len(self._line) and self._hardware.available:
                self._enter(DeviceState.READY)

    def _answer(self, request: Request, address: Address, deadline_s: float | None) -> None:
        seq = 0
        held = ""

        def send(text: str) -> None:
            nonlocal seq, held
            held += text
            if request.stream and not self._client.lagging:  # else: let pieces grow until the socket keeps up
                self._reply(address, Piece(seq, held).to_fields())
                seq, held = seq + 1, ""

        try:
            final = self._generate(request, address.key, deadline_s, send)
        except StonechatError as e:
            return self._refuse(address, e.code, str(e))
        except Exception:
            self._refuse(address, "failed", "the model failed on this request; see the device's log.")
            raise
        if request.schema is not None and final.finish in ("length", "deadline"):
            return self._refuse(address, "incomplete", incomplete(final))
        self._reply(address, replace(final, seq=seq).to_fields(), qos=1)
        log.info(
            "answered %s: %d tokens in, %d out, %s, first after %.0f ms, %.1f tok/s",
            address.reply_to.removeprefix(self._topics.reply_root + "/"), final.usage.prompt_tokens,
            final.usage.completion_tokens, final.finish, final.ttft_ms, final.tps,
        )  # fmt: skip
        return None

    def _generate(
        self,
        request: Request,
        key: Hashable | None,
        deadline_s: float | None,
        on_piece: Callable[[str], None] = lambda text: None,
    ) -> Final:
        run = Run(deadline_s)
        with self._lock:
            self._current = (key, run)
            if self._stopping.is_set():
                run.end("cancelled")
        start_s = time.monotonic()
        try:
            assert self._models is not None  # `run` opens them before the first subscription
            answer = self._models.generate(request)

            def heard(text: str) -> None:
                self._working.beat()
                on_piece(text)

            final = run.to_end(answer, heard)
            self._health.answered(final)
            return final
        except Exception:
            self._health.failed()
            raise
        finally:
            with self._lock:
                self._current = None
            self._average_ms += 0.3 * ((time.monotonic() - start_s) * 1000 - self._average_ms)

    # any thread

    def _reopen(self, name: str) -> None:
        """Have the worker close a model and open it again, and wait until it has."""
        done = threading.Event()

        def run() -> None:
            self._enter(DeviceState.UPDATING)
            try:
                assert self._models is not None
                self._models.reopen(name)
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
        with self._lock:
            if self._current:
                self._current[1].end("cancelled")

    def _enter(self, state: DeviceState) -> None:
        with self._lock:
            if state is not self._state and self._state.may_become(state):
                self._state = state
                self._publish_state()

    def _follow_hardware(self) -> None:
        """A microcontroller that goes is `lost`, as a Pi without power is; one that comes back may be another."""
        if not self._hardware.available:
            if self._current is None:  # an answer that is under way may still go on when it comes back
                self._enter(DeviceState.LOST)
        elif self._state is DeviceState.LOST:
            self._client.publish(self._topics.info, self._info().to_json(), qos=1, retain=True)
            self._describe()
            self._enter(DeviceState.READY)

    def _publish_state(self) -> None:
        payload = State(self._state, self._boot).to_json()
        self._client.publish(self._topics.state, payload, qos=1, retain=True)

    def _turn_away(self, address: Address, code: str, message: str, retry_after_ms: int | None = None) -> None:
        """Refuse what has cost its sender nothing: not more often than the limits say."""
        if self._gate.admits("refusals"):
            self._refuse(address, code, message, retry_after_ms)

    def _refuse(self, address: Address, code: str, message: str, retry_after_ms: int | None = None) -> None:
        log.info("refused %s: %s", address.reply_to.removeprefix(self._topics.reply_root + "/"), code)
        self._reply(address, ErrorReply(code, message, retry_after_ms).to_fields(), qos=1)

    def _reply(self, address: Address, fields: dict[str, Any], qos: int = 0) -> None:
        if address.id is not None:
            fields = {"id": address.id, **fields}
        if self._pool and self._pool.allows_reply(address.reply_to):  # whoever asked a pool wants to know who answers
            fields = {**fields, "device": self.config.device}
        self._client.publish(address.reply_to, dump(fields), qos=qos, correlation_data=address.correlation_data)


@contextlib.contextmanager
def stop_on_signals(service: Service) -> Iterator[None]:
    """Within this context, SIGTERM and SIGINT stop the service cleanly. For the main thread."""
    before = {s: signal.signal(s, lambda *_: service.stop()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
