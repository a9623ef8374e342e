"""Devices are found on a broker that keeps nothing of them: as a cluster's node does, of those at another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_runtime.client.remote import RemoteModel
from device_runtime.client.roll_call import roll_call
from device_runtime.device.service import Service
from device_runtime.errors import UnreachableError
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState
from device_runtime.mqtt.topics import ANNOUNCE
from tests.device_runtime.conftest import OnAir
from tests.support.brokers import mosquitto
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[BrokerAddress]:
    """A broker without retained messages, and two devices that have been ready for a while."""
    with mosquitto(tmp_path, "retain_available false") as port:
        broker = BrokerAddress("127.0.0.1", port)
        services = [
            Service(DeviceConfig(name, broker, tmp_path / name, home_assistant=False), lambda name: ScriptedModel())
            for name in ("north", "south")
        ]
        threads = [threading.Thread(target=service.run, kwargs={"wait_for_broker": True}) for service in services]
        for thread in threads:
            thread.start()
        try:
            for service in services:
                wait_until(lambda: service._device.lifecycle.state is DeviceState.READY and service._client.connected)  # noqa: B023
            yield broker
        finally:
            for service, thread in zip(services, threads, strict=True):
                service.stop()
                thread.join(20)


def test_all_are_found_and_each_can_be_asked(forgetful: BrokerAddress) -> None:
    found = roll_call(forgetful)
    assert {name: (report.state.state, report.info.models) for name, report in found.items()} == {  # type: ignore[union-attr]
        "north": (DeviceState.READY, ("default",)), "south": (DeviceState.READY, ("default",)),
    }  # fmt: skip
    for name in found:
        with RemoteModel(forgetful, name) as remote:
            assert "".join(remote.generate("it is hot")) == "IT IS HOT"


def test_who_is_not_there_is_said_not_to_be(forgetful: BrokerAddress) -> None:
    with RemoteModel(forgetful, "west") as remote, pytest.raises(UnreachableError, match="no device 'west' is known"):
        "".join(remote.generate("it is hot"))


def test_a_device_answers_for_itself_and_not_more_often_than_the_limits_allow(on_air: Callable[..., OnAir]) -> None:
    device = on_air()
    own = device.topics.device.encode()
    for number, (whom, answers) in enumerate(((b"another", 0), (own, 1), (b"", 1), (b"", 0), (b"", 0))):
        device.client.client.publish(ANNOUNCE, whom, qos=1)
        after = device.ask(prompt="x", model="unknown", session=str(number), correlation=b"%d" % number)
        said = [topic for topic, value in device.client.until(lambda topic, value: topic == after)]  # noqa: B023
        assert (said.count(device.topics.state), said.count(device.topics.info)) == (answers, answers)
