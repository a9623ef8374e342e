"""A device escalates to llama-cpp-python's server with SmolLM2: another's program, another's model, the same schema."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation, Target
from tests.device_runtime import conftest
from tests.device_runtime.conftest import OnAir
from tests.support.brokers import free_port
from tests.support.mqtt_peer import Peer
from tests.support.scripted_model import ScriptedModel

ANSWER = {
    "type": "object", "required": ["kind", "urgent"], "additionalProperties": False,
    "properties": {"kind": {"enum": ["repair", "noise", "payment"]}, "urgent": {"type": "boolean"}},
}  # fmt: skip
PROMPT = "Sort this note of a tenant: {{ value }}"
LINK = Link(name="sort", source="in/note", prompt=PROMPT, to="out/kind", answer=ANSWER, deadline_s=300)
on_air, peer, port = conftest.on_air, conftest.peer, conftest.port  # fixtures


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The server's address. It needs an environment of its own: its packages are none of ours."""
    python, model = os.environ.get("STONECHAT_LLAMA_PYTHON"), os.environ.get("STONECHAT_SMOLLM2_GGUF")
    if not python or not model or not Path(model).exists():
        pytest.skip("STONECHAT_LLAMA_PYTHON (with llama-cpp-python[server]) and STONECHAT_SMOLLM2_GGUF name nothing")
    number = free_port()
    command = [python, "-m", "llama_cpp.server", "--model", model, "--port", str(number), "--n_ctx", "1024"]
    command += ["--chat_format", "chatml"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + 240
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{number}/v1/models", timeout=2).close()
                break
            assert process.poll() is None and time.monotonic() < end_s, "the server did not start"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{number}/v1"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_its_answer_fits_the_schema_of_the_link(
    on_air: Callable[..., OnAir],
    peer: Callable[..., Peer],
    server: str,
) -> None:
    model = ScriptedModel(['{"kind": "noise", "urgent": false}'])
    model.confidence = {"kind": 0.3}
    policy = Escalation(Target(url=server, model="smollm2"), timeout_s=240)
    device, listener = on_air(model, links=(LINK,), escalate=policy), peer()
    listener.subscribe("out/kind")
    device.client.publish("in/note", "The kitchen tap drips day and night.")
    said = listener.until(lambda topic, value: topic == "out/kind", 280)[-1][1]
    assert said["route"]["where"] == server.removesuffix("/v1"), said["route"]
    assert said["answer"]["kind"] in ("repair", "noise", "payment") and isinstance(said["answer"]["urgent"], bool)
