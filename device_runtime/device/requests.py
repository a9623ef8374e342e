"""What a device is asked over MQTT, from the command to its reply.

Commands are judged in the network thread; what is worth an answer waits in the line, and is answered in the thread
that works it off. Whatever is wrong with a command is answered, as far as it says where to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from device_runtime.device.generation import Run, incomplete
from device_runtime.device.generator import Generator
from device_runtime.device.pool_member import Membership
from device_runtime.device.queue import Job, WorkLine
from device_runtime.device.rate_limit import Gate
from device_runtime.errors import StonechatError
from device_runtime.mqtt.client import Client, Incoming
from device_runtime.mqtt.messages import Accepted, Address, Cancel, ErrorReply, Final, Piece, Request
from device_runtime.mqtt.strict_json import MessageError, dump, parse
from device_runtime.mqtt.topics import DeviceTopics, PoolTopics

__all__ = ["Requests"]

REMEMBERED = 256  # requests whose repeats are recognised
_SHUTTING_DOWN = "the device is shutting down; ask again later."

log = logging.getLogger("stonechat.serve")


class Requests:
    """The requests to one device, and to the pool that it is in."""

    def __init__(
        self,
        topics: DeviceTopics,
        pool: PoolTopics | None,
        membership: Membership | None,
        boot: int,
        model_names: tuple[str, ...],
        client: Client,
        line: WorkLine,
        gate: Gate,
        generator: Generator,
        trouble: Callable[[], str],
    ) -> None:
        """`trouble` tells why the model cannot be asked now; it is empty when it can."""
        self._topics, self._pool, self._membership = topics, pool, membership
        self._boot, self._model_names = boot, model_names
        self._client, self._line, self._gate, self._generator = client, line, gate, generator
        self._trouble = trouble
        self._lock = threading.Lock()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def receive(self, message: Incoming) -> bool:
        """Take a message if it is a command; returns whether it was one. For the network thread."""
        pooled = self._membership is not None and self._membership.takes(message.topic)
        if pooled or message.topic == self._topics.generate:
            if self._gate.admits("requests"):
                self._command(message, self._accept)
        elif message.topic == self._topics.cancel:
            if self._gate.admits("cancels"):
                self._command(message, self._cancel)
        else:
            return False
        return True

    def give_up_late(self) -> None:
        """Answer what has waited beyond its deadline: whoever asked knows by then, and others get its room."""
        for job in self._line.remove_late():
            job.expired()

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
        pooled = self._membership is not None and self._membership.takes(message.topic)
        trouble = self._trouble()
        if trouble and (pooled or self._generator.idle):  # an answer under way waits for it, and so do those behind
            return self._turn_away(address, "unavailable", trouble)
        deadline_s = now_s + request.deadline_ms / 1000 if request.deadline_ms is not None else None
        run = Run(deadline_s)
        limits = [t for t in (deadline_s, now_s + message.expiry_s if message.expiry_s is not None else None) if t]
        job = Job(
            address.key,
            run=lambda: self._answer(request, address, run),
            cancel=lambda: run.end("cancelled"),
            start_by_s=min(limits, default=None),
            expired=lambda: self._conclude(request, address, Final(0, "", "deadline")),
            dropped=lambda: self._refuse(address, "unavailable", _SHUTTING_DOWN),
            hand_on=(lambda: self._hand_on(address)) if pooled else None,
        )
        if request.accept and self._line.has_room:  # said first: the worker thread may answer at once
            self._reply(address, Accepted(self._topics.device, self._boot).to_fields(), qos=1)
        if not self._line.add_request(job):
            if self._line.closed:
                return self._turn_away(address, "unavailable", _SHUTTING_DOWN)
            wait_ms = int(self._generator.average_ms * (len(self._line) + 1))
            return self._turn_away(
                address, "busy", f"{self._line.limit} requests are waiting already; ask again later.", wait_ms
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
        if self._line.cancel(address.key):
            self._reply(address, Final(0, "", "cancelled").to_fields(), qos=1)

    def _answer(self, request: Request, address: Address, run: Run) -> None:
        seq = 0
        held = ""

        def send(text: str) -> None:
            nonlocal seq, held
            held += text
            if request.stream and not self._client.lagging:  # else: let pieces grow until the socket keeps up
                self._reply(address, Piece(seq, held).to_fields())
                seq, held = seq + 1, ""

        try:
            final = self._generator.generate(request, run, send)
        except StonechatError as e:
            return self._refuse(address, e.code, str(e))
        except Exception:
            self._refuse(address, "failed", "the model failed on this request; see the device's log.")
            raise
        return self._conclude(request, address, replace(final, seq=seq))

    def _conclude(self, request: Request, address: Address, final: Final) -> None:
        if request.schema is not None and final.finish in ("length", "deadline"):
            return self._refuse(address, "incomplete", incomplete(final))
        self._reply(address, final.to_fields(), qos=1)
        log.info(
            "answered %s: %d tokens in, %d out, %s, first after %.0f ms, %.1f tok/s",
            address.reply_to.removeprefix(self._topics.reply_root + "/"), final.usage.prompt_tokens,
            final.usage.completion_tokens, final.finish, final.ttft_ms, final.tps,
        )  # fmt: skip
        return None

    def _hand_on(self, address: Address) -> None:
        """Have a request that was taken from the pool asked again, elsewhere."""
        with self._lock:
            self._seen.pop(address.key, None)
        self._refuse(address, "unavailable", f"{self._trouble() or 'the device was away'} Ask again.")

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
            fields = {**fields, "device": self._topics.device}
        self._client.publish(address.reply_to, dump(fields), qos=qos, correlation_data=address.correlation_data)
