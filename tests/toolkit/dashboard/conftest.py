"""A dashboard in a thread of the test, on the session's broker."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="the extra `dashboard` is not installed")
pytest.importorskip("uvicorn", reason="the extra `dashboard` is not installed")
pytest.importorskip("ruamel.yaml", reason="the extra `dashboard` is not installed")

from device_runtime.mqtt.address import BrokerAddress
from tests.device_runtime.conftest import on_air, peer, port  # noqa: F401 (fixtures)
from toolkit.dashboard.app import Dashboard
from toolkit.dashboard.dry_run import DryRun
from toolkit.dashboard.editor import FleetEditor
from toolkit.dashboard.file_watch import FileWatch
from toolkit.dashboard.kept_there import KeptThere
from toolkit.dashboard.live import LiveFleet
from toolkit.dashboard.rollouts import Rollouts
from toolkit.gateway.fleet import FleetModels
from toolkit.web.listen import Listen
from toolkit.web.server import WebServer

FLEET = """\
# The hall's devices. This comment stays.
schema: 1
models:
  advisor: {bundle: nowhere}  # made elsewhere
devices:
  north: {model: advisor, links: [hot]}
  south:
    model: advisor
links:
  - name: hot
    from: plant/+/boiler   # a JSON payload
    # Most readings never wake the model.
    when: temp_c > 80
    prompt: "{{ temp_c }} °C. What now?"
    to: plant/{{ topic[1] }}/advice
"""


@dataclass
class Page:
    """A dashboard that runs."""

    url: str
    fleet: Path
    live: LiveFleet

    def call(self, path: str, body: object = None, method: str = "", **headers: str) -> tuple[int, dict[str, str], Any]:
        """(status, headers, parsed body); a call as the page makes it, unless `headers` say otherwise."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        data = None if body is None else json.dumps(body).encode()
        sent = {"X-Stonechat": "page", **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, found, json.loads(text) if text[:1] in b"{[" and text else text.decode()


@pytest.fixture
def dashboard(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Page]]:  # noqa: F811 (the fixture)
    """Start one; it is ended after the test."""
    ends: list[Callable[[], None]] = []
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # where roll-outs are kept

    def start(
        fleet: str | Path = FLEET, *, operator: tuple[str, ...] | None = (), read_only: bool = False, **listen: Any
    ) -> Page:
        path = tmp_path / "fleet.yaml" if isinstance(fleet, str) else fleet
        if isinstance(fleet, str):
            path.write_text(fleet, encoding="utf-8")
        editor, broker = FleetEditor(path), BrokerAddress("127.0.0.1", port)
        live = LiveFleet(editor.fleet(), broker, None)
        live.watch.open()  # without waiting for what the broker keeps: each test waits for what it needs
        models = FleetModels(broker, None, watch=live.watch)
        rollouts = Rollouts(operator)
        rollouts.watch(lambda found: live.put("rollouts", found))
        file = FileWatch(editor, path)
        file.start(live.links)
        live.put("fleet", {"name": path.name, "broker": str(broker)})
        where = Listen(**listen)
        app = Dashboard(
            live, editor, rollouts, models, DryRun(broker, None), KeptThere(broker, None), where, read_only=read_only
        )
        server = WebServer(app.app, where, app.end)
        thread = threading.Thread(target=server.run)
        thread.start()

        def end() -> None:
            server.stop()
            thread.join(30)
            rollouts.close()
            file.close()
            models.close()
            live.close()
            assert not thread.is_alive()

        ends.append(end)
        return Page(f"http://127.0.0.1:{server.port}", path, live)

    yield start
    for end in ends:
        end()
