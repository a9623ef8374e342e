#!/usr/bin/env python3
"""Takes the pictures of docs/guides/dashboard.md in headless Chromium, of a small fleet with the example bundles.

    python scripts/photograph_dashboard.py [FOLDER]            (default: docs/pictures)

Broker, devices, models, answers and the dashboard are real, on this machine; one device of the file was
never started, and another has gone without a word. Needs Debian's mosquitto, chromium and chromium-driver, and
selenium from PyPI.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from selenium import webdriver

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from device_runtime.client.remote import RemoteModel  # noqa: E402
from device_runtime.client.roll_call import FleetWatch  # noqa: E402
from device_runtime.device.service import Service  # noqa: E402
from device_runtime.engine.opening import open_model  # noqa: E402
from device_runtime.fleet.file import Fleet, load  # noqa: E402
from device_runtime.mqtt.address import BrokerAddress  # noqa: E402
from device_runtime.mqtt.messages import DeviceState, State  # noqa: E402
from device_runtime.mqtt.topics import DeviceTopics  # noqa: E402
from tests.support.brokers import mosquitto  # noqa: E402
from tests.support.page_timing import FIRST_VIEW  # noqa: E402

FLEET = """\
schema: 1
models:
  boiler-advisor: {bundle: EXAMPLES/boiler-advisor/bundle}
  fall-alert: {bundle: EXAMPLES/fall-alert/bundle}
  home-commands: {bundle: EXAMPLES/home-commands/bundle}
  log-triage: {bundle: EXAMPLES/log-triage/bundle}
devices:
  boiler-room: {model: boiler-advisor, links: [boiler]}
  hall: {model: home-commands}
  rack-1: {model: log-triage, links: [logs]}
  rack-2: {model: log-triage, links: [logs]}
  ward: {model: fall-alert, links: [falls]}
  workshop: {model: boiler-advisor, links: [boiler]}
links:
  - name: boiler
    from: plant/+/boiler
    when: temp_c > 60
    window: {seconds: 600, keep: 4}
    prompt: "{{ dict(reading, window=window) | tojson }}"
    to: plant/{{ topic[1] }}/boiler/advice
    unsure: {below: 0.8}
  - name: logs
    from: logs/+
    parse: text
    prompt: "{{ value }}"
    to: triage/{{ topic[1] }}
    unsure: {below: 0.8}
  - name: falls
    from: ward/+/band
    when: peak_g > 2
    prompt: "{{ reading | tojson }}"
    to: ward/{{ topic[1] }}/alert
    unsure: {below: 0.8}
"""
ONLINE = ("boiler-room", "hall", "rack-1", "ward")
READINGS = [
    ("plant/3/boiler", {"temp_c": 71, "bar": 1.5, "flow_l_min": 12}),
    ("logs/nas", "smartd: /dev/sdb, 8 currently unreadable (pending) sectors"),
    ("ward/12/band", {"peak_g": 4.1, "posture_after": "lying", "still_s": 95, "heart_bpm": 104}),
    ("plant/3/boiler", {"temp_c": 86, "bar": 2.4, "flow_l_min": 12}),
    ("logs/core-switch", "kernel: eth3: link is down"),
    ("plant/5/boiler", {"temp_c": 64, "bar": 0.4, "flow_l_min": 11}),
    ("ward/7/band", {"peak_g": 2.6, "posture_after": "sitting", "still_s": 3, "heart_bpm": 88}),
    ("logs/printer", "tray 2 says hello again"),
    ("logs/door", "sshd: Failed password for invalid user admin from 203.0.113.9 port 40822"),
    ("plant/3/boiler", {"temp_c": 97, "bar": 2.9, "flow_l_min": 12}),
]
PICTURES = [  # name, width, height, dark, scale, tab
    ("dashboard-fleet", 1180, 370, False, 1.0, "fleet"),
    ("dashboard-links", 1180, 690, True, 1.0, "links"),
    ("dashboard-phone", 390, 720, False, 1.5, "fleet"),
]
OTHERS = [  # to be looked at
    ("fleet-dark", 1180, 500, True, 1.0, "fleet"),
    ("links-light", 1180, 640, False, 1.0, "links"),
    ("phone-links-dark", 390, 720, True, 1.5, "links"),
    ("ask-light", 1180, 500, False, 1.0, "ask"),
    ("phone-ask-dark", 390, 720, True, 1.5, "ask"),
]


@contextmanager
def device(fleet: Fleet, name: str, broker: BrokerAddress, folder: Path) -> Iterator[None]:
    """A device of the fleet file, online."""
    entries = fleet.models_of(name)
    config = replace(fleet.device(name, broker, folder / name), home_assistant=False, health_s=1.0)
    service = Service(config, lambda model: open_model(entries[model].bundle, threads=1))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield
    finally:
        service.stop()
        thread.join()


def client_of(broker: BrokerAddress, will: tuple[str, bytes] | None = None) -> paho.Client:
    """Somebody else at the broker."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    if will is not None:
        client.will_set(will[0], will[1], 1, retain=True)
    client.connect(broker.host, broker.port)
    client.loop_start()
    return client


def lost(broker: BrokerAddress, name: str) -> None:
    """A device whose connection breaks: its last will is all that is left."""
    topics = DeviceTopics(name)
    gone = client_of(broker, (topics.state, State(DeviceState.LOST, 1).to_json()))
    gone.publish(topics.state, State(DeviceState.READY, 1).to_json(), 1, retain=True).wait_for_publish(10)
    gone._sock_close()  # as a power cut ends it: no DISCONNECT
    gone.loop_stop()


def until(holds: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
    """Wait for it."""
    end_s = time.monotonic() + timeout_s
    while not (found := holds()):
        if time.monotonic() > end_s:
            raise SystemExit(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.1)
    return found


@contextmanager
def dashboard(fleet: Path, broker: BrokerAddress) -> Iterator[str]:
    """`stonechat dashboard`, a process of its own; its address."""
    command = [sys.executable, "-m", "toolkit", "dashboard", str(fleet), "--port", "0"]
    command += ["--broker", f"mqtt://127.0.0.1:{broker.port}"]
    environment = os.environ | {"XDG_STATE_HOME": str(fleet.parent)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"http://\S+:\d+", line)
        if found is None:
            raise SystemExit(f"the dashboard did not start: {line}")
        yield found[0]
    finally:
        server.terminate()
        server.wait()


def photograph(url: str, path: Path, width: int, height: int, dark: bool, scale: float, tab: str) -> None:
    """One picture of the page."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    metrics = {"width": width, "height": height, "pixelRatio": scale, "touch": width < 500}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    try:
        driver.get(f"{url}/#{tab}")
        until(lambda: driver.execute_script(FIRST_VIEW), "the page")
        time.sleep(2)
        driver.save_screenshot(str(path))
    finally:
        driver.quit()


def main() -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Takes the pictures of docs/guides/dashboard.md.")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--all", action="store_true", help="others as well, to look at")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        broker = BrokerAddress("127.0.0.1", stack.enter_context(mosquitto(folder)))
        path = folder / "fleet.yaml"
        path.write_text(FLEET.replace("EXAMPLES", str(ROOT / "examples")), encoding="utf-8")
        fleet = load(path)
        for each in ONLINE:
            stack.enter_context(device(fleet, each, broker, folder))
        lost(broker, "workshop")
        watch = FleetWatch(broker)
        watch.open()
        stack.callback(watch.close)
        due = {**dict.fromkeys(ONLINE, DeviceState.READY), "workshop": DeviceState.LOST}
        until(lambda: due == {name: of.state and of.state.state for name, of in watch.devices().items()}, "a device")
        url = stack.enter_context(dashboard(path, broker))
        time.sleep(2)  # until it listens for answers
        sensor = client_of(broker)
        stack.callback(sensor.loop_stop)
        for topic, value in READINGS:
            payload = value if isinstance(value, str) else json.dumps(value)
            sensor.publish(topic, payload, 1)
            time.sleep(0.7)
        with RemoteModel(broker, "hall") as hall:
            for asked in ("turn on the light in the kitchen", "blinds down please", "set the heating to 21 degrees"):
                "".join(hall.generate(asked))
        time.sleep(2.5)  # the next health
        for each, width, height, dark, scale, tab in [*PICTURES, *(OTHERS if args.all else ())]:
            photograph(url, args.folder / f"{each}.png", width, height, dark, scale, tab)
            print(args.folder / f"{each}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
