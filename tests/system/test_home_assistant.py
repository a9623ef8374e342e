"""A real Home Assistant, with the package of examples/home-assistant, on a real broker with a scripted device.

Home Assistant wants a newer Python than stonechat: it is installed into a folder of its own under build/, from PyPI.
That takes up to ten minutes the first time, so it is done only where it is asked for:

    STONECHAT_PYTHON313=/usr/bin/python3.13 .venv/bin/python -m pytest -m slow tests/system/test_home_assistant.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import paho.mqtt.publish
import pytest
import yaml

from device_runtime.device.extensions.link_places import place_of
from device_runtime.fleet.links import Link
from device_runtime.mqtt.messages import Address, Request
from tests.support.brokers import free_port, mosquitto

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "home-assistant" / "stonechat.yaml"
ENVIRONMENT = ROOT / "build" / "home-assistant-2025.4"
INSTALL = """\
import json, pathlib, subprocess, sys, homeassistant.components as c
folder = pathlib.Path(c.__path__[0])
manifests = [json.loads((folder / name / "manifest.json").read_text()) for name in ("mqtt", "frontend")]
needed = [requirement for manifest in manifests for requirement in manifest["requirements"]]
subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-compile", *needed], check=True)
"""


def package() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(PACKAGE.read_text(encoding="utf-8"))
    return loaded


def test_the_package_asks_as_the_documentation_says() -> None:
    """Its structure and templates, without Home Assistant: the slow test below has a real one."""
    ask, show = package()["automation"]
    (action,) = ask["actions"]
    assert action["action"] == "mqtt.publish"
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["to_json"] = json.dumps
    payload = environment.from_string(action["data"]["payload"])
    text = payload.render(states=lambda entity: "38", context={"id": "01J"})
    address, request = Address.find(json.loads(text), None, None), Request.from_json(text.encode())
    (trigger,) = show["triggers"]
    assert (address.reply_to, address.id) == (trigger["topic"], "01J")
    assert request.messages[0]["content"] == "The greenhouse has 38 °C. What should I do?"
    message = environment.from_string(show["actions"][0]["data"]["message"])
    assert message.render(trigger={"payload_json": {"text": "Open it."}}) == "Open it."
    assert message.render(trigger={"payload_json": {"error": {"message": "busy"}}}) == "No answer: busy"
    documented = (ROOT / "docs" / "guides" / "home-assistant.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", documented, re.DOTALL)
    assert yaml.safe_load(block) == {"actions": ask["actions"]}


@pytest.fixture(scope="module")
def home_assistant_python() -> str:
    """The Python of an environment with Home Assistant."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed"
    if done.is_file():
        return str(python)
    base = os.environ.get("STONECHAT_PYTHON313")
    if base is None:
        pytest.skip("Home Assistant takes minutes to install and a Python 3.13, which STONECHAT_PYTHON313 has to name")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    for command in (
        [base, "-m", "venv", str(ENVIRONMENT)],
        [str(python), "-m", "pip", "install", "-q", "--no-compile", "homeassistant>=2025.4,<2025.5"],
        [str(python), "-c", INSTALL],
    ):
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"Home Assistant does not install here: {made.stderr.strip()[-300:]}")
    done.touch()
    return str(python)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[int]:
    """A broker, and greenhouse-pi on it with a model that repeats its prompt in upper case."""
    with mosquitto(tmp_path) as port:
        fleet = (ROOT / "examples" / "greenhouse" / "fleet.yaml").read_text()
        (tmp_path / "fleet.yaml").write_text(fleet.replace("localhost:1883", f"127.0.0.1:{port}"))
        script = ROOT / "tests" / "toolkit" / "scripted_device.py"
        command = [sys.executable, script, tmp_path / "fleet.yaml", "--device", "greenhouse-pi"]
        device = subprocess.Popen([*map(str, command), "--state-dir", str(tmp_path / "s")], stderr=subprocess.DEVNULL)
        try:
            yield port
        finally:
            device.terminate()
            device.wait(60)


def config_folder(folder: Path, port: int) -> Path:
    """A Home Assistant that knows its broker, as its own dialogue writes it, and has the example's package."""
    config = folder / "config"
    (config / ".storage").mkdir(parents=True)
    (config / "packages").mkdir()
    shutil.copy(PACKAGE, config / "packages")
    (config / "configuration.yaml").write_text(
        "homeassistant:\n  packages: !include_dir_named packages\n"
        f"http:\n  server_host: 127.0.0.1\n  server_port: {free_port()}\nlogger:\n  default: warning\n"
    )
    entry = {
        "entry_id": "broker", "version": 1, "domain": "mqtt", "title": "broker", "options": {}, "source": "user",
        "data": {"broker": "127.0.0.1", "port": port}, "unique_id": None, "disabled_by": None,
        "pref_disable_new_entities": False, "pref_disable_polling": False,
    }  # fmt: skip
    stored = {"version": 1, "minor_version": 1, "key": "core.config_entries", "data": {"entries": [entry]}}
    (config / ".storage" / "core.config_entries").write_text(json.dumps(stored))
    return config


@pytest.mark.slow
def test_a_device_with_its_links_shows_up_and_answers_the_automation(
    home_assistant_python: str, site: int, tmp_path: Path
) -> None:
    stop = threading.Event()

    def thermometer() -> None:
        """Crosses the threshold again and again: Home Assistant takes its time to listen."""
        hot = False
        while not stop.wait(1.0):
            hot = not hot
            reading = json.dumps({"temp_c": 35 if hot else 20, "humidity_percent": 50})
            paho.mqtt.publish.single("greenhouse/north/air", reading, qos=1, hostname="127.0.0.1", port=site)

    writing = threading.Thread(target=thermometer)
    writing.start()
    try:
        driver = Path(__file__).with_name("home_assistant_driver.py")
        command = [home_assistant_python, str(driver), str(config_folder(tmp_path, site)), "90"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    finally:
        stop.set()
        writing.join()
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert [device["name"] for device in seen["devices"]] == ["greenhouse-pi"]
    prefix = "stonechat_greenhouse-pi_"
    link = Link(name="too-hot", source="greenhouse/+/air", prompt="", to="")
    too_hot = f"{prefix}link_too-hot_{place_of(link, 'greenhouse/north/air')[0]}"
    assert {f"{prefix}state", f"{prefix}queue", too_hot} <= seen["states"].keys()
    assert seen["states"][f"{prefix}state"] in ("ready", "busy")
    assert seen["states"][too_hot].startswith("IT IS 35 °C IN THE NORTH GREENHOUSE")
    assert seen["states"]["greenhouse_advice"].startswith("IT IS 35 °C IN THE NORTH GREENHOUSE")
    assert "THE GREENHOUSE HAS 35" in seen["messages"][-1]
