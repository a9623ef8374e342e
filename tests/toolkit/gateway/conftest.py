"""Gateways in a thread of the test, in front of bundles or of scripted models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `gateway` is not installed")
pytest.importorskip("uvicorn", reason="the extra `gateway` is not installed")

from tests.device_runtime.brain.conftest import far  # noqa: F401 (a fixture)
from tests.device_runtime.conftest import on_air, peer, port  # noqa: F401 (fixtures)
from tests.encoders.conftest import bundles  # noqa: F401 (a fixture)
from tests.support.scripted_model import ScriptedModel
from toolkit.gateway.app import Gateway
from toolkit.gateway.bundles import Bundles
from toolkit.gateway.source import Source
from toolkit.web.listen import Listen
from toolkit.web.server import WebServer


class ScriptedBundles(Bundles):
    """Bundles whose models say what a test tells them to."""

    def __init__(self, models: dict[str, ScriptedModel], queue: int = 16) -> None:
        super().__init__(dict.fromkeys(models, Path("nowhere")), queue=queue)
        self._scripts = models

    def _open(self, name: str) -> Any:
        model: Any = self._scripts[name]
        model.manifest = type("Manifest", (), {"task": "generate"})
        return model


@pytest.fixture(scope="module")
def serving() -> Iterator[Callable[..., str]]:
    """Serve a source; the address. Ended after the module's tests."""
    ends: list[Callable[[], None]] = []

    def start(source: Source, timeout_s: float = 60.0, **listen: object) -> str:
        source.open()
        where = Listen(**listen)  # type: ignore[arg-type]
        gateway = Gateway(source, where, timeout_s)
        server = WebServer(gateway.app, where, gateway.end)
        thread = threading.Thread(target=server.run)
        thread.start()

        def end() -> None:
            server.stop()
            thread.join(30)
            source.close()
            assert not thread.is_alive()

        ends.append(end)
        return f"http://127.0.0.1:{server.port}"

    yield start
    for end in ends:
        end()


@pytest.fixture(scope="module")
def scripted(serving: Callable[..., str]) -> Callable[..., tuple[str, ScriptedModel]]:
    """A gateway with one model, `scripted`; its address, and the model."""

    def start(model: ScriptedModel | None = None, queue: int = 16, **options: object) -> tuple[str, ScriptedModel]:
        model = model or ScriptedModel()
        return serving(ScriptedBundles({"scripted": model}, queue), **options), model

    return start
