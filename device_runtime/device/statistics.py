"""Counts and rates of what a device does, for `out/health`."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from device_runtime.machine.machine import rss_mb, temperature_c, throttled
from device_runtime.mqtt.messages import Final

__all__ = ["Statistics"]

_ANSWERS = 256  # the last ones, whose rates and times count


class Statistics:
    """Counts what a device does. May be used from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started_s = clock, clock()
        self._lock = threading.Lock()
        self._rates: deque[float] = deque(maxlen=_ANSWERS)  # tokens per second
        self._firsts_ms: deque[float] = deque(maxlen=_ANSWERS)  # times to first token
        self._energy_j, self._energy_answers, self._energy_how = 0.0, 0, ""
        self._answers = self._errors = self._prompt_tokens = self._reused_tokens = 0

    def answered(self, final: Final) -> None:
        """An answer was given."""
        with self._lock:
            self._answers += 1
            self._prompt_tokens += final.usage.prompt_tokens
            self._reused_tokens += final.usage.cached_tokens
            if final.energy is not None:
                self._energy_j += final.energy["j"]
                self._energy_answers, self._energy_how = self._energy_answers + 1, final.energy["how"]
            if final.usage.completion_tokens > 0:
                self._firsts_ms.append(final.ttft_ms)
            if final.usage.completion_tokens > 1:
                self._rates.append(final.tps)

    def failed(self) -> None:
        """A request or a reading got no answer, through no fault of its sender."""
        with self._lock:
            self._errors += 1

    def to_fields(self, queue: int, dropped: Mapping[str, int] | None = None) -> dict[str, Any]:
        """`out/health`; a figure that this machine or the time so far does not give is left out.

        Args:
            queue: how many wait.
            dropped: what the limits have kept out, by kind.
        """
        with self._lock:
            fields: dict[str, Any] = {
                "uptime_s": round(self._clock() - self._started_s),
                "rss_mb": round(rss_mb(), 1),
                "temperature_c": temperature_c(),
                "throttled": throttled(),
                "answers": self._answers,
                "errors": self._errors,
                "prompt_tokens": self._prompt_tokens,
                "reused_tokens": self._reused_tokens,
                "queue": queue,
                "dropped": dropped or None,
                "energy_j": round(self._energy_j, 3) if self._energy_answers else None,
                "energy_mwh_answer": round(self._energy_j / self._energy_answers / 3.6, 5)
                if self._energy_answers
                else None,
                "energy_how": self._energy_how or None,
                "tps_p50": round(statistics.median(self._rates), 2) if self._rates else None,
                "ttft_ms_p95": round(_percentile(self._firsts_ms, 95), 1) if self._firsts_ms else None,
            }
        return {name: value for name, value in fields.items() if value is not None}


def _percentile(values: deque[float], percent: int) -> float:
    """Nearest rank."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
