"""A real Home Assistant whose own OpenAI integration asks the gateway, set up and asked over its REST API as its page
does it.

The newest that runs on Python 3.11 is 2024.3; it speaks the chat API, and its client takes the address from the
environment. It is installed into a folder of its own under build/, from PyPI: about a minute the first time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import free_port
from tests.support.scripted_fleet import wait_until

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "build" / "home-assistant-2024.3"
PACKAGES = ("homeassistant==2024.3.3", "openai==1.3.8", "hassil==1.6.1", "home-assistant-intents==2024.3.6", "josepy<2")
UV = "uv==0.13.9"  # pip takes minutes over the same packages
PASSWORD, TOKEN = "of-this-test-alone", "token-of-the-gateway"
START_S = 120

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment() -> Path:
    """The folder with Home Assistant's programs."""
    if sys.version_info >= (3, 13):
        pytest.skip("Home Assistant 2024.3 runs on Python 3.11 and 3.12")
    programs, done = ENVIRONMENT / "bin", ENVIRONMENT / "installed"
    if not done.is_file():
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", ENVIRONMENT],
            [programs / "pip", "install", "-q", "--disable-pip-version-check", UV],
            [programs / "uv", "pip", "install", "-q", "--python", programs / "python", *PACKAGES],
        ):
            made = subprocess.run([*map(str, command)], capture_output=True, text=True)
            if made.returncode != 0:
                pytest.skip(f"Home Assistant does not install here: {made.stderr.strip()[-300:]}")
        done.touch()
    return programs


class HomeAssistant:
    """What a page of Home Assistant asks of it."""

    def __init__(self, port: int) -> None:
        self.url, self.token = f"http://127.0.0.1:{port}", ""

    def call(self, path: str, body: dict[str, Any] | None = None, *, form: bool = False) -> Any:
        data = None
        if body is not None:
            data = (urllib.parse.urlencode(body) if form else json.dumps(body)).encode()
        kind = "application/x-www-form-urlencoded" if form else "application/json"
        headers = {"Content-Type": kind, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            self.call("/auth/providers")
        except urllib.error.HTTPError:
            return True  # "onboarding not finished": nobody has chosen a language and a place yet
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def log_in(self) -> None:
        client = {"client_id": f"{self.url}/"}
        flow = self.call(
            "/auth/login_flow", {**client, "handler": ["homeassistant", None], "redirect_uri": client["client_id"]}
        )
        user = {"username": "anna", "password": PASSWORD}
        code = self.call(f"/auth/login_flow/{flow['flow_id']}", {**client, **user})["result"]
        grant = {**client, "grant_type": "authorization_code", "code": code}
        self.token = self.call("/auth/token", grant, form=True)["access_token"]

    def flow(self, kind: str, handler: str, answers: dict[str, Any]) -> dict[str, Any]:
        """A dialogue of one step: of a new integration, or of the options of one."""
        path = f"/api/config/config_entries/{kind}"
        flow = self.call(path, {"handler": handler})
        done: dict[str, Any] = self.call(f"{path}/{flow['flow_id']}", answers)
        return done

    def say(self, text: str, agent: str, conversation: str | None = None) -> dict[str, Any]:
        body = {"text": text, "language": "en", "agent_id": agent}
        body |= {"conversation_id": conversation} if conversation is not None else {}
        done: dict[str, Any] = self.call("/api/conversation/process", body)
        return done


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)
        print(log.read_text(errors="replace")[-3000:])


@pytest.fixture
def site(environment: Path, tmp_path: Path) -> Iterator[HomeAssistant]:
    """A gateway that wants a token, with a bundle that was trained for a task, and a Home Assistant with a user."""
    at, port, config = free_port(), free_port(), tmp_path / "config"
    config.mkdir()
    (config / "configuration.yaml").write_text(
        "homeassistant: {auth_providers: [{type: homeassistant}]}\nconfig:\napi:\nconversation:\n"
        f"http: {{server_host: 127.0.0.1, server_port: {port}}}\nlogger: {{default: warning}}\n"
    )
    added = [str(environment / "hass"), "--script", "auth", "--config", str(config), "add", "anna", PASSWORD]
    subprocess.run(added, check=True, capture_output=True)
    bundle = ROOT / "examples" / "home-commands" / "bundle"
    gateway = [sys.executable, "-m", "toolkit", "gateway", str(bundle), "--port", str(at)]
    hass = [str(environment / "hass"), "--config", str(config)]
    home = HomeAssistant(port)
    with (
        running(gateway, tmp_path / "gateway.log", STONECHAT_TOKEN=TOKEN),
        running(hass, tmp_path / "hass.log", OPENAI_BASE_URL=f"http://127.0.0.1:{at}/v1"),
    ):
        wait_until(home.is_up, START_S, "Home Assistant does not answer")
        home.log_in()
        yield home


def agent_with(site: HomeAssistant, key: str, options: dict[str, Any]) -> str:
    """The integration, set up with a key and its options, as the id that a conversation names."""
    entry = site.flow("flow", "openai_conversation", {"api_key": key})
    assert (entry["type"], entry["result"]["state"]) == ("create_entry", "loaded")
    agent: str = entry["result"]["entry_id"]
    assert site.flow("options/flow", agent, options)["type"] == "create_entry"
    return agent


def spoken(said: dict[str, Any]) -> str:
    text: str = said["response"]["speech"]["plain"]["speech"]
    return text


def test_its_conversations_are_answered_by_a_bundle(site: HomeAssistant) -> None:
    options = {"prompt": "You control the house {{ ha_name }}.", "chat_model": "home-commands"}
    agent = agent_with(site, TOKEN, options)
    said = site.say("turn on the kitchen light", agent)
    assert said["response"]["response_type"] == "action_done"
    assert json.loads(spoken(said)) == {"action": "on", "device": "light", "room": "kitchen", "value": None}
    template = {"template": "{{ (said | from_json).device | to_json }}", "variables": {"said": spoken(said)}}
    assert site.call("/api/template", template) == "light"  # as an automation reads it
    again = site.say("close the blinds in the bedroom", agent, said["conversation_id"])  # with the first before it
    assert json.loads(spoken(again)) == {"action": "close", "device": "blind", "room": "bedroom", "value": None}


def test_it_shows_what_the_gateway_refuses(site: HomeAssistant) -> None:
    agent = agent_with(site, TOKEN, {"chat_model": "a-model-of-another"})
    said = site.say("turn on the kitchen light", agent)
    assert said["response"]["response_type"] == "error"
    assert "model_not_found" in spoken(said) and "home-commands" in spoken(said)
    stranger = agent_with(site, "another-token", {"chat_model": "home-commands"})
    assert "token" in spoken(site.say("turn on the kitchen light", stranger))
