"""A link that is not saved yet, tried on recorded readings: with the bundle on this machine, else by its device."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from device_runtime.client.remote import RemoteModel
from device_runtime.engine.language_model import Completion
from device_runtime.errors import RefusedError
from device_runtime.fleet.file import Fleet
from device_runtime.mqtt.address import BrokerAddress
from toolkit.replay import Recorded, Replay, parse_recorded

__all__ = ["DryRun"]

MAX_READINGS = 200
LONGEST_S = 60.0  # of one try; readings that are left then are counted


class DryRun:
    """One try at a time: each may open a model."""

    def __init__(self, broker: BrokerAddress, client: str | None) -> None:
        """`client`: who asks a device, as the broker knows it."""
        self._broker, self._client = broker, client
        self._lock = threading.Lock()

    def run(self, fleet: Fleet, link: str, text: str) -> dict[str, Any]:
        """What would be answered.

        Args:
            fleet: with the link.
            link: its name.
            text: readings, a line each, as `stonechat try --readings` takes them.

        Raises:
            ConfigurationError: no device serves the link, or a line is no reading.
            RefusedError: another try is under way.
            UnreachableError: there is no bundle here, and the device does not answer.
        """
        readings = _readings(text)
        device = next((name for name, entry in fleet.devices.items() if link in entry.links), None)
        if device is None:
            raise RefusedError("no device serves this link; tick one that does.", reason="no_device")
        if not self._lock.acquire(blocking=False):
            raise RefusedError("another link is being tried; wait for its end.", status=429, reason="busy")
        try:
            wanted = next(entry for entry in fleet.links if entry.name == link)
            models = fleet.models_of(device)
            asked = wanted.may_ask(tuple(models), routed=fleet.devices[device].router is not None)
            if all(Path(models[name].bundle).exists() for name in asked):
                with Replay(fleet, device, only=link) as replay:
                    return {"where": "this machine", **_answers(replay, readings)}
            with RemoteModel(self._broker, device, client=self._client) as remote:
                asking = {name: _Asked(remote, wanted.model) for name in models}  # None: it finds the model itself
                with Replay(fleet, device, only=link, models=asking) as replay:
                    return {"where": device, **_answers(replay, readings)}
        finally:
            self._lock.release()


def _readings(text: str) -> list[Recorded]:
    found = parse_recorded(text, "this", "line")
    if len(found) > MAX_READINGS:
        raise RefusedError(f"these are {len(found)} readings; try at most {MAX_READINGS} at once.")
    return found


def _answers(replay: Replay, readings: Sequence[Recorded]) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    asleep = taken = 0
    end_s = time.monotonic() + LONGEST_S
    for taken, replayed in enumerate(replay.run(readings), 1):  # noqa: B007 (used after the loop)
        if replayed is None:
            asleep += 1
        else:
            answers.append(replayed.to_json())
        if time.monotonic() > end_s:
            break
    left = max(0, len(readings) - replay.of_no_link - taken)
    return {"answers": answers, "asleep": asleep, "of_no_link": replay.of_no_link, "left": left}


class _Asked:
    """A device in the place of a bundle: as much of `LanguageModel` as a replay uses."""

    def __init__(self, remote: RemoteModel, model: str | None) -> None:
        self._remote, self._model = remote, model

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new: int | None = None,
        schema: Mapping[str, Any] | None = None,
        head: str | None = None,
        nothing: str | None = None,
    ) -> _Answer:
        return _Answer(self._remote, messages, model=self._model, max_new=max_new, schema=schema)

    def close(self) -> None:
        """The connection is another's."""


class _Answer:
    """As much of a `Generation`."""

    result: Completion

    def __init__(self, remote: RemoteModel, messages: Sequence[Mapping[str, str]], **options: Any) -> None:
        self._answer = remote.generate(messages, stream=False, timeout_s=LONGEST_S, **options)

    def __iter__(self) -> Iterator[str]:
        yield from self._answer
        final = self._answer.final
        self.result = Completion(
            final.text, "stop", final.usage.prompt_tokens, final.usage.cached_tokens, final.usage.completion_tokens,
            final.ttft_ms, final.tps, final.confidence, (final.reason,) if final.unfamiliar and final.reason else (),
        )  # fmt: skip
