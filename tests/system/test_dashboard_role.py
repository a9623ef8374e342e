"""The dashboard at a broker that knows its users: what its role can do there, held by what is delivered."""

from __future__ import annotations

import http.client
import json
import queue
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device_runtime.mqtt.address import Certificates
from tests.support.brokers import free_port, made_broker
from tests.support.scripted_fleet import wait_until
from toolkit.cli import main

for package in ("cryptography", "starlette", "uvicorn", "ruamel.yaml"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extras `sign` and `dashboard`)")

FLEET = """\
schema: 1
broker: {{url: "mqtts://localhost:{port}", certs: broker}}
models:
  tiny: {{bundle: nowhere}}
devices:
  north: {{model: tiny}}
"""


class User:
    """Plain paho with one user's certificate."""

    def __init__(self, folder: Path, port: int, name: str) -> None:
        self.received: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.tls_set_context(Certificates.of(folder, name).context())
        self.client.on_message = lambda c, u, message: self.received.put(message)
        self.client.connect("localhost", port)
        self.client.loop_start()

    def publish(self, topic: str, value: object, retain: bool = False, **properties: Any) -> None:
        found = Properties(PacketTypes.PUBLISH)
        for name, of in properties.items():
            setattr(found, name, of)
        payload = json.dumps(value).encode()
        self.client.publish(topic, payload, qos=1, retain=retain, properties=found).wait_for_publish(30)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int]]:
    """A broker that knows the device `north`, the dashboard `wall` and the client `phone`."""
    port = free_port()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "fleet.yaml").write_text(FLEET.format(port=port), encoding="utf-8")
    flags = [
        "--host",
        "localhost",
        "--port",
        str(port),
        "--device",
        "north",
        "--dashboard",
        "wall",
        "--client",
        "phone",
    ]
    assert main(["broker", "init", str(tmp_path / "broker"), *flags]) == 0
    with made_broker(tmp_path / "broker", port):
        yield tmp_path, port


def test_it_sees_and_asks_and_orders_nothing(site):
    folder, port = site
    north = User(folder / "broker", port, "north")
    north.client.subscribe("stonechat/1/north/in/#", 1)
    north.publish("stonechat/1/north/out/state", {"state": "ready", "boot": 1}, True)
    info = {"device": "north", "board": "a board", "version": "1", "models": ["tiny"], "capabilities": ["ota"]}
    north.publish("stonechat/1/north/out/info", info, True)
    command = [sys.executable, "-m", "toolkit", "dashboard", str(folder / "fleet.yaml"), "--as", "wall", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        where = urlsplit(re.search(r"http://\S+:\d+", line)[0]).netloc
        connection = http.client.HTTPConnection(where, timeout=30)
        connection.request("GET", "/api/events")
        first = json.loads(connection.getresponse().readline()[6:])
        assert [(row["id"], row["state"], row["board"]) for row in first["devices"]] == [("north", "ready", "a board")]
        connection.close()

        asking = http.client.HTTPConnection(where, timeout=60)
        body = json.dumps({"model": "north/tiny", "messages": [{"role": "user", "content": "hot?"}]})
        asking.request("POST", "/api/v1/chat/completions", body, {"X-Stonechat": "page"})
        asked = north.received.get(timeout=30)
        assert asked.topic == "stonechat/1/north/in/generate/wall"  # vouched for by the access list
        final = {"seq": 0, "done": True, "finish": "stop", "text": "Yes."}
        north.publish(asked.properties.ResponseTopic, final, CorrelationData=asked.properties.CorrelationData)
        said = json.loads(asking.getresponse().read())
        assert said["choices"][0]["message"]["content"] == "Yes."
        asking.close()

        wall = User(folder / "broker", port, "wall")
        wall.publish("stonechat/1/north/in/ota", {"session": "s"})
        wall.publish("stonechat/1/north/in/ota/piece", {"session": "s"})
        wall.publish("stonechat/1/north/in/generate/phone", {"prompt": "as somebody else"})
        wall.publish("stonechat/1/north/out/state", {"state": "lost", "boot": 9}, True)
        wall.publish("plant/3/boiler", {"temp_c": 99})
        wall.publish("stonechat/1/north/in/generate/wall", {"prompt": "the last one"})
        assert b"the last one" in north.received.get(timeout=30).payload  # and nothing before it: no cancel either
        wall.close()
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        north.close()


def test_resuming_takes_an_operator(site):
    """Without --operator the server starts no roll-out, whatever the page asks."""
    folder, _ = site
    from dataclasses import replace

    from toolkit.rollout.files import RolloutFiles, default_folder
    from toolkit.rollout.rollout import Plan, Rollout

    files = RolloutFiles(default_folder())
    plan = Plan("20260101-000000-abcd", "/b", "0" * 64, "m", "2", str(folder / "fleet.yaml"), "all", ("north",))
    files.write(replace(Rollout.of(plan), paused=True))
    command = [sys.executable, "-m", "toolkit", "dashboard", str(folder / "fleet.yaml"), "--as", "wall", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        where = urlsplit(re.search(r"http://\S+:\d+", process.stderr.readline())[0]).netloc
        connection = http.client.HTTPConnection(where, timeout=30)
        connection.request("POST", "/api/rollouts/20260101-000000-abcd/resume", "{}", {"X-Stonechat": "page"})
        response = connection.getresponse()
        assert response.status == 403 and "--operator NAME" in response.read().decode()
        wait_until(lambda: not files.is_carried_out(plan.id))
        assert files.read(plan.id).paused
    finally:
        process.kill()
        process.wait()
