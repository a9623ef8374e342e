"""Shows the greenhouse at work: `python -m toolkit.demo --bundle DIR [--answers 5] [--broker URL]`.

Starts a broker, a device with the model and the simulated sensors, each as its own process, and prints which readings
woke the model and what it answered. Stops all of them at the end, on Ctrl-C and on any failure.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import secrets
import statistics
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.topics import DeviceTopics, matches
from toolkit.demo import broker
from toolkit.demo.boiler import beside
from toolkit.demo.processes import Processes
from toolkit.demo.run import STONECHAT, exit_code_of, next_message, own_path

__all__ = ["main", "show"]

GREENHOUSE = Path(__file__).parents[2] / "examples" / "greenhouse"
DEVICE = "greenhouse-pi"
SERVE = (*STONECHAT, "serve")
READY_S = 120.0  # a cold start packs the model's weights
ANSWER_S = 120.0  # between two answers
RATE = 12  # readings a second: four hours, until it is hot, pass in 14 seconds
RATE_LINE = re.compile(r"link \S+ answered: \d+ tokens, ([\d.]+) tok/s")  # device/link_runner.py logs it
RATE_S = 0.5  # that the line may come after the answer


def next_steps(bundle: Path) -> str:
    """Lines that work when pasted, from where the user is."""
    beside = Path(sys.executable).parent / "stonechat"
    command = os.path.relpath(beside) if beside.exists() else "stonechat"
    return (
        "Try next:\n"
        f'  {command} run {os.path.relpath(bundle)} "What do tomatoes need in the heat?"\n'
        f"  {command} bench {os.path.relpath(bundle)}\n"
        f"  edit the links in {os.path.relpath(GREENHOUSE)}/fleet.yaml\n"
        "  (docs/guides/links.md explains them) and run this again"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m toolkit.demo", description="The greenhouse on one machine.")
    parser.add_argument("--bundle", metavar="DIR", type=Path, required=True, help="a bundle made by stonechat convert")
    parser.add_argument("--answers", metavar="N", type=int, default=5, help="stop after N answers (default 5)")
    parser.add_argument("--broker", metavar="URL", help="use this broker instead of starting one")
    args = parser.parse_args(argv)

    def both() -> None:
        show(args.bundle, args.answers, args.broker)
        beside(args.bundle)
        print(next_steps(args.bundle))

    return exit_code_of(both)


def show(bundle: Path, answers: int, broker_url: str | None = None, *, serve: Sequence[str] = SERVE) -> None:
    """Run all parts until `answers` answers were printed.

    Raises:
        PartFailedError: a part ended by itself.
        UnreachableError: no device, or no answer, in time.
        ConfigurationError: the bundle is missing, or there is no broker.
    """
    if not (bundle / "manifest.json").is_file():
        raise ConfigurationError(f"{bundle} is no bundle: it has no manifest.json. Make one with: stonechat convert")
    with Processes() as processes:
        if broker_url is None:
            kind, port = broker.start(processes)
            broker_url = f"mqtt://127.0.0.1:{port}"
            print(f"broker   {kind} on port {port}")
        heard: queue.Queue[Incoming] = queue.Queue()
        client = Client(BrokerAddress.from_url(broker_url), f"demo-{secrets.token_hex(4)}", on_message=heard.put)
        client.subscribe(Subscription(DeviceTopics(DEVICE).state), Subscription("greenhouse/#"))
        client.connect()
        try:
            _start_device(processes, serve, broker_url, bundle)
            _await_ready(processes, heard)
            print(f"device   {DEVICE} with the model {bundle.resolve().name}")
            sensors = [sys.executable, str(GREENHOUSE / "sensors.py"), "--rate", str(RATE), "--start", "6"]
            processes.start("sensors", [*sensors, "--broker", broker_url])
            print(f"sensors  {RATE} readings a second, from 6:00 on a sunny day\n")
            _print_answers(processes, heard, answers)
        finally:
            client.close()


def _start_device(processes: Processes, serve: Sequence[str], broker_url: str, bundle: Path) -> None:
    command = [*serve, str(GREENHOUSE / "fleet.yaml"), "--device", DEVICE, "--broker", broker_url]
    environment = {"STONECHAT_BUNDLE": str(bundle.resolve()), **own_path()}
    processes.start("device", [*command, "--state-dir", str(processes.folder / "state")], environment)


def _await_ready(processes: Processes, heard: queue.Queue[Incoming]) -> None:
    end_s = time.monotonic() + READY_S
    while (left_s := end_s - time.monotonic()) > 0:
        message = next_message(processes, heard, left_s)
        if message is None:
            continue
        if message.topic == DeviceTopics(DEVICE).state and not message.retained and b'"ready"' in message.payload:
            return
    raise UnreachableError(f"the device is not ready after {READY_S:g} s.{processes.last_words('device')}")


def _print_answers(processes: Processes, heard: queue.Queue[Incoming], answers: int) -> None:
    """Print `answers` answers, at most half of them (rounded up) of one link: a day has more to show than its heat."""
    shown: Counter[str] = Counter()
    readings = answered = 0
    last_s = time.monotonic()
    while shown.total() < answers:
        message = next_message(processes, heard, 1.0)
        if message is None:
            if time.monotonic() - last_s > ANSWER_S:
                raise UnreachableError(f"no answer for {ANSWER_S:g} s.{processes.last_words('device')}")
        elif matches("greenhouse/+/advice", message.topic):
            answer = json.loads(message.payload)
            answered, last_s = answered + 1, time.monotonic()
            if shown[answer["link"]] < (answers + 1) // 2:
                shown[answer["link"]] += 1
                _print(message.topic, answer, _rates(processes, answered)[-1:])
        elif message.topic.startswith("greenhouse/"):
            readings += 1
    rates = _rates(processes, answered)
    speed = f" at {statistics.median(rates):.1f} tokens a second (median)" if rates else ""
    print(f"{readings} readings came; {answered} were answered{speed}.")
    print("The others never reached the model.\n")


def _print(topic: str, answer: dict[str, Any], rate: Sequence[float]) -> None:
    speed = f" ({rate[0]:.1f} tok/s)" if rate else ""
    head = f"{answer['reading'].get('time', '')}  {topic.split('/')[1]} house: {_spell(answer)}{speed}"
    indent = " " * 7
    print(textwrap.fill(head, 80, subsequent_indent=indent))
    text = textwrap.fill(answer["text"].strip(), 80, initial_indent=indent, subsequent_indent=indent)
    print(f"{text}\n", flush=True)


def _rates(processes: Processes, answered: int) -> list[float]:
    """Tokens a second of each answer so far, from the device's log."""
    end_s = time.monotonic() + RATE_S
    while True:
        rates = [float(rate) for rate in RATE_LINE.findall(processes.log("device"))]
        if len(rates) >= answered or time.monotonic() > end_s:
            return rates
        time.sleep(0.02)


def _spell(answer: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in answer["reading"].items() if name != "time")
    return f"{values} woke the link {answer['link']}"


if __name__ == "__main__":
    sys.exit(main())
