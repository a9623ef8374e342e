"""How much a device takes in: a token bucket for each kind of input, and a count of what was kept out.

A limit is far above what an honest fleet sends. It is there so that a client gone wild costs the device neither its
memory nor its CPU, its log or its share of the network: what is kept out is not even parsed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from device_runtime.fleet.settings import RateLimits

__all__ = ["Kind", "RateLimiter"]

EVENT_INTERVAL_S = 60.0
BURST_S = 2.0  # so many seconds' worth may come at once

Kind = Literal[
    "requests", "cancels", "readings", "refusals", "announcements", "updates",
    "oversized",  # unread
    "answers",  # of links, that the broker did not take or a full box gave up
]  # fmt: skip

log = logging.getLogger("stonechat.serve")


class RateLimiter:
    """Admits what is within the limits. May be used from any thread."""

    def __init__(
        self,
        limits: RateLimits,
        report: Callable[[dict[str, Any]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`report` gets an event when something was kept out, at most once a minute for each kind."""
        self._report, self._clock = report, clock
        self._lock = threading.Lock()
        self._rates: dict[str, float] = asdict(limits)
        self._tokens = {kind: rate * BURST_S for kind, rate in self._rates.items()}
        self._filled_s = dict.fromkeys(self._rates, clock())
        self._reported_s: dict[str, float] = {}
        self.counts: Counter[str] = Counter()  # kind -> messages that were kept out

    def admits(self, kind: Kind) -> bool:
        """Whether one more message of this kind is within its limit; if not, it is counted."""
        rate = self._rates[kind]
        with self._lock:
            now_s = self._clock()
            tokens = min(rate * BURST_S, self._tokens[kind] + (now_s - self._filled_s[kind]) * rate)
            self._filled_s[kind] = now_s
            self._tokens[kind] = tokens - 1 if tokens >= 1 else tokens
        if tokens >= 1:
            return True
        self.drop(kind, f"more than {rate:g} a second came")
        return False

    def drop(self, kind: Kind, message: str) -> None:
        """Count a message that was kept out, and why."""
        with self._lock:
            self.counts[kind] += 1
            now_s, count = self._clock(), self.counts[kind]
            if now_s - self._reported_s.get(kind, -EVENT_INTERVAL_S) < EVENT_INTERVAL_S:
                return
            self._reported_s[kind] = now_s
        log.warning("%s dropped (%d so far): %s", kind, count, message)
        self._report({"event": "dropped", "kind": kind, "message": message, "count": count})
