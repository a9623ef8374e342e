"""A worker that neither answers nor goes away: its process is stopped, its connection stays open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_runtime.client.remote import RemoteModel
from device_runtime.mqtt.address import BrokerAddress
from tests.support.brokers import mosquitto
from tests.support.scripted_fleet import Device, fleet_file


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[int, dict[str, Device]]]:
    """Two of a pool, online."""
    fleet = fleet_file(tmp_path, {"one": ", pool: herd", "two": ", pool: herd"})
    with mosquitto(tmp_path) as port:
        workers = {name: Device(tmp_path, port, name, fleet, piece_s=0.02) for name in ("one", "two")}
        try:
            for worker in workers.values():
                worker.start(ready=True)
            yield port, workers
        finally:
            for worker in workers.values():
                worker.kill()


def test_what_it_has_not_taken_is_taken_by_another(workers: tuple[int, dict[str, Device]]) -> None:
    """The broker still gives it every second request; nobody takes these, and they are asked again."""
    port, devices = workers
    devices["one"].freeze()
    with RemoteModel(BrokerAddress("127.0.0.1", port), pool="herd") as model:
        for number in range(2):
            answer = model.generate(f"question {number}", timeout_s=60)
            assert "".join(answer) == f"QUESTION {number}"
            assert answer.device == "two"


@pytest.mark.slow
def test_what_it_has_taken_is_taken_by_another_once_the_broker_gives_it_up(
    workers: tuple[int, dict[str, Device]],
) -> None:
    """After one and a half of its keepalives, as when its power is cut."""
    port, devices = workers
    prompt = " ".join(f"word-{i}" for i in range(100))
    with RemoteModel(BrokerAddress("127.0.0.1", port), pool="herd") as model:
        answer = model.generate(prompt, timeout_s=120)
        text = next(answer)
        first = answer.device
        assert first is not None
        devices[first].freeze()
        text += "".join(answer)
        assert text == prompt.upper()
        assert answer.device != first
