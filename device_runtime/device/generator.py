"""Runs one generation at a time, and lets others end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from device_runtime.device.generation import Run
from device_runtime.device.health import Health
from device_runtime.device.models import Models
from device_runtime.device.watchdog import Pulse
from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.messages import Final, Request

__all__ = ["Generator"]

FIRST_GUESS_MS = 2_000  # how long an answer takes, before there was one


class Generator:
    """What stands between the jobs of a device and its models. `generate` is for one thread, the rest for any."""

    def __init__(self, health: Health, pulse: Pulse) -> None:
        """`pulse` beats with each piece of an answer."""
        self.models: Models | None = None  # set before the first job comes
        self.average_ms = float(FIRST_GUESS_MS)  # of an answer, lately
        self._health, self._pulse = health, pulse
        self._lock = threading.Lock()
        self._current: Run | None = None
        self._stopped = False

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return self._current is None

    def generate(self, request: Request, run: Run, on_piece: Callable[[str], None] = lambda text: None) -> Final:
        """Answer a request.

        Args:
            run: ends the answer, by its deadline or by `end`.
            on_piece: gets each piece.
        """
        with self._lock:
            self._current = run
            if self._stopped:
                run.end("cancelled")
        start_s = time.monotonic()
        try:
            assert self.models is not None
            answer = self.models.generate(request)

            def heard(text: str) -> None:
                self._pulse.beat()
                on_piece(text)

            final = run.to_end(answer, heard)
            self._health.answered(final)
            return final
        except ConfigurationError:  # the request's own fault
            raise
        except Exception:
            self._health.failed()
            raise
        finally:
            with self._lock:
                self._current = None
            self.average_ms += 0.3 * ((time.monotonic() - start_s) * 1000 - self.average_ms)

    def stop(self) -> None:
        """End the answer that is under way, and each that begins from now on."""
        with self._lock:
            self._stopped = True
            if self._current:
                self._current.end("cancelled")
