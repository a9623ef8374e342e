"""The fleet as the page shows it, kept current from the broker, and given out to any number of pages.

Nothing here grows with the number of messages: a page that lags gets the last row of each device, and the last answers
of each link, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from device_runtime.client.roll_call import DeviceReport, FleetWatch
from device_runtime.fleet.file import Fleet
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import LinkAnswer
from device_runtime.records.typed_json import write

__all__ = ["LiveFleet"]

PACE_S = 0.1  # between two changes that a page gets: what comes meanwhile goes together
ALIVE_S = 15.0
KEPT_ANSWERS = 30  # of each link
MAX_DEVICES = 5_000  # a broker may be full of retained nonsense
MAX_LINKS = 1_000
_HEALTH = (
    "tps_p50", "temperature_c", "throttled", "queue", "answers", "errors", "rss_mb", "uptime_s", "ttft_ms_p95",
    "board_uptime_s", "arena_bytes", "energy_j", "energy_mwh_answer", "energy_how",
)  # fmt: skip


class LiveFleet:
    """What is known, as JSON. Its methods are for the event loop, but for `news` and `put`, which any thread calls."""

    def __init__(self, fleet: Fleet, broker: BrokerAddress, client: str | None) -> None:
        """Prepare; `open` connects. `client`: the dashboard's name at a broker that knows its users."""
        self._planned = fleet
        self._rows: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, deque[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._readers: set[_Reader] = set()
        self._connection: dict[str, Any] = {"connected": False, "reason": ""}
        self._extra: dict[str, Any] = {}  # other parts of the page, by name
        self.watch = FleetWatch(
            broker, client=client, updates=True, on_news=self.news, on_connection=self._connection_changed
        )
        self.plan(fleet)

    def plan(self, fleet: Fleet) -> None:
        """Take over a fleet file that was changed."""
        with self._lock:
            self._planned = fleet
            for device in fleet.devices:
                self._rows.setdefault(device, {"id": device, "state": "unknown"})
            for device, row in self._rows.items():
                self._add_plan(device, row)
                self._changed("device", device)

    def links(self, links: Mapping[str, Any], fleet: Fleet | None) -> None:
        """Take over what `FileWatch` says of the fleet file."""
        self.put("links", links)
        if fleet is not None:
            self.plan(fleet)

    def open(self) -> None:
        """Connect, and see who is there.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses this client, or does not prove who it is.
        """
        self.watch.open()
        self.watch.settle()

    def close(self) -> None:
        """Disconnect."""
        self.watch.close()

    def end(self) -> None:
        """End what pages wait for."""
        for reader in list(self._readers):
            reader.end()

    def put(self, name: str, value: Any) -> None:
        """Another part of the page, such as roll-outs; pages get it when it changes."""
        with self._lock:
            if self._extra.get(name) != value:
                self._extra[name] = value
                self._changed("extra", name)

    def news(self, report: DeviceReport, kind: str) -> None:
        """A message of a device."""
        with self._lock:
            row = self._rows.get(report.device)
            if row is None:
                if len(self._rows) >= MAX_DEVICES:
                    return
                row = self._rows[report.device] = {"id": report.device, "state": "unknown"}
                self._add_plan(report.device, row)
            if kind == "link":
                self._add_answers(report)
            else:
                _PARTS[kind](row, report)
                self._changed("device", report.device)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Everything, then what changes, at most ten times a second. An empty one is a sign of life."""
        reader = _Reader()
        with self._lock:
            answers = [answer for kept in self._answers.values() for answer in kept]
            everything = {
                "all": True,
                "devices": [dict(row) for row in self._rows.values()],
                "answers": sorted(answers, key=lambda answer: int(answer["number"])),
                "broker": self._connection,
                **self._extra,
            }
            self._readers.add(reader)
        try:
            yield everything
            while await reader.wait(ALIVE_S):
                with self._lock:
                    some = self._changes(reader.take())
                yield some
                if some:
                    await asyncio.sleep(PACE_S)
        finally:
            with self._lock:
                self._readers.discard(reader)

    def _changes(self, changed: dict[str, OrderedDict[str, Any]]) -> dict[str, Any]:
        some: dict[str, Any] = {}
        if changed["device"]:
            some["devices"] = [dict(self._rows[name]) for name in changed["device"]]
        if changed["answer"]:
            some["answers"] = list(changed["answer"].values())
        if changed["broker"]:
            some["broker"] = self._connection
        return some | {name: self._extra[name] for name in changed["extra"]}

    def answers_of(self, link: str) -> list[dict[str, Any]]:
        """The last answers of a link, the oldest first."""
        with self._lock:
            return list(self._answers.get(link, ()))

    def _add_plan(self, device: str, row: dict[str, Any]) -> None:
        planned = self._planned.devices.get(device)
        row["planned"] = planned is not None
        if planned is not None:
            row["links"], row["groups"] = list(planned.links), list(planned.groups)
            row.setdefault("models", list(planned.models))
            row.setdefault("pool", planned.pool)

    def _add_answers(self, report: DeviceReport) -> None:
        for name, answer in report.links.items():
            if name not in self._answers and len(self._answers) >= MAX_LINKS:
                continue
            kept = self._answers.setdefault(name, deque(maxlen=KEPT_ANSWERS))
            row = {"link": name, "device": report.device, **_answer_fields(answer)}
            if not any(row == {k: v for k, v in old.items() if k != "number"} for old in kept):
                row["number"] = next(self._numbers)
                kept.append(row)
                self._changed("answer", str(row["number"]), row)

    def _connection_changed(self, connected: bool, reason: str) -> None:
        with self._lock:
            self._connection = {"connected": connected, "reason": "" if connected else reason}
            self._changed("broker", "broker")

    def _changed(self, kind: str, name: str, what: Any = None) -> None:
        for reader in self._readers:
            reader.note(kind, name, what)


class _Reader:
    """One page: what it has not received yet."""

    def __init__(self) -> None:
        """For the running loop."""
        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()
        self._ended = False
        self._changed = self._none()

    @staticmethod
    def _none() -> dict[str, OrderedDict[str, Any]]:
        return {kind: OrderedDict() for kind in ("device", "answer", "extra", "broker")}

    def note(self, kind: str, name: str, what: Any) -> None:
        """Something has changed; under the fleet's lock, in any thread."""
        first = not any(self._changed.values())
        self._changed[kind][name] = what
        if len(self._changed[kind]) > MAX_DEVICES:
            self._changed[kind].popitem(last=False)
        if first:
            self._call(self._there.set)

    def take(self) -> dict[str, OrderedDict[str, Any]]:
        """What has changed since the last time; under the fleet's lock."""
        taken, self._changed = self._changed, self._none()
        self._there.clear()
        return taken

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a change, or so long; False at the end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._there.wait(), timeout_s)
        return not self._ended

    def end(self) -> None:
        """No more; from any thread."""
        self._ended = True
        self._call(self._there.set)

    def _call(self, what: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(what)


def _answer_fields(answer: LinkAnswer) -> dict[str, Any]:
    fields: dict[str, Any] = write(answer)
    return {name: value for name, value in fields.items() if name not in ("link", "device")}


def _state(row: dict[str, Any], report: DeviceReport) -> None:
    if report.state is None:  # it has not come back to a broker that was away
        row["state"] = "unknown"
    else:
        row["state"], row["boot"] = report.state.state.value, report.state.boot


def _info(row: dict[str, Any], report: DeviceReport) -> None:
    if (info := report.info) is not None:
        row |= {
            "board": info.board, "version": info.version, "models": list(info.models), "pool": info.pool,
            "bundles": dict(info.bundles or {}), "tasks": dict(info.tasks or {}), "firmware": info.firmware,
            "not_open": dict(info.not_open or {}), "links_refused": dict(info.links_refused or {}),
        }  # fmt: skip


def _health(row: dict[str, Any], report: DeviceReport) -> None:
    if (health := report.health) is not None:
        row["health"] = {name: value for name in _HEALTH if (value := getattr(health, name)) is not None}
        row["health_at"] = round(time.time())


def _update(row: dict[str, Any], report: DeviceReport) -> None:
    if (update := report.update) is not None:
        row["update"] = {
            "phase": update.phase.value, "model": update.model, "version": update.version,
            "done_bytes": update.done_bytes, "total_bytes": update.total_bytes, "message": update.message,
        }  # fmt: skip


_PARTS: dict[str, Callable[[dict[str, Any], DeviceReport], None]] = {
    "state": _state, "info": _info, "health": _health, "ota": _update,
}  # fmt: skip
