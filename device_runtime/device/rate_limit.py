"""How much a device takes in: a token bucket for each kind of input, and a count of what was kept out.

A limit is far above what an honest fleet sends. It is there so that a client gone wild costs the device neither its
memory nor its CPU, its log or its share of the network: what is kept out is not even parsed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from device_runtime.fleet.settings import RateLimits

__all__ = ["Kind", "RateLimiter"]

EVENT_INTERVAL_S = 60.0
BURST_S = 2.0  # so many seconds' worth may come at once
TOGETHER = 10  # times the limit of one client is that of all clients
MAX_CLIENTS = 1024  # whose messages are counted apart; the one that was silent longest begins again
_BY_CLIENT = ("requests", "cancels", "refusals")

Kind = Literal[
    "requests", "cancels", "readings", "refusals", "announcements", "updates",
    "oversized",  # unread
    "answers",  # of links, that the broker did not take or a full box gave up
]  # fmt: skip

log = logging.getLogger("stonechat.serve")


class _Bucket:
    """A token bucket."""

    def __init__(self, rate: float, now_s: float) -> None:
        self.rate, self._tokens, self._filled_s = rate, rate * BURST_S, now_s

    def takes(self, now_s: float) -> bool:
        """Whether one more message is within the rate."""
        tokens = min(self.rate * BURST_S, self._tokens + (now_s - self._filled_s) * self.rate)
        self._filled_s = now_s
        self._tokens = tokens - 1 if tokens >= 1 else tokens
        return tokens >= 1


class RateLimiter:
    """Admits what is within the limits. May be used from any thread.

    Where it is known who asks, each client has the limit for itself, so that one that has gone wild costs the others
    nothing; all together have `TOGETHER` times as much, whatever names they take.
    """

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
        self._all = {
            kind: _Bucket(rate * (TOGETHER if kind in _BY_CLIENT else 1), clock()) for kind, rate in self._rates.items()
        }
        self._clients: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()  # the one that was silent longest is first
        self._reported_s: dict[str, float] = {}
        self.counts: Counter[str] = Counter()  # kind -> messages that were kept out

    def admits(self, kind: Kind, client: str | None = None) -> bool:
        """Whether one more message of this kind is within its limit; if not, it is counted.

        Args:
            client: who asks; None if that is not known.
        """
        with self._lock:
            bucket = self._all[kind]
            admitted = bucket.takes(self._clock())
        if not admitted:
            self.drop(kind, f"more than {bucket.rate:g} a second came")
            return False
        return client is None or self.admits_client(kind, client)

    def admits_client(self, kind: Kind, client: str) -> bool:
        """The same for one client alone: for a message that was admitted before it was known who asks."""
        rate = self._rates[kind]
        with self._lock:
            now_s = self._clock()
            bucket = self._clients.setdefault((kind, client), _Bucket(rate, now_s))
            self._clients.move_to_end((kind, client))
            while len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
            admitted = bucket.takes(now_s)
        if not admitted:
            self.drop(kind, f"more than {rate:g} a second came from {client}")
        return admitted

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
