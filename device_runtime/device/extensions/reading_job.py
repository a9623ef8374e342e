"""A reading that woke a link: from its place in the queue to the delivery of its answer."""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device_runtime.brain.question import last_of_user
from device_runtime.brain.recorder import Asked
from device_runtime.brain.router import Chosen
from device_runtime.device.extension import Device
from device_runtime.device.queue import Job
from device_runtime.device.runner import CancellableRun, incomplete
from device_runtime.errors import CannotRedactError, IncompleteError, StonechatError
from device_runtime.fleet.links import Link, Wakeup
from device_runtime.fleet.payload import read_payload
from device_runtime.fleet.policies.escalation import Reason
from device_runtime.fleet.questions import answer_fields, is_decided
from device_runtime.machine.power import energy_of_both
from device_runtime.mqtt.messages import Final, Request, Route
from device_runtime.mqtt.strict_json import MessageError, dump, parse
from device_runtime.records.typed_json import write

if TYPE_CHECKING:
    from device_runtime.device.extensions.escalation import Desk
    from device_runtime.device.extensions.link_runner import LinkRunner

__all__ = ["ReadingJob"]

log = logging.getLogger("stonechat.serve")


class ReadingJob(Job):
    """One reading and its link."""

    def __init__(self, device: Device, links: LinkRunner, wakeup: Wakeup) -> None:
        received_s = wakeup.reading.received_s
        # Its value is read again from its payload: while it waits, it would take many times the memory.
        light = replace(wakeup.reading, value={})
        self._device, self._links, self._wakeup = device, links, replace(wakeup, reading=light)
        self._deadline_s = received_s + wakeup.link.deadline_s
        self._desk = None if is_decided(wakeup.link, wakeup.decided) else links.escalations.of(wakeup.link)
        self._chosen: Chosen | None = None  # by the router
        self._elsewhere: Route | None = None  # set when it was passed on, and in vain
        self.start_by_s = self._deadline_s
        if self._desk is not None:
            self.start_by_s = self._desk.late_s(received_s, self._deadline_s)

    @property
    def link(self) -> Link:
        """The link that it woke."""
        return self._wakeup.link

    @property
    def place(self) -> Hashable:
        """Of the queue."""
        return self._wakeup.link.name, self._wakeup.reading.topic

    def goes_elsewhere(self) -> bool:
        """Pass it on before it waits, where the device is too busy; in the network thread."""
        why = self._desk.overrun() if self._desk is not None else None
        return why is not None and (self._routed() or self._pass_on(*why))

    def run(self) -> None:
        """Have the model answer, and deliver the answer."""
        link, reading = self._wakeup.link, self._wakeup.reading
        log.info("link %s woke on %s", link.name, reading.topic)
        if self._routed():
            return None
        self._wakeup = self._wakeup.of(self._answering)
        link = self.link
        if why := self._refusal:
            code = "link_refused"
            return None if self._pass_on("malformed", why, code=code) else self._trouble(code, why)
        if (spare := self._desk.spare() if self._desk is not None else None) and self._pass_on(*spare):
            return None
        try:
            final = self._answer()
        except StonechatError as e:
            return None if self._pass_on("malformed", str(e), code=e.code) else self._trouble(e.code, str(e))
        except Exception:
            if not self._pass_on("malformed", "the model failed", code="failed"):
                self._trouble("failed", "the model failed on this reading; see the device's log.")
            raise
        if final.finish == "deadline":
            return self.expire()
        if final.finish == "cancelled":  # the device is shutting down
            return None
        if link.answer is not None and final.finish != "stop":
            return (
                None
                if self._pass_on("malformed", incomplete(final))
                else self._trouble("incomplete", incomplete(final))
            )
        if self._desk is None:
            return self._deliver(final, self._here)
        purpose = self._device.runner.purpose_of(self._model)
        if doubt := self._desk.doubt(final, self._below, self._chosen, purpose):
            if doubt[0] == "unsure" and (other := self._second_opinion(self._desk, final, ": ".join(doubt))):
                return self._deliver(other, self._here)
            if self._pass_on(*doubt, local=final):
                return None
        return self._deliver(final, self._here)

    @property
    def _below(self) -> float | None:
        """The link's own limit, under which it is unsure."""
        return self.link.unsure.below if self.link.unsure is not None else None

    def _second_opinion(self, desk: Desk, first: Final, why: str) -> Final | None:
        """The answer of the model that the router would have taken next, where that is sure of it."""
        second, before = self._chosen.second if self._chosen else None, (self._wakeup, self._chosen)
        if second is None:
            return None
        self._chosen = replace(second, why=f"{why}; {second.why}")
        self._wakeup = self._wakeup.of(self._device.answering(self.link, second.model))
        try:
            final = self._answer()
            if desk.settles(final, self._below, self._device.runner.purpose_of(second.model)):
                return replace(final, energy=energy_of_both(first.energy, final.energy))
        except StonechatError:  # it does not fit that model
            pass
        self._wakeup, self._chosen = before
        return None

    def _routed(self) -> bool:
        """Find the model, where the link names none; whether it went on because no model here is for it."""
        router, wakeup = self._device.router, self._wakeup
        if router is None or self._chosen or wakeup.link.model is not None or is_decided(wakeup.link, wakeup.decided):
            return False
        chosen = router.choose(last_of_user(wakeup.question.messages), wakeup.reading.topic.split("/"))
        if chosen.stray and self._pass_on("unfamiliar", chosen.why):
            return True
        self._chosen = chosen
        return False

    @property
    def _model(self) -> str:
        return self._wakeup.link.model or (self._chosen.model if self._chosen else self._device.runner.names[0])

    @property
    def _refusal(self) -> str:
        """Why its model cannot answer its link: the router goes by what is asked, not by what the link demands."""
        decided = is_decided(self.link, self._wakeup.decided)
        return "" if decided else self._links.refusal(self.link, self._model)

    @property
    def _has_model(self) -> bool:
        """Whether a model here is for it, as far as is known: the first is, where nobody has looked."""
        return self._wakeup.link.model is not None or self._device.router is None or self._chosen is not None

    @property
    def _answering(self) -> Link:
        """Its link with the schema of the model that is for it; what no model here is for has the link's own alone."""
        if self._has_model:
            return self._device.answering(self.link, self._model)
        return self.link.answered_with(None)

    @property
    def _here(self) -> Route | None:
        """Where a local answer is from, where that is worth saying."""
        if self._elsewhere is not None or (self._desk is None and self._chosen is None):
            return self._elsewhere
        return Route(model=self._model, why=self._chosen.why if self._chosen else None)

    def _answer(self) -> Final:
        """The model's, or where everything is decided, what is."""
        question, decided = self._wakeup.question, self._wakeup.decided
        if is_decided(self._wakeup.link, decided):
            return Final(0, json.dumps(decided, ensure_ascii=False), "stop")
        request = Request(question.messages, self._model, schema=question.schema)
        hints = {"head": question.head, "nothing": question.nothing}
        return self._device.runner.generate(request, CancellableRun(self.start_by_s), hints=hints)

    def expire(self) -> None:
        """There was no answer in time."""
        now_s = time.monotonic()
        if now_s < self._deadline_s and (self._routed() or self._pass_on("late", "this device has no answer yet")):
            return
        self._trouble("deadline", f"no answer within deadline_s ({self._wakeup.link.deadline_s:g} s).")

    def _pass_on(self, reason: Reason, why: str, local: Final | None = None, code: str = IncompleteError.code) -> bool:
        """Whether a larger model is asked; what it says, or that it says nothing, comes later.

        Args:
            code: of the trouble where this device has no answer, and there is none to be had.
        """
        desk, wakeup = self._desk, self._wakeup
        if desk is None or self._elsewhere is not None:
            return False
        purpose = self._device.runner.purpose_of(self._model) if self._has_model else None
        wakeup = self._wakeup = wakeup.of(self._answering)
        asked = wakeup.outside or wakeup.question
        try:
            if wakeup.cannot_leave:
                raise CannotRedactError(wakeup.cannot_leave)
            question = self._links.escalations.question(
                desk, asked.messages, asked.schema, purpose=purpose, secrets=wakeup.secrets
            )
        except CannotRedactError as error:
            self._elsewhere = Route(model=self._model, why=f"{reason}: {why}", failed=str(error))
            return False

        def done(final: Final | None, route: Route) -> None:
            if final is not None:
                self._deliver(final, route)
            else:
                self._without(reason, why, local, replace(route, model=self._model), code)

        return desk.pass_on(
            reason, why, question, self._deadline_s, done, about={"link": wakeup.link.name}, local=local,
            below=self._below,
            purpose=purpose, secrets=wakeup.secrets,
        )  # fmt: skip

    def _without(self, reason: Reason, why: str, local: Final | None, route: Route, code: str) -> None:
        """The larger model has not answered: the local answer goes out, marked, or is made now."""
        self._elsewhere = route
        self.start_by_s = self._deadline_s
        if local is not None:
            self._deliver(local, route)
        elif reason == "busy":
            self._links.queue(self)
        elif reason == "hot" or (reason == "late" and time.monotonic() < self._deadline_s):
            self._device.queue.add_task(self)
        else:
            kind = {"late": "deadline", "unfamiliar": "unfamiliar"}.get(reason, code)
            self._trouble(kind, f"{why.removesuffix('.')}; and {(route.failed or '').removesuffix('.')}.")

    def _deliver(self, final: Final, route: Route | None) -> None:
        link, reading = self._wakeup.link, self._wakeup.reading
        below = self._desk.policy.below if self._desk is not None else None
        text = final.text
        if route is not None and route.where != "here" and self._wakeup.decided:
            text = json.dumps(json.loads(text) | self._wakeup.decided, ensure_ascii=False)  # some may be withheld there
        answer, held_back = answer_fields(link, text, final.confidence or {}, final.reason or "", below)
        value = read_payload(reading.payload, link.parse)
        about: dict[str, Any] = {} if route is None else {"route": write(route)}
        self._record(final, route, value)
        about |= {"link": link.name, "device": self._device.config.device, "topic": reading.topic, "time": _now()}
        payload = dump(answer | {"reading": value} | about)
        told = self._with_window(payload) if link.answer is not None else payload
        if held_back:
            self._links.count(link, "unsure")
        elif why := self._device.delivery.deliver(self._wakeup.to, payload):
            self._trouble("not_kept", f"the answer is sent without a copy on the disk: {why}")
        place = self._links.places.note(link, reading.topic)
        topics = [self._device.topics.link(link.name)]
        topics += [self._device.topics.link(link.name, place)] if place is not None else []
        for topic in topics:
            if self._links.is_newest(topic, reading.received_s):
                self._device.delivery.deliver(topic, told, retain=True)
        log.info("link %s answered: %d tokens, %.1f tok/s", link.name, final.usage.completion_tokens, final.tps)

    def _with_window(self, payload: bytes) -> bytes:
        """An answer with the earlier readings that it was given to, so that it can be corrected. Not where nobody could
        read it then."""
        if self._wakeup.window is None:
            return payload
        told = payload[:-1] + b',"window":' + self._wakeup.window + b"}"
        try:
            parse(told)
        except MessageError:
            return payload
        return told

    def _record(self, final: Final, route: Route | None, value: Any) -> None:
        recorder, wakeup = self._links.recorder, self._wakeup
        if recorder.wants(False):
            redactor = self._desk.redactor if self._desk is not None else None
            asked = wakeup.kept or wakeup.question
            about = Asked(
                asked.messages, asked.schema, self._model if self._has_model else None, self.link.name, value, redactor,
                wakeup.secrets,
                wakeup.cannot_keep, asked.messages != wakeup.question.messages,
                None if wakeup.window is None else json.loads(wakeup.window),
            )  # fmt: skip
            recorder.record(about, replace(final, route=route), self._wakeup.reading.received_s)

    def _trouble(self, kind: str, message: str) -> None:
        self._links.trouble(self._wakeup.link, kind, self._wakeup.reading.topic, message)


def _now() -> str:
    """When an answer was given, in UTC: `2026-11-27T15:20:00Z`."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
