"""A real Node-RED with the flow of examples/node-red, on a real broker with a scripted device.

Node-RED is installed into a folder of its own under build/, from npm. The first time that takes a few minutes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.brokers import await_ready, free_port, mosquitto
from tests.support.scripted_fleet import wait_until

ROOT = Path(__file__).parents[2]
FLOW = ROOT / "examples" / "node-red" / "flow.json"
ENVIRONMENT = ROOT / "build" / "node-red-4"
START_S = 120


def flow() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = json.loads(FLOW.read_text(encoding="utf-8"))
    return nodes


def test_the_flow_holds_together() -> None:
    """What Node-RED's import checks: ids are one of a kind, and every wire and broker leads somewhere."""
    nodes = flow()
    ids = [node["id"] for node in nodes]
    assert len(set(ids)) == len(ids)
    for node in nodes:
        for targets in node.get("wires", []):
            assert set(targets) <= set(ids), node
        assert node.get("broker") in (*ids, None) or node["type"] == "mqtt-broker"
        assert node.get("z") in (*ids, None)


@pytest.fixture(scope="module")
def node_red() -> Path:
    """Node-RED's start script."""
    script, done = ENVIRONMENT / "node_modules" / "node-red" / "red.js", ENVIRONMENT / "installed"
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm and node are not installed (Debian: apt install npm)")
    if not done.is_file():
        ENVIRONMENT.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(ENVIRONMENT), "node-red@4"]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"Node-RED does not install here: {made.stderr.strip()[-300:]}")
        done.touch()
    return script


@pytest.fixture
def site(tmp_path: Path, node_red: Path) -> Iterator[int]:
    """A broker, greenhouse-pi with a model that repeats its prompt in upper case, and Node-RED with the flow."""
    with mosquitto(tmp_path) as port:
        fleet = (ROOT / "examples" / "greenhouse" / "fleet.yaml").read_text()
        fleet = fleet.replace("localhost:1883", f"127.0.0.1:{port}").replace("[too-hot, too-dry, too-damp]", "[]")
        (tmp_path / "fleet.yaml").write_text(fleet)
        nodes = flow()
        for node in nodes:
            if node["type"] == "mqtt-broker":
                node |= {"broker": "127.0.0.1", "port": str(port)}
        user_dir = tmp_path / "node-red"
        user_dir.mkdir()
        (user_dir / "flow.json").write_text(json.dumps(nodes))
        (user_dir / "settings.js").write_text(
            f'module.exports = {{flowFile: "flow.json", uiHost: "127.0.0.1", uiPort: {free_port()}, '
            "httpAdminRoot: false, httpNodeRoot: false, telemetry: {enabled: false}};\n"
        )
        script = ROOT / "tests" / "toolkit" / "scripted_device.py"
        serve = [sys.executable, script, tmp_path / "fleet.yaml", "--device", "greenhouse-pi"]
        device = subprocess.Popen([*map(str, serve), "--state-dir", str(tmp_path / "s")], stderr=subprocess.DEVNULL)
        log, red = (tmp_path / "node-red.log").open("wb"), None
        try:
            await_ready(port, "greenhouse-pi")
            red = subprocess.Popen(["node", str(node_red), "--userDir", str(user_dir)], stdout=log, stderr=log)
            yield port
        finally:
            for process in filter(None, (red, device)):
                process.terminate()
                process.wait(60)
            print((tmp_path / "node-red.log").read_text()[-3000:])


@pytest.mark.slow
def test_the_flow_asks_and_passes_the_answer_on(site: int) -> None:
    heard: list[paho.MQTTMessage] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda c, u, message: heard.append(message)
    client.connect("127.0.0.1", site)
    client.loop_start()
    client.subscribe("greenhouse/+/advice", 1)
    end_s = time.monotonic() + START_S
    try:
        while not heard and time.monotonic() < end_s:  # a reading a second, until Node-RED listens
            client.publish("greenhouse/north/air", json.dumps({"temp_c": 38}), qos=1)
            client.publish("greenhouse/south/air", json.dumps({"temp_c": 20}), qos=1)
            time.sleep(1.0)
    finally:
        client.loop_stop()
        client.disconnect()
    assert [message.topic for message in heard] == ["greenhouse/north/advice"]
    answer = json.loads(heard[0].payload)
    assert answer["text"].strip() == "THE NORTH GREENHOUSE HAS 38 °C. WHAT SHOULD THE GARDENER DO?"
    assert answer["id"].startswith("north-")


@pytest.mark.slow
def test_its_own_http_node_asks_the_gateway(tmp_path: Path, node_red: Path) -> None:
    """An `http request` node posts what a person writes into a flow, and reads the answer's fields. About 30 s."""
    with mosquitto(tmp_path) as port:
        at, bundle = free_port(), ROOT / "examples" / "log-triage" / "bundle"
        asked = {"model": "log-triage", "messages": [{"role": "user", "content": "kernel: eth3: Link is Down"}]}
        broker = {"id": "b", "type": "mqtt-broker", "broker": "127.0.0.1", "port": str(port), "protocolVersion": "4"}
        nodes = [
            {"id": "f", "type": "tab", "label": "ask"}, broker,
            {"id": "i", "type": "inject", "z": "f", "props": [{"p": "payload"}], "payload": json.dumps(asked),
             "payloadType": "json", "once": True, "repeat": "5", "wires": [["h"]]},
            {"id": "h", "type": "http request", "z": "f", "method": "POST", "ret": "obj", "wires": [["c"]],
             "url": f"http://127.0.0.1:{at}/v1/chat/completions"},
            {"id": "c", "type": "change", "z": "f", "wires": [["m"]], "rules": [
                {"t": "set", "p": "payload", "pt": "msg", "to": "payload.choices[0].message.content", "tot": "msg"}]},
            {"id": "m", "type": "mqtt out", "z": "f", "topic": "said", "qos": "1", "retain": "true", "broker": "b"},
        ]  # fmt: skip
        (tmp_path / "flow.json").write_text(json.dumps(nodes))
        (tmp_path / "settings.js").write_text(
            f'module.exports = {{flowFile: "flow.json", uiHost: "127.0.0.1", uiPort: {free_port()}, '
            "httpAdminRoot: false, httpNodeRoot: false, telemetry: {enabled: false}};\n"
        )
        heard: list[bytes] = []
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.on_message = lambda c, u, message: heard.append(message.payload)
        client.connect("127.0.0.1", port)
        client.subscribe("said", 1)
        client.loop_start()
        with (tmp_path / "log").open("wb") as log:
            gateway = [sys.executable, "-m", "toolkit", "gateway", str(bundle), "--port", str(at)]
            processes = [subprocess.Popen(gateway, cwd=ROOT, stdout=log, stderr=log)]
            processes += [subprocess.Popen(["node", str(node_red), "--userDir", str(tmp_path)], stdout=log, stderr=log)]
        try:
            wait_until(lambda: bool(heard), START_S, "Node-RED said nothing")
        finally:
            client.loop_stop()
            for process in processes:
                process.terminate()
                process.wait(60)
            print((tmp_path / "log").read_text()[-3000:])
        assert json.loads(heard[0]) == {"category": "network", "priority": "high"}
