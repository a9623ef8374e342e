"""Answers a second with several requests outstanding, of this tree or, in turn with it, of another.

    python benchmarks/throughput.py [--against TREE] [--seconds 5] [--rounds 5] [--outstanding 8]

The broker (mosquitto) and the device are processes of their own; the device runs the real service with a model that
answers one token at once, so that what is measured is the service. With `--against`, rounds of both trees alternate
within one run, because a machine drifts from one sitting to the next; printed are the medians and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ROOT = Path(__file__).resolve().parents[1]
DEVICE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from device_runtime.mqtt.address import BrokerAddress
if sys.argv[3] == "new":
    from device_runtime.device.service import Service
    from device_runtime.fleet.settings import DeviceConfig
else:  # before the service had a room of its own
    from device_runtime.mqtt.service import Service
    from device_runtime.mqtt.config import DeviceConfig

class Answer:
    result = SimpleNamespace(text="x", finish="stop", prompt_tokens=1, cached_tokens=0, completion_tokens=1,
                             ttft_ms=0.1, tokens_per_s=1000.0, confidence=None, unfamiliar=(), embedding=None,
                             probabilities=None)
    def __iter__(self):
        return iter(["x"])
    def cancel(self):
        pass

class Model:
    def generate(self, prompt, **options):
        return Answer()
    def close(self):
        pass

config = DeviceConfig("bench", BrokerAddress("127.0.0.1", int(sys.argv[1])), Path(sys.argv[2]), home_assistant=False)
Service(config, lambda name: Model()).run()
"""


def main() -> None:
    """Print a line for each tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="TREE", type=Path, help="another checkout of stonechat")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--outstanding", type=int, default=8)
    args = parser.parse_args()
    trees = [ROOT, *([args.against.resolve()] if args.against else [])]
    rates: dict[Path, list[float]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory() as folder, broker(Path(folder)) as port:
        for number in range(args.rounds):
            for tree in trees if number % 2 == 0 else trees[::-1]:
                state = Path(folder) / f"state-{number}-{trees.index(tree)}"
                rates[tree].append(measure(tree, port, state, args.seconds, args.outstanding))
    for tree, found in rates.items():
        print(f"{tree}: {statistics.median(found):.0f} answers/s (rounds: {', '.join(f'{r:.0f}' for r in found)})")
    if args.against:
        ratio = statistics.median(rates[ROOT]) / statistics.median(rates[trees[1]])
        print(f"ratio: {ratio:.3f}")


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[int]:
    """A mosquitto on a free port."""
    binary = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if binary is None:
        sys.exit("mosquitto is not installed (Debian: apt install mosquitto)")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([binary, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def measure(tree: Path, port: int, state: Path, seconds: float, outstanding: int) -> float:
    """Answers a second of the device of one tree."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    form = "new" if (tree / "device_runtime" / "device" / "service.py").exists() else "old"
    command = [sys.executable, "-c", DEVICE, str(port), str(state), form]
    device = subprocess.Popen(command, env=environment, cwd=tree, stderr=subprocess.DEVNULL)
    finals: queue.SimpleQueue[None] = queue.SimpleQueue()
    ready: queue.SimpleQueue[None] = queue.SimpleQueue()

    def on_message(client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/state"):
            if json.loads(message.payload)["state"] == "ready":
                ready.put(None)
        elif b'"done"' in message.payload:
            finals.put(None)

    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe([("stonechat/1/bench/out/state", 1), ("stonechat/1/bench/out/reply/bench/1", 1)])
    number = 0

    def ask() -> None:
        nonlocal number
        number += 1
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = "stonechat/1/bench/out/reply/bench/1"
        properties.CorrelationData = str(number).encode()
        client.publish("stonechat/1/bench/in/generate", b'{"prompt":"x"}', qos=1, properties=properties)

    try:
        ready.get(timeout=60)
        for _ in range(outstanding):
            ask()
        answers, end_s = 0, time.monotonic() + seconds
        while time.monotonic() < end_s:
            finals.get(timeout=30)
            answers += 1
            ask()
        return answers / seconds
    finally:
        client.disconnect()
        client.loop_stop()
        device.terminate()
        device.wait(30)


if __name__ == "__main__":
    main()
