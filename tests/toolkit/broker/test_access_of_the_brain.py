"""A device that escalates may ask that one device or pool, and an operator may read records; delivered, not granted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_runtime.client.corrections import correct
from device_runtime.client.records import kept_records
from device_runtime.client.remote import RemoteModel
from device_runtime.device.service import Service
from device_runtime.errors import UnreachableError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.file import FLEET, check_fleet
from device_runtime.fleet.policies.recording import Recording
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from tests.support.brokers import await_ready, mosquitto
from tests.support.scripted_model import ScriptedModel
from toolkit.broker.access import Access, access_list

FILE = """schema: 1
models: {m: {bundle: x}}
devices:
  small: {model: m, escalate: {to: {device: large}}}
  large: {model: m}
  third: {model: m}
"""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    access = Access()
    access.add_fleet(yaml_schema.loads(FILE, FLEET, check_fleet, file="f"))
    access.add_operator("olga")
    access.add_dashboard("wall")
    access.add_client("phone")
    (tmp_path / "acl").write_text(access_list(access))
    with mosquitto(tmp_path, "user root", f"acl_file {tmp_path / 'acl'}") as port:
        yield port


@pytest.fixture
def large(port: int, tmp_path: Path) -> Iterator[None]:
    import threading

    broker = BrokerAddress("127.0.0.1", port, user="large")
    config = DeviceConfig("large", broker, tmp_path / "large", recording=Recording(keep=5), home_assistant=False)
    service = Service(config, lambda name: ScriptedModel(["yes"]))
    thread = threading.Thread(target=service.run)
    thread.start()
    await_ready(port, "large", login=("olga", "x"))
    yield
    service.stop()
    thread.join()


def ask(port: int, user: str) -> str:
    with RemoteModel(BrokerAddress("127.0.0.1", port, user=user), "large", client=user) as remote:
        return "".join(remote.generate("x", stream=False, timeout_s=1))


def test_what_is_delivered(port: int, large: None) -> None:
    assert ask(port, "small") == "yes"
    with pytest.raises(UnreachableError):
        ask(port, "third")
    found = list(kept_records(BrokerAddress("127.0.0.1", port, user="olga"), "large", client="olga"))
    assert json.loads(json.dumps(found))[0]["text"] == "yes"
    with pytest.raises(UnreachableError):
        list(kept_records(BrokerAddress("127.0.0.1", port, user="small"), "large", client="small", timeout_s=1))


def test_who_may_correct(port: int, large: None) -> None:
    right = {"prompt": "x", "answer": {"kind": "a"}}

    def by(user: str, client: str) -> None:
        correct(BrokerAddress("127.0.0.1", port, user=user), "large", right, client=client, timeout_s=1)

    by("olga", "olga")
    by("wall", "wall")
    for user, client in (("small", "small"), ("phone", "phone"), ("wall", "olga")):  # nor in another's name
        with pytest.raises(UnreachableError):
            by(user, client)
    found = kept_records(BrokerAddress("127.0.0.1", port, user="olga"), "large", "examples", client="olga")
    assert [(example["who"], example["vouched"]) for example in found] == [("olga", True), ("wall", True)]
