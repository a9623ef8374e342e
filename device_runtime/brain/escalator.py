"""Passes questions on to one larger model, in threads of its own: nothing that a device does itself waits for them."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

from device_runtime.brain.budget import Budget
from device_runtime.brain.far.side import FarAnswer, FarQuestion, FarSide
from device_runtime.engine.schema.acceptance import accepted
from device_runtime.errors import IncompleteError, StonechatError
from device_runtime.fleet.policies.escalation import Escalation, Reason
from device_runtime.records.printable import counted, shown

__all__ = ["Escalator", "Outcome", "Passed"]

_LONGEST_REASON = 300  # characters that a far side's reason may have
MAX_WAITING = 64  # questions before the larger model; each has its local answer, or its place in the device's queue

log = logging.getLogger("stonechat.serve")


@dataclass(frozen=True)
class Outcome:
    """How it went."""

    answer: FarAnswer | None = None  # what fits the schema; None: there is none
    failed: str = ""  # why there is none


@dataclass(eq=False)
class Passed:
    """A question on its way."""

    reason: Reason
    question: FarQuestion
    end_s: float  # on the monotonic clock: from then on an answer is of no use
    done: Callable[[Outcome], None]  # called once, in any thread
    key: Hashable | None = None  # what `cancel` names it by
    answered: bool = False  # whether this device has an answer of its own
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: bool = False

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def take(self) -> bool:
        """End it, unless it has ended; who gets True calls `done`, or has a reason not to."""
        with self._lock:
            over, self._over = self._over, True
        return not over


class Escalator:
    """The way to the larger model of one policy. May be used from any thread."""

    def __init__(self, name: str, policy: Escalation, open_far: Callable[[], FarSide], budget: Budget) -> None:
        """Prepare; `open_far` is called at the first question."""
        self.name, self.policy = name, policy
        self._open_far, self._budget = open_far, budget
        self._waiting: queue.Queue[Passed] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._all: set[Passed] = set()  # that have not ended
        self._far: FarSide | None = None
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._counts: Counter[str] = Counter()

    def submit(self, passed: Passed) -> None:
        """Pass a question on. Does not wait; `passed.done` may be called before this returns."""
        with self._lock:
            refusal = "the device is shutting down" if self._stopped else ""
            if not refusal:
                try:
                    self._waiting.put_nowait(passed)
                except queue.Full:
                    refusal = f"{MAX_WAITING} questions wait for {self.policy.to.name} already"
                else:
                    self._all.add(passed)
                    if len(self._threads) < min(self.policy.at_once, len(self._all)):
                        thread = threading.Thread(target=self._work, name="stonechat-escalation", daemon=True)
                        self._threads.append(thread)
                        thread.start()
        if refusal:
            self._end(passed, Outcome(failed=refusal))

    def expire(self) -> None:
        """End what is too late: a name server, or all threads, may have taken its time."""
        now_s = time.monotonic()
        with self._lock:
            late = [passed for passed in self._all if now_s > passed.end_s]
        for passed in late:
            self._end(passed, Outcome(failed=f"{self.policy.to.name} did not answer in time"))

    def cancel(self, key: Hashable) -> bool:
        """Forget a question, without a call of `done`; whether there was one."""
        with self._lock:
            found = next((passed for passed in self._all if passed.key == key), None)
            self._all -= {found} if found is not None else set()
        return found is not None and found.take()

    def stop(self) -> None:
        """End all that is under way: each gets its local answer now."""
        with self._lock:
            self._stopped = True
            left, far = list(self._all), self._far
        for passed in left:
            self._end(passed, Outcome(failed="the device is shutting down"))
        if far is not None:
            far.close()

    def health(self) -> dict[str, int]:
        """Answers from elsewhere by reason, and failures; what was spent of today's budget."""
        with self._lock:
            found = dict(self._counts)
        if self.policy.requests_a_day is not None:
            found["today"] = self._budget.spent().get(self.name, 0)
        return found

    def _work(self) -> None:
        while not self._stopped:
            try:
                passed = self._waiting.get(timeout=1.0)
            except queue.Empty:
                continue
            if not passed.over:
                self._end(passed, self._ask(passed))

    def _ask(self, passed: Passed) -> Outcome:
        name = self.policy.to.name
        most = self.policy.requests_a_day
        if not self._budget.spend(self.name, most):
            return Outcome(failed=f"today's budget of {counted(most or 0, 'question')} is spent")
        try:
            far = self._far_side()
            answer = far.ask(passed.question, passed.end_s)
            strange = shown(answer.unfamiliar, _LONGEST_REASON)
            if strange and passed.answered:  # it knows no better
                return Outcome(failed=f"{answer.where}: it is unfamiliar there, too: {strange}")
            schema = passed.question.schema
            try:
                text = answer.text if schema is None else accepted(answer.text, schema)
            except IncompleteError as error:
                raise IncompleteError(f"it is unfamiliar there: {strange}" if strange else str(error)) from None
            answer = replace(answer, text=text, confidence=_of_fields(answer.confidence, text), unfamiliar=strange)
        except StonechatError as error:
            said = str(error)
            return Outcome(failed=said if said.startswith(name) else f"{name}: {said}")
        except Exception as error:  # the local answer must go out, whatever this was
            log.error("asking %s failed: %s", name, type(error).__name__)
            log.debug("details", exc_info=error)
            return Outcome(failed=f"{name}: {type(error).__name__}")
        return Outcome(answer)

    def _far_side(self) -> FarSide:
        with self._lock:
            if self._far is None:
                self._far = self._open_far()
            return self._far

    def _end(self, passed: Passed, outcome: Outcome) -> None:
        with self._lock:
            self._all.discard(passed)
            if not passed.take():
                return
            self._counts[passed.reason if outcome.answer is not None else "failed"] += 1
        if outcome.answer is None:  # here, so that no way to fail is without a line: also not a server that hangs
            log.info("a question that was passed on has no answer: %s", outcome.failed)
        try:
            passed.done(outcome)
        except Exception as error:
            log.error("an answer could not be delivered: %s", type(error).__name__)
            log.debug("details", exc_info=error)


def _of_fields(confidence: Mapping[str, float] | None, text: str) -> Mapping[str, float] | None:
    """What is said of fields that the answer has: a far side may say anything."""
    try:
        answer = json.loads(text) if confidence else None
    except (ValueError, RecursionError):  # it was asked for no JSON
        return None
    if confidence is None or not isinstance(answer, dict):
        return None
    return {name: share for name, share in confidence.items() if name in answer and 0 <= share <= 1} or None
