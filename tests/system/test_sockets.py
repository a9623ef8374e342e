"""Every socket of a device that escalates, of the gateway and of the dashboard leads to what the fleet file names.

strace sees each connection and datagram of a process, whichever library makes it. About 40 s.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device_runtime.client.records import kept_records
from device_runtime.mqtt.address import BrokerAddress
from tests.support.brokers import await_ready, free_port, mosquitto
from tests.support.far_server import far_server
from tests.support.mqtt_peer import Peer
from tests.support.scripted_fleet import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.slow

FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  boiler: {{bundle: {examples}/boiler-advisor/bundle}}
  logs: {{bundle: {examples}/log-triage/bundle}}
devices:
  house:
    model: [logs, boiler]
    links: [triage]
    router: {{}}
    records: {{keep: 10}}
    escalate: {{to: {{url: "{url}", model: large}}, below: 1.0}}
links:
  - name: triage
    from: logs/+
    model: logs
    prompt: "{{{{ value }}}}"
    parse: text
    to: triage/out
"""
PROXIES = {name: "http://203.0.113.9:3128" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY")}
_CALL = re.compile(r"\b(?:connect|sendto|sendmsg|sendmmsg)\(.*?sa_family=AF_INET6?,(.*)")
_OWN = re.compile(r"\bgetsockname\(.*?sa_family=AF_INET6?,(.*)")
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


@contextmanager
def watched(folder: Path, name: str, *arguments: Any) -> Iterator[Path]:
    """A command below strace; the file in which its connections are written down."""
    trace, log = folder / f"{name}.trace", folder / f"{name}.log"
    calls = "trace=connect,sendto,sendmsg,sendmmsg,getsockname"
    command = ["strace", "-f", "-qq", "-e", calls, "-o", trace, sys.executable, "-m"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*map(str, command), "toolkit", *map(str, arguments)], cwd=ROOT, env=os.environ | PROXIES,
            stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        yield trace
        assert process.poll() is None, log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)


def targets(trace: Path) -> set[tuple[str, int]]:
    """Where the sockets of a trace led, other than to the process itself: an MQTT client wakes its own thread so."""
    found, own = set(), set()
    for line in trace.read_text(errors="replace").splitlines():
        for calls, places in ((_CALL, found), (_OWN, own)):
            if match := calls.search(line):
                address, port = _ADDRESS.search(match[1]), _PORT.search(match[1])
                assert address and port, line
                places.add((address[1] or address[2], int(port[1])))
    return found - {(address, port) for address, port in own if address == "127.0.0.1"}


def call(port: int, path: str, body: Any = None) -> Any:
    """The dashboard's or the gateway's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, {"X-Stonechat": "page"})
    response = connection.getresponse()
    text = response.read(20_000) if path.endswith("events") else response.read()
    assert response.status == 200, text
    connection.close()
    return text.decode() if not text.startswith(b"{") else json.loads(text)


def answers(port: int) -> bool:
    try:
        return bool(call(port, "/v1/models") or True)
    except (OSError, AssertionError):
        return False


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (Debian: apt install strace)")
def test_all_sockets_lead_to_what_the_fleet_file_names(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, far_server() as far:
        far.say = lambda body: json.dumps({"category": "network", "priority": "high"})
        fleet = tmp_path / "fleet.yaml"
        fleet.write_text(FLEET.format(port=broker, examples=EXAMPLES, url=far.url))
        pages = {"gateway": free_port(), "dashboard": free_port()}
        url = f"mqtt://127.0.0.1:{broker}"
        with (
            watched(
                tmp_path, "serve", "serve", fleet, "--device", "house", "--state-dir", tmp_path / "state"
            ) as device,
            watched(tmp_path, "gateway", "gateway", "--broker", url, "--port", pages["gateway"]) as gateway,
            watched(tmp_path, "dashboard", "dashboard", fleet, "--port", pages["dashboard"]) as dashboard,
        ):
            await_ready(broker, "house", timeout_s=240)
            peer = Peer(broker)
            peer.subscribe("triage/out")
            peer.publish("logs/a", "kernel: eth3: Link is Down")
            said = peer.until(lambda topic, value: topic == "triage/out")[-1][1]
            assert said["route"]["where"] == f"http://127.0.0.1:{far.port}"
            wait_until(lambda: answers(pages["gateway"]), timeout_s=60)
            asked = {"model": "house/logs", "messages": [{"role": "user", "content": "disk full"}]}
            assert call(pages["gateway"], "/v1/chat/completions", asked)["choices"]
            page = pages["dashboard"]
            assert "stonechat" in call(page, "/")
            links = call(page, "/api/links")
            body = {"was": "triage", "link": links["links"][0], "devices": ["house"], "base": links["base"]}
            assert call(page, "/api/links/check", body)["faults"] == []
            tried = call(
                page,
                "/api/links/try",
                {**body, "readings": json.dumps({"topic": "logs/a", "reading": "eth0: Link is Down"})},
            )
            assert len(tried["answers"]) == 1
            assert call(page, "/api/v1/chat/completions", {**asked, "model": "house/boiler", "messages": [
                {"role": "user", "content": '{"temp_c": 99, "bar": 1.4, "flow_l_min": 12}'}]})["choices"]  # fmt: skip
            assert list(kept_records(BrokerAddress("127.0.0.1", broker), "house"))
            peer.close()
        at_broker, at_far = ("127.0.0.1", broker), ("127.0.0.1", far.port)
        assert targets(device) == {at_broker, at_far}
        assert targets(gateway) == {at_broker}
        assert targets(dashboard) == {at_broker}
