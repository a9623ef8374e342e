"""A request while it waits for the model and is answered, and the replies to its client."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from device_runtime.brain.question import last_of_user
from device_runtime.brain.recorder import Asked, Recorder
from device_runtime.brain.redacted_schema import secrets_of
from device_runtime.brain.router import Chosen
from device_runtime.device.extension import Device
from device_runtime.device.extensions.escalation import Desk, Escalations
from device_runtime.device.queue import Job
from device_runtime.device.runner import CancellableRun, incomplete
from device_runtime.errors import BundleError, ConfigurationError, IncompleteError, StonechatError, UnfamiliarError
from device_runtime.fleet.links import memory_bytes
from device_runtime.fleet.policies.escalation import Reason
from device_runtime.machine.power import energy_of_both
from device_runtime.mqtt.messages import Accepted, Address, ErrorReply, Final, Piece, Request, Route
from device_runtime.mqtt.strict_json import dump

__all__ = ["SHUTTING_DOWN", "Replies", "RequestJob"]

REMEMBERED = 256  # requests that have ended and whose repeats are recognised, beside all that are under way
KEPT = 16  # ends of requests that can be sent again, to who may have missed them
NO_MODEL = "no model is for it"
SHUTTING_DOWN = "the device is shutting down; ask again later."

log = logging.getLogger("stonechat.serve")


class Replies:
    """Sends the replies of one device, and knows which requests have begun and how they ended. For any thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, tuple[bytes, RequestJob]] = {}  # by its key, with a digest of what it asks
        self._ended: OrderedDict[Hashable, bytes] = OrderedDict()  # this digest of the last that have ended,
        self._ends: OrderedDict[Hashable, dict[str, Any]] = OrderedDict()  # and with what the last of these did

    def client_of(self, topic: str) -> str | None:
        """The client whose reply topic this is, of the device or of its pool; None if no reply may go there."""
        client = self._device.topics.client_of(topic)
        if client is None and self._device.pool is not None:
            client = self._device.pool.client_of(topic)
        return client

    def send(self, address: Address, fields: dict[str, Any], qos: int = 0) -> None:
        """Publish one reply."""
        if address.id is not None:
            fields = {"id": address.id, **fields}
        if self._in_pool(address.reply_to):  # a client of a pool does not know which device answers
            fields = {**fields, "device": self._device.topics.device}
        self._device.client.publish(address.reply_to, dump(fields), qos=qos, correlation_data=address.correlation_data)

    def begin(self, address: Address, asked: bytes, job: RequestJob) -> None:
        """A request is taken: until it is `rejected`, what comes with its key is a repeat.

        Args:
            asked: a digest of it.
        """
        if address.key is not None:
            with self._lock:
                self._under_way[address.key] = asked, job

    def asked(self, address: Address) -> bytes | None:
        """What was asked with this key, as `begin` got it; None where that is not known, or was refused."""
        with self._lock:
            under_way = self._under_way.get(address.key)
            return under_way[0] if under_way is not None else self._ended.get(address.key)

    def under_way(self, address: Address) -> RequestJob | None:
        """The request with this key, where it has begun and not ended."""
        with self._lock:
            under_way = self._under_way.get(address.key)
            return under_way[1] if under_way is not None else None

    def end(self, address: Address, fields: dict[str, Any]) -> None:
        """Publish what ends a request; `again` repeats it."""
        with self._lock:
            under_way = self._under_way.pop(address.key, None)
            if under_way is not None:
                self._ended[address.key], self._ends[address.key] = under_way[0], fields
                if len(self._ended) > REMEMBERED:
                    self._ended.popitem(last=False)
                if len(self._ends) > KEPT:
                    self._ends.popitem(last=False)
        self.send(address, fields, qos=1)

    def again(self, address: Address) -> bool:
        """Publish what has ended a request once more; False if it has not ended, or that was long ago."""
        with self._lock:
            fields = self._ends.get(address.key)
        if fields is not None:
            self.send(address, fields, qos=1)
        return fields is not None

    def forget(self, address: Address) -> None:
        """A request is about to be refused and may come again as it is: then it is no repeat."""
        with self._lock:
            self._under_way.pop(address.key, None)

    def accepted(self, address: Address) -> None:
        """Report that this device has taken a request."""
        self.send(address, Accepted(self._device.topics.device, self._device.boot).to_fields(), qos=1)

    def cancelled(self, address: Address) -> None:
        """Report that a request was taken back before there was an answer."""
        self.end(address, Final(0, "", "cancelled").to_fields())

    def refuse(self, address: Address, code: str, message: str) -> None:
        """End a request with an error."""
        log.info("refused %s: %s", self.short(address), code)
        self.end(address, ErrorReply(code, message).to_fields())

    def reject(self, address: Address, code: str, message: str, retry_after_ms: int | None = None) -> None:
        """Report an error that is no request's end: what it is about was not taken, or is given back."""
        log.info("refused %s: %s", self.short(address), code)
        self.send(address, ErrorReply(code, message, retry_after_ms).to_fields(), qos=1)

    def turn_away(self, address: Address, code: str, message: str, retry_after_ms: int | None = None) -> None:
        """Reject what has cost its sender nothing: not more often than the limits allow."""
        if self._device.limiter.admits("refusals", self.client(address)):
            self.reject(address, code, message, retry_after_ms)

    def client(self, address: Address) -> str:
        """Whose reply topic it is. Where no access list vouches for the name, it is a hint."""
        return self.client_of(address.reply_to) or ""

    def short(self, address: Address) -> str:
        """A reply topic in a log line."""
        return address.reply_to.removeprefix(self._device.topics.reply_root + "/")

    def _in_pool(self, topic: str) -> bool:
        return self._device.pool is not None and self._device.pool.allows_reply(topic)


class RequestJob(Job):
    """A request of a client."""

    def __init__(
        self,
        device: Device,
        replies: Replies,
        request: Request,
        address: Address,
        *,
        arrived_s: float,
        expiry_s: float | None = None,
        pooled: bool = False,
        escalations: Escalations | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Prepare.

        Args:
            arrived_s: on the monotonic clock.
            expiry_s: what was left of the message's expiry interval.
            pooled: whether it came through the pool.
            escalations: where it may be passed on.
            recorder: keeps a record of its answer.
        """
        deadline_s = arrived_s + request.deadline_ms / 1000 if request.deadline_ms is not None else None
        expires_s = arrived_s + expiry_s if expiry_s is not None else None
        self.client = replies.client(address)
        self.memory_bytes = memory_bytes(request)
        self.pooled = pooled
        self._device, self._replies, self._request, self._address = device, replies, request, address
        self._deadline_s = deadline_s
        self._arrived_s, self._recorder = arrived_s, recorder
        self._escalations, self._elsewhere = escalations, Route(model=request.model or device.runner.names[0])
        answers = request.task in (None, "generate", "classify")  # what a larger model can do as well
        self._desk = escalations.of() if escalations is not None and answers else None
        self._streams, local_s = request.stream, deadline_s
        if self._desk is not None and (not self._streams or self._is_typed):  # pieces cannot be taken back
            self._streams, local_s = False, self._desk.late_s(arrived_s, deadline_s)
        self.start_by_s = min((t for t in (local_s, expires_s) if t is not None), default=None)
        self._run, self._is_taken_back = CancellableRun(local_s), False
        self._chosen: Chosen | None = None  # by the router

    @property
    def _is_typed(self) -> bool:
        return self._request.schema is not None or self._device.runner.purpose_of(self._request.model) is not None

    def goes_elsewhere(self) -> bool:
        """Pass it on before it waits, where the device is too busy or has no model for it; in the network thread."""
        if self._request.unfamiliar:
            if not self._pass_on("unfamiliar", NO_MODEL):
                failed = self._elsewhere.failed or "this device passes on nothing that is unfamiliar"
                self._replies.forget(self._address)
                self._replies.turn_away(
                    self._address, UnfamiliarError.code, f"{NO_MODEL}, and {failed.removesuffix('.')}."
                )
            return True
        why = self._desk.overrun() if self._desk is not None else None
        return why is not None and (self._routed() or self._pass_on(*why))

    def queue(self) -> bool:
        """Have it wait for the model; whether there is a place. From any thread."""
        given_up = self._device.queue.add_request(self)
        for other in given_up:
            other.give_way()
        self._moved()
        return self not in given_up

    def run(self) -> None:
        """Answer it, in pieces where it asks for them."""
        seq = 0
        held = ""

        def send(text: str) -> None:
            nonlocal seq, held
            held += text
            if self._streams and not self._device.client.lagging:  # else pieces grow until the socket keeps up
                self._replies.send(self._address, Piece(seq, held).to_fields())
                seq, held = seq + 1, ""

        if self._routed():
            return None
        if (spare := self._desk.spare() if self._desk is not None else None) and self._pass_on(*spare):
            return None
        try:
            final = self._device.runner.generate(self._request, self._run, send)
        except ConfigurationError as e:  # the request's own fault: it would be one elsewhere
            if self._chosen is not None and self._chosen.stray:  # not that it is nothing for the first
                failed = f"; and {self._elsewhere.failed.removesuffix('.')}" if self._elsewhere.failed else ""
                return self._replies.refuse(self._address, UnfamiliarError.code, f"{self._chosen.why}{failed}.")
            return self._replies.refuse(self._address, e.code, str(e))
        except StonechatError as e:
            if not self._pass_on("malformed", str(e), code=e.code):
                self._fail(e.code, str(e))
            return None
        except Exception:
            if not self._pass_on("malformed", "the model failed", code="failed"):
                text = "the model failed on this request; see the device's log."
                self._replies.refuse(self._address, "failed", text)
            raise
        if self._desk is None or seq:
            # A device that asks for another's sake may leave the model to this one, and its reply is to name it.
            told = self._device.router is not None or self._desk is not None or self._request.hops > 0
            return self._conclude(replace(final, seq=seq, route=self._elsewhere if told else None))
        return self._judge(self._desk, final)

    def _routed(self) -> bool:
        """Find the model, where the request names none; whether it went on because no model here is for it."""
        router = self._device.router
        if router is None or self._request.model is not None or self._elsewhere.failed is not None:
            return False
        chosen = router.choose(last_of_user(self._request.messages))
        if chosen.stray and self._pass_on("unfamiliar", chosen.why):
            return True
        self._request, self._chosen = replace(self._request, model=chosen.model), chosen
        self._streams = self._streams and not (self._desk is not None and self._is_typed)
        self._elsewhere = replace(self._elsewhere, model=chosen.model, why=chosen.why)
        return False

    @property
    def _has_model(self) -> bool:
        """Whether a model here is for it, as far as is known: the first is, where nobody has looked."""
        return self._request.model is not None or (self._device.router is None and not self._request.unfamiliar)

    def _judge(self, desk: Desk, final: Final) -> None:
        """Send the answer, or pass the question on."""
        cut = self._request.schema is not None and final.finish == "length"
        if final.finish == "deadline" and self._is_early and self._pass_on("late", "this device has no answer yet"):
            return
        if cut and self._pass_on("malformed", incomplete(final)):
            return
        purpose = self._device.runner.purpose_of(self._request.model)
        if final.finish == "stop" and (doubt := desk.doubt(final, None, self._chosen, purpose)):
            if doubt[0] == "unsure" and (other := self._second_opinion(desk, final, ": ".join(doubt))):
                self._conclude(other)
                return
            if self._pass_on(*doubt, local=final):
                return
        self._conclude(replace(final, route=self._elsewhere))

    def _second_opinion(self, desk: Desk, first: Final, why: str) -> Final | None:
        """The answer of the model that the router would have taken next, where that is sure of it."""
        second, runner = self._chosen.second if self._chosen else None, self._device.runner
        if second is None:
            return None
        request = replace(self._request, model=second.model)
        try:
            final = runner.generate(request, self._run, lambda text: None)
        except StonechatError:  # it does not fit that model
            return None
        if final.finish == "cancelled":  # the client waits for no answer any more
            return final
        if not desk.settles(final, None, runner.purpose_of(second.model)):
            return None
        self._request = request
        route = Route(model=second.model, why=f"{why}; {second.why}")
        return replace(final, route=route, energy=energy_of_both(first.energy, final.energy))

    @property
    def _is_early(self) -> bool:
        """Whether there is time left until the deadline."""
        return self._deadline_s is None or time.monotonic() < self._deadline_s

    def _pass_on(self, reason: Reason, why: str, local: Final | None = None, code: str = IncompleteError.code) -> bool:
        """Whether a larger model is asked; what it says, or that it says nothing, comes later.

        Args:
            code: of the error that is sent where this device has no answer, and there is none to be had.
        """
        desk, asked = self._desk, self._request
        if desk is None or self._escalations is None or self._elsewhere.failed is not None:
            return False
        messages: Sequence[Mapping[str, str]] = asked.messages
        purpose = self._device.runner.purpose_of(asked.model) if self._has_model else None
        try:
            secrets = secrets_of(desk.redactor, messages, asked.schema)
            if desk.redactor:
                messages = desk.redactor.messages(messages, secrets)
            question = self._escalations.question(
                desk, messages, asked.schema, purpose=purpose, secrets=secrets, max_new=asked.max_new, hops=asked.hops
            )
        except ConfigurationError as error:
            self._elsewhere = replace(self._elsewhere, why=f"{reason}: {why}", failed=str(error))
            return False

        def done(final: Final | None, route: Route) -> None:
            if final is not None:
                self._conclude(replace(final, route=route))
            else:
                self._without(reason, why, local, replace(route, model=self._elsewhere.model), code)

        passed_on = desk.pass_on(
            reason, why, question, self._deadline_s, done, local=local, purpose=purpose, key=self, secrets=secrets,
            about={"model": self._elsewhere.model} if self._has_model else {},
        )  # fmt: skip
        self._moved()
        return passed_on

    def _without(self, reason: Reason, why: str, local: Final | None, route: Route, code: str) -> None:
        """The larger model has not answered: the local answer goes out, marked, or is made now."""
        self._elsewhere, self.start_by_s = route, self._deadline_s
        self._run = CancellableRun(self._deadline_s)
        if local is not None:
            self._conclude(replace(local, route=route))
        elif reason == "busy":
            self.queue()
        elif reason in ("malformed", "unfamiliar"):  # there is no answer of this device, and none to be had
            code = UnfamiliarError.code if reason == "unfamiliar" else code
            self._fail(code, f"{why.removesuffix('.')}; and {(route.failed or '').removesuffix('.')}.")
        elif self._is_early and self._device.queue.add_task(self):
            self._moved()
        else:
            self.expire()

    def _fail(self, code: str, message: str) -> None:
        """There is no answer."""
        if code != BundleError.code:
            return self._replies.refuse(self._address, code, message)
        self._replies.forget(self._address)  # the model is tried again with a request
        return self._replies.reject(self._address, code, message)

    def take_back(self) -> None:
        """A cancel command names it: it ends where it waits, or after the token in progress. From any thread."""
        self._is_taken_back = True  # before it is looked for: one between two places is found in neither
        self._moved()

    def _moved(self) -> None:
        """It may have come to another place: if it was taken back meanwhile, it ends there."""
        if not self._is_taken_back:
            return
        elsewhere = self._escalations
        if self._device.queue.remove(self) or (elsewhere is not None and elsewhere.cancel(self)):
            self._replies.cancelled(self._address)
        else:
            self._run.end("cancelled")

    def expire(self) -> None:
        """The time for its answer has passed while it waited."""
        if not (self._is_early and (self._routed() or self._pass_on("late", "it has waited too long"))):
            self._conclude(Final(0, "", "deadline"))

    def drop(self) -> None:
        """The device is shutting down."""
        self._replies.refuse(self._address, "unavailable", SHUTTING_DOWN)

    def give_way(self) -> None:
        """There is no place for it in the queue."""
        queue = self._device.queue
        self._replies.forget(self._address)
        if queue.closed:
            return self._replies.turn_away(self._address, "unavailable", SHUTTING_DOWN)
        wait_ms = int(self._device.runner.average_ms * (len(queue) + 1))
        message = f"the queue is full, {len(queue)} wait already; ask again later."
        return self._replies.turn_away(self._address, "busy", message, wait_ms)

    def give_to_pool(self) -> None:
        """Have its client send it again; another device will get it."""
        self._replies.forget(self._address)
        trouble = self._device.hardware.trouble or "the device was away"
        self._replies.reject(self._address, "unavailable", f"{trouble} Ask again.")

    def _asked(self) -> Asked:
        model = self._request.model or (self._device.runner.names[0] if self._has_model else None)
        redactor = self._desk.redactor if self._desk is not None else None
        return Asked(self._request.messages, self._request.schema, model, redactor=redactor)

    def _conclude(self, final: Final) -> None:
        if self._request.schema is not None and final.finish in ("length", "deadline"):
            return self._replies.refuse(self._address, "incomplete", incomplete(final))
        if self._recorder is not None and self._recorder.wants(self._request.record) and final.finish != "cancelled":
            record = self._recorder.record(self._asked(), final, self._arrived_s)
            if self._request.record and self._recorder.recording.on_request:
                final = replace(final, record=record)
        self._replies.end(self._address, final.to_fields())
        log.info(
            "answered %s: %d tokens in, %d out, %s, first after %.0f ms, %.1f tok/s",
            self._replies.short(self._address), final.usage.prompt_tokens, final.usage.completion_tokens, final.finish,
            final.ttft_ms, final.tps,
        )  # fmt: skip
        return None
