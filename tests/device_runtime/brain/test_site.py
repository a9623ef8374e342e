"""What is on the site, and that nothing goes elsewhere without a permission."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from device_runtime.brain.far.openai_server import OpenAIServer
from device_runtime.brain.far.side import FarQuestion
from device_runtime.brain.site import connect, is_local_address, is_local_name
from device_runtime.errors import OffSiteError, UnreachableError
from device_runtime.fleet.policies.escalation import Target
from tests.support.far_server import FarServer

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("172.16.0.1", True), ("172.32.0.1", False), ("192.168.7.7", True),
        ("169.254.1.1", True), ("8.8.8.8", False), ("[::1]", True), ("fd00::7", True), ("fe80::1", True),
        ("2001:4860:4860::8888", False), ("::ffff:10.0.0.1", True), ("::ffff:8.8.8.8", False), ("100.64.0.1", False),
        ("localhost", True), ("server", True), ("server.local", True), ("SERVER.LAN.", True), ("a.home.arpa", True),
        ("a.internal", True), ("api.openai.com", False), ("local.example.com", False), ("notlocal", True),
        ("example.notlocal", False), ("0.0.0.0", False), ("1.2.3.4.5", False), ("", False),
    ],
)  # fmt: skip
def test_what_a_name_shows(host: str, local: bool) -> None:
    assert is_local_name(host) is local


def test_a_local_name_with_an_address_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(OffSiteError, match=r"203\.0\.113\.9, outside of this site"):
        connect("server.local", 80, time.monotonic() + 1, off_site=False)
    assert not is_local_address("203.0.113.9")


def test_off_the_site_is_over_https_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    server = OpenAIServer(Target(url="http://server.local/v1", model="m"), off_site=True)
    with pytest.raises(OffSiteError, match="over https"):
        server.ask(FarQuestion(({"role": "user", "content": "x"},)), time.monotonic() + 1)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_a_server_that_never_ends_is_left_in_time(said: bytes) -> None:
    """It sends something all the time, so no single read waits for long."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        client = listener.accept()[0]
        with client, contextlib.suppress(OSError):
            client.sendall(said)
            while not over.wait(0.02):
                client.sendall(said if b"100" in said else b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        server = OpenAIServer(Target(url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="m"), off_site=False)
        began_s = time.monotonic()
        try:
            with pytest.raises(UnreachableError, match="did not answer in time"):
                server.ask(FarQuestion(({"role": "user", "content": "x"},)), began_s + 0.4)
        finally:
            over.set()
            thread.join()
        assert time.monotonic() - began_s < 5  # 0.4 s, on a busy machine


# Every connection, name look-up and datagram of the process is written down: Python reports them to audit hooks, below
# every library. The larger model is one whose name leads off the site, or that redirects there; proxies are set too.
CHILD = """
import json, socket, sys
seen = []
def watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        seen.append(str(args[1]))
sys.addaudithook(watch)
real = socket.getaddrinfo
def lookup(host, *more, **options):
    if host == "far.local":
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 80))]
    return real(host, *more, **options)
socket.getaddrinfo = lookup

from pathlib import Path
from device_runtime.device.service import Service
from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation, Target
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from tests.support.mqtt_peer import Peer
from tests.support.scripted_model import ScriptedModel
import threading

port, url, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
answer = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}}
model = ScriptedModel(['{"kind": "a"}'])
model.confidence = {"kind": 0.1}
link = Link(name="sort", source="in/note", prompt="{{ value }}", to="out/kind", answer=answer)
policy = Escalation(Target(url=url, model="large"))
config = DeviceConfig("watched", BrokerAddress("127.0.0.1", port), folder, links=(link,), escalate=policy)
service = Service(config, lambda name: model)
thread = threading.Thread(target=service.run)
peer = Peer(port)
peer.subscribe("stonechat/1/watched/out/state", "out/kind")
thread.start()
peer.until(lambda topic, value: value.get("state") == "ready")
peer.publish("in/note", "x")
said = peer.until(lambda topic, value: topic == "out/kind")[-1][1]
service.stop()
thread.join()
peer.close()
print(json.dumps({"said": said, "seen": seen}))
"""


@pytest.mark.parametrize("way", ["name", "redirection", "proxy"])
def test_no_socket_of_a_device_leaves_the_site(port: int, far: FarServer, tmp_path: Path, way: str) -> None:
    far.say = lambda body: '{"kind": "b"}'
    far.location = "http://203.0.113.9/v1/chat/completions" if way == "redirection" else ""
    url = "http://far.local:80/v1" if way == "name" else far.url
    proxies = {name: "http://203.0.113.9:3128" for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(port), url, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | proxies, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] and all("127.0.0.1" in address for address in found["seen"]), found["seen"]
    if way == "proxy":
        assert found["said"]["answer"] == {"kind": "b"}  # the proxy was not asked
    else:
        failed = {"name": "outside of this site", "redirection": "HTTP status 307"}[way]
        assert found["said"]["answer"] == {"kind": "a"} and failed in found["said"]["route"]["failed"]
