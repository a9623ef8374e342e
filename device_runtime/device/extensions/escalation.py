"""Passes on what the models of this device should not answer alone, and judges which of their answers those are."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from device_runtime.brain.budget import Budget
from device_runtime.brain.escalator import Escalator, Outcome, Passed
from device_runtime.brain.far.device import FarDevice
from device_runtime.brain.far.openai_server import OpenAIServer
from device_runtime.brain.far.side import FarAnswer, FarQuestion, FarSide
from device_runtime.brain.kept_examples import FILE, KeptLines
from device_runtime.brain.question import far_question, input_of
from device_runtime.brain.redaction import Redactor
from device_runtime.brain.router import Chosen
from device_runtime.brain.two_answers import joined
from device_runtime.device.extension import Device, Extension
from device_runtime.engine.generation import Certainty
from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation, Reason
from device_runtime.machine.machine import temperature_c
from device_runtime.mqtt.messages import Final, Route
from device_runtime.tasks.purpose import Purpose

__all__ = ["Desk", "Escalations"]

MAX_HOPS = 2  # from device to device; a circle of fleet files would never end
BUDGET = "budget.json"  # in the state folder
_SPARE_S = 0.05  # of the deadline, in which the local answer still goes out


class Desk:
    """The policy of one link, or of a device's requests, and the way to its larger model."""

    def __init__(self, device: Device, escalator: Escalator, examples: KeptLines) -> None:
        self.policy = escalator.policy
        self.redactor = Redactor(self.policy.redact)
        self._device, self._escalator, self._examples = device, escalator, examples

    def late_s(self, received_s: float, deadline_s: float | None) -> float | None:
        """When a local answer is late, on the monotonic clock; None: never.

        Args:
            deadline_s: when the answer has to be there, on the monotonic clock.
        """
        if "late" not in self.policy.when:
            return deadline_s
        if self.policy.late_s is None:
            return None if deadline_s is None else received_s + (deadline_s - received_s) / 2
        late_s = received_s + self.policy.late_s
        return late_s if deadline_s is None else min(late_s, deadline_s)

    def spare(self) -> tuple[Reason, str] | None:
        """Why this device should not begin an answer now."""
        if "hot" in self.policy.when and (now_c := temperature_c()) is not None and now_c >= self.policy.hot_c:
            return "hot", f"the device has {now_c:.0f} °C"
        return None

    def overrun(self) -> tuple[Reason, str] | None:
        """Why this device should not queue one more. Does not block."""
        waiting = len(self._device.queue)
        if "busy" in self.policy.when and waiting >= (self.policy.busy or self._device.config.queue):
            return "busy", f"{waiting} wait already"
        return None

    def doubt(
        self,
        final: Final,
        below: float | None = None,
        chosen: Chosen | None = None,
        purpose: Purpose | None = None,
    ) -> tuple[Reason, str] | None:
        """Why a local answer should not go out alone.

        Args:
            below: the link's own limit, in place of the policy's.
            chosen: how the router found the model, where it did.
            purpose: of the model.
        """
        below = self._limit(below)
        if final.unfamiliar:
            return ("unfamiliar", final.reason or "it is unfamiliar") if "unfamiliar" in self.policy.when else None
        confidence = final.confidence or {}
        name = min(confidence, key=lambda field: confidence[field], default=None)
        if name is not None and confidence[name] < below and "unsure" in self.policy.when:
            return "unsure", f"the confidence in {name} is {confidence[name]:.2f}, below {below:g}"
        if chosen is not None and chosen.doubtful and "unfamiliar" in self.policy.when:
            return None if self.settles(final, below, purpose) else ("unfamiliar", f"rather for no model: {chosen.why}")
        return None

    def settles(self, final: Final, below: float | None, purpose: Purpose | None) -> bool:
        """Whether a model is sure of its answer, and that something was asked of it: that it is the right model."""
        below = self._limit(below)
        if final.finish != "stop" or final.unfamiliar or not final.confidence or purpose is None:
            return False
        return min(final.confidence.values()) >= below and not purpose.asks_nothing(json.loads(final.text))

    def pass_on(
        self,
        reason: Reason,
        why: str,
        question: FarQuestion,
        deadline_s: float | None,
        done: Callable[[Final | None, Route], None],
        *,
        about: Mapping[str, Any],
        local: Final | None = None,
        below: float | None = None,
        purpose: Purpose | None = None,
        key: Hashable | None = None,
        secrets: Mapping[str, str],
    ) -> bool:
        """Pass a question on, unless the policy does not do that for this reason. Does not wait.

        Args:
            deadline_s: on the monotonic clock.
            done: called once, in any thread, with the answer and where it is from; with None where there is none.
            about: fields of the example that is kept of it.
            local: this device's own answer.
            below: the link's own limit, in place of the policy's.
            secrets: texts that were withheld of the question, see `Redactor`: they are in no example either.
        """
        if reason not in self.policy.when or question.hops >= MAX_HOPS:
            return False
        end_s = time.monotonic() + self.policy.timeout_s
        if deadline_s is not None:
            end_s = min(end_s, deadline_s - _SPARE_S)
        begun_s = time.monotonic()

        def ended(outcome: Outcome) -> None:
            answer = outcome.answer
            if answer is None:
                return done(None, Route(why=f"{reason}: {why}", failed=outcome.failed))
            if reason == "unsure" and local is not None and self.policy.decides == "unsure":
                certainty = Certainty(local.confidence, local.probabilities)
                at_once = purpose is not None and purpose.at_once
                answer = joined(local.text, certainty, answer, self._limit(below), at_once=at_once)
            self._keep(reason, question, answer, about, local, purpose, secrets)
            took_ms = (time.monotonic() - begun_s) * 1000
            spent = None if local is None else local.energy
            final = Final(
                0, answer.text, "stop", answer.usage, took_ms, confidence=answer.confidence, energy=spent,
                unfamiliar=True if answer.unfamiliar else None,
                reason=f"{answer.where}: {answer.unfamiliar}" if answer.unfamiliar else None,
                probabilities=answer.probabilities,
            )  # fmt: skip
            return done(final, Route(answer.where, answer.model, f"{reason}: {why}"))

        self._escalator.submit(Passed(reason, question, end_s, ended, key, local is not None))
        return True

    def cancel(self, key: Hashable) -> bool:
        """Forget a question; whether there was one."""
        return self._escalator.cancel(key)

    def _limit(self, below: float | None) -> float:
        """From which confidence on a field is sure; `below` is a link's own limit, in place of the policy's."""
        return self.policy.below if below is None else below

    def _keep(
        self,
        reason: Reason,
        question: FarQuestion,
        answer: FarAnswer,
        about: Mapping[str, Any],
        local: Final | None,
        purpose: Purpose | None,
        secrets: Mapping[str, str],
    ) -> None:
        if question.schema is None or not self.policy.keep or answer.unfamiliar:
            return
        ours = None
        if local is not None:
            ours = {"text": self.redactor.answer(local.text, secrets), "confidence": dict(local.confidence or {})}
        self._examples.add({
            "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **about,
            "task": None if purpose is None else purpose.name, "input": input_of(question.messages, purpose),
            "answer": json.loads(answer.text), "by": answer.where, "why": reason, "local": ours,
        })  # fmt: skip


class Escalations(Extension):
    """All desks of one device."""

    def __init__(self, device: Device) -> None:
        config = device.config
        self._device = device
        self._budget = Budget(config.state_dir / BUDGET)
        policies = {"device": config.escalate, **{f"link {link.name}": link.escalate for link in config.links}}
        keep = max((policy.keep for policy in policies.values() if policy is not None), default=0)
        self.examples = KeptLines(config.state_dir / FILE, keep)
        self._escalators: dict[str, Escalator] = {}
        self._desks: dict[str, Desk] = {}
        for key, policy in policies.items():
            if policy is not None:
                escalator = Escalator(key, policy, partial(self._open, policy), self._budget)
                self._escalators[key] = escalator
                self._desks[key] = Desk(device, escalator, self.examples)
        self.capabilities = ("escalate",) if self._desks else ()

    def of(self, link: Link | None = None) -> Desk | None:
        """The desk of a link, or of requests; None: nothing is passed on."""
        own = self._desks.get(f"link {link.name}") if link is not None else None
        return own or self._desks.get("device")

    def question(
        self,
        desk: Desk,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any] | None,
        *,
        purpose: Purpose | None,
        secrets: Mapping[str, str],
        max_new: int | None = None,
        hops: int = 0,
    ) -> FarQuestion:
        """What the larger model is asked; see `far_question`.

        Args:
            purpose: of the model that would answer here; None: it was trained for no task, or none is for it.

        Raises:
            CannotRedactError: the schema demands something that is withheld.
        """
        return far_question(
            messages, schema, system=desk.policy.system, purpose=purpose,
            redactor=desk.redactor, secrets=secrets, max_new=max_new, hops=hops,
        )  # fmt: skip

    def cancel(self, key: Hashable) -> bool:
        """Forget a question; whether there was one."""
        return any(desk.cancel(key) for desk in self._desks.values())

    def tick(self) -> None:
        """Give up what is too late."""
        for escalator in self._escalators.values():
            escalator.expire()

    def health(self) -> dict[str, Any]:
        """By policy: answers from elsewhere by reason, failures, and what was spent today."""
        return {"escalations": {name: escalator.health() for name, escalator in self._escalators.items()} or None}

    def stop(self) -> None:
        """What is under way gets its local answers."""
        for escalator in self._escalators.values():
            escalator.stop()

    def _open(self, policy: Escalation) -> FarSide:
        if policy.to.url is not None:
            return OpenAIServer.open(policy.to, off_site=policy.allow == "off-site")
        return FarDevice(policy.to, self._device.config.broker, self._device.config.device)
