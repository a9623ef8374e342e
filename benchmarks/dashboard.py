"""The dashboard's page with a thousand simulated devices: its weight, its first view, and how it keeps up.

    python benchmarks/dashboard.py [--devices 1000] [--rate 60] [--seconds 10] [--runs 3]

The broker, `stonechat dashboard` and Chromium (headless; Debian's chromium and chromium-driver, selenium from PyPI)
are processes of their own on this machine.

1. weight: all files of the page, each compressed as the server sends it.
2. first view: from the beginning of the navigation until the devices are drawn, as the page itself measures it.
3. keeping up: so many messages a second come; the longest time between two frames of the page, and whether the last
   message is shown.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from selenium import webdriver
from selenium.webdriver.common.by import By

from device_runtime.mqtt.ota_messages import Phase, Report
from toolkit.dashboard.app import PAGES
from toolkit.demo import broker
from toolkit.demo.processes import Processes
from toolkit.rollout.files import RolloutFiles
from toolkit.rollout.rollout import Plan, Rollout

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what the tests know of the page

from tests.support.page_timing import FIRST_VIEW, FRAMES

BOARDS = ("Raspberry Pi 5 Model B Rev 1.0", "Raspberry Pi Zero 2 W Rev 1.0", "Raspberry Pi 4 Model B Rev 1.4")
FLEET = """\
schema: 1
models:
  boiler-advisor: {bundle: bundle}
devices:
DEVICES
links:
  - name: boiler
    from: plant/+/boiler
    when: temp_c > 60
    prompt: "{{ reading | tojson }}"
    to: plant/{{ topic[1] }}/boiler/advice
  - name: overheating
    from: hall/+/air
    when: temp_c > 35
    prompt: "{{ temp_c }} °C. What now?"
    to: hall/{{ topic[1] }}/advice
"""


class Simulated:
    """Devices that are nothing but their messages."""

    def __init__(self, port: int, count: int) -> None:
        self.names = [f"hall-{number // 50}-pi-{number % 50:02d}" for number in range(count)]
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._random = random.Random(1)

    def publish(self, topic: str, value: Any, retain: bool = False, qos: int = 1) -> paho.MQTTMessageInfo:
        """A message of a device."""
        return self._client.publish(f"stonechat/1/{topic}", json.dumps(value).encode(), qos=qos, retain=retain)

    def appear(self) -> None:
        """What the broker keeps of them, and their health."""
        states = self._random.choices(
            ["ready", "busy", "updating", "lost", "disconnected"], [78, 14, 3, 3, 2], k=len(self.names)
        )
        for number, (name, state) in enumerate(zip(self.names, states, strict=True)):
            self.publish(f"{name}/out/state", {"state": state, "boot": number % 7 + 1}, True)
            info = {
                "device": name, "board": BOARDS[number % 3], "version": "0.1.0", "models": ["boiler-advisor"],
                "capabilities": ["generate", "stream", "cancel", "schema", "links", "ota"],
                "pool": f"hall-{number // 50}", "bundles": {"boiler-advisor": "boiler-advisor 3"},
            }  # fmt: skip
            last = self.publish(f"{name}/out/info", info, True)
        last.wait_for_publish(60)

    def health(self, name: str, **fields: Any) -> None:
        """A report of health."""
        draw = self._random
        health = {
            "uptime_s": draw.randint(100, 900_000), "rss_mb": round(draw.uniform(90, 300), 1),
            "temperature_c": round(draw.gauss(52, 8), 1), "throttled": draw.random() < 0.02, "errors": 0,
            "answers": draw.randint(0, 9000), "queue": draw.choice([0, 0, 0, 0, 1, 2, 5]),
            "tps_p50": round(draw.uniform(8, 60), 1), "ttft_ms_p95": round(draw.uniform(50, 900), 1),
        }  # fmt: skip
        self.publish(f"{name}/out/health", health | fields, qos=0)

    def answer(self, name: str, temp_c: float) -> None:
        """An answer of the link `boiler`."""
        alarm = temp_c > 85
        answer = {
            "severity": "alarm" if alarm else "warn" if temp_c > 75 else "ok",
            "cause": "overheat" if alarm else "none",
            "advice": "Close the burner valve and open the bypass." if alarm else "Look at it again in ten minutes.",
        }
        sure = round(self._random.uniform(0.6, 1), 3)
        fields = {
            "answer": answer, "confidence": {"severity": sure, "cause": round(self._random.uniform(0.85, 1), 3)},
            "unsure": True if sure < 0.8 else None, "reason": f"severity {sure}" if sure < 0.8 else None,
            "reading": {"temp_c": temp_c, "bar": round(self._random.uniform(1, 3), 2)}, "link": "boiler",
            "device": name, "topic": f"plant/{self._random.randint(1, 9)}/boiler",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        self.publish(f"{name}/out/link/boiler", fields, True)


def chromium(width: int, height: int) -> webdriver.Chrome:
    """A headless browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    metrics = {"width": width, "height": height, "pixelRatio": 1.0, "touch": False}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def until(driver: webdriver.Chrome, script: str, timeout_s: float = 60.0) -> Any:
    """What a script gives, as soon as it gives something."""
    end_s = time.monotonic() + timeout_s
    while not (value := driver.execute_script(script)):
        if time.monotonic() > end_s:
            sys.exit(f"the page never had {script}")
        time.sleep(0.02)
    return value


def measure(url: str, fleet: Simulated, rate: float, seconds: float) -> tuple[float, float]:
    """(first view in ms, longest time between two frames in ms)."""
    driver = chromium(1280, 900)
    try:
        driver.get(url)
        first_ms = float(until(driver, FIRST_VIEW))
        time.sleep(1)
        driver.execute_script(FRAMES)
        begun_s = time.monotonic()
        for number in range(int(rate * seconds)):
            fleet.health(fleet.names[number % len(fleet.names)], queue=number)
            time.sleep(max(0.0, begun_s + number / rate - time.monotonic()))
        time.sleep(0.5)
        longest_ms = float(driver.execute_script("return window.worst"))
        last = int(rate * seconds) - 1
        search = driver.find_element(By.CSS_SELECTOR, "input[type=search]")
        search.send_keys(fleet.names[last % len(fleet.names)])
        until(driver, f"return document.querySelector('tbody').innerText.includes('{last}')")
    finally:
        driver.quit()
    return first_ms, longest_ms


def rollout(folder: Path, names: list[str]) -> None:
    """One that is under way."""
    plan = Plan("20261127-101500-9a3c", "/b", "0" * 64, "boiler-advisor", "4", "/f.yaml", "north", tuple(names[:24]))
    begun = Rollout.of(plan).choose_canaries(plan.devices)
    for name in plan.devices[:12]:
        begun = begun.ordered(name, f"s-{name}").heard(name, Report(f"s-{name}", Phase.CONFIRMED, "boiler-advisor"))
    RolloutFiles(folder).write(begun)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="The dashboard's page with a thousand simulated devices.")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=60.0, help="messages a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    weight = sum(len(gzip.compress(path.read_bytes(), 6)) for path in PAGES.values())
    print(f"weight of the page: {weight / 1000:.1f} kB compressed, {len(PAGES)} files")
    with ExitStack() as stack:
        processes = stack.enter_context(Processes())
        folder = processes.folder
        _, port = broker.start(processes)
        fleet = Simulated(port, args.devices)
        fleet.appear()
        devices = "\n".join(f"  {name}: {{model: boiler-advisor, links: [boiler]}}" for name in fleet.names)
        (folder / "fleet.yaml").write_text(FLEET.replace("DEVICES", devices), encoding="utf-8")
        rollout(folder / "stonechat" / "rollouts", fleet.names)
        command = [sys.executable, "-m", "toolkit", "dashboard", str(folder / "fleet.yaml"), "--port", "0"]
        command += ["--broker", f"mqtt://127.0.0.1:{port}"]
        environment = os.environ | {"XDG_STATE_HOME": str(folder)}
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"http://\S+:\d+", line)
        assert found is not None, line
        for name in fleet.names:
            fleet.health(name)
        for number in range(12):
            fleet.answer(fleet.names[number * 5], 62.5 + 7.3 * (number % 5))
        time.sleep(1)
        runs = [measure(found[0], fleet, args.rate, args.seconds) for _ in range(args.runs)]
        firsts, longest = zip(*runs, strict=True)
        print(f"first view of {args.devices} devices: {min(firsts):.0f} to {max(firsts):.0f} ms")
        print(f"longest time between two frames at {args.rate:g} messages a second: {max(longest):.0f} ms")


if __name__ == "__main__":
    main()
