"""How much a device's memory grows under steady traffic.

    python benchmarks/memory.py [--minutes 20] [--warm-up 8] [--rate 20] [--against TREE]

The broker (mosquitto) and the device are processes of their own; the device runs the real service with a model that
answers one token at once. In turn come requests of 16 clients, each with another prompt, and a request that is refused.
Printed is the slope of a straight line through the resident memory, looked at every five seconds after the warm-up:
what a new device fills first (its last requests and times, the pools of the allocator) is bounded. With `--against`,
both trees run side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from throughput import DEVICE, ROOT, broker

LOOK_S = 5.0
CLIENTS = 16


def main() -> None:
    """Print a line for each tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=8.0, help="minutes before, which do not count")
    parser.add_argument("--rate", type=float, default=20.0, help="messages a second")
    parser.add_argument("--against", metavar="TREE", type=Path, help="another checkout of stonechat")
    args = parser.parse_args()
    trees = [ROOT, *([args.against.resolve()] if args.against else [])]
    lines: dict[Path, str] = {}
    threads = [threading.Thread(target=lambda tree=tree: lines.update({tree: measure(tree, args)})) for tree in trees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tree in trees:
        print(f"{tree}: {lines.get(tree, 'failed')}")


def measure(tree: Path, args: argparse.Namespace) -> str:
    """The line of one tree."""
    with tempfile.TemporaryDirectory() as folder, broker(Path(folder)) as port, contextlib.ExitStack() as stack:
        form = "new" if (tree / "device_runtime" / "device" / "service.py").exists() else "old"
        device = subprocess.Popen(
            [sys.executable, "-c", DEVICE, str(port), f"{folder}/state", form], cwd=tree, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(tree)},
        )  # fmt: skip
        stack.callback(device.wait)
        stack.callback(device.kill)
        answers, ready = [0], threading.Event()

        def on_message(client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
            if message.topic.endswith("/state"):
                if json.loads(message.payload)["state"] == "ready":
                    ready.set()
            elif b'"done"' in message.payload:
                answers[0] += 1

        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.on_message = on_message
        client.connect("127.0.0.1", port)
        client.loop_start()
        stack.callback(client.loop_stop)
        client.subscribe([("stonechat/1/bench/out/state", 1), ("stonechat/1/bench/out/reply/#", 1)])
        if not ready.wait(60):
            return "did not become ready"
        start_s = time.monotonic()
        count_from_s, end_s = start_s + 60 * args.warm_up, start_s + 60 * (args.warm_up + args.minutes)
        next_look_s, number = count_from_s, 0
        minutes: list[float] = []
        resident_kb: list[float] = []
        while (now_s := time.monotonic()) < end_s:
            ask(client, number)
            number += 1
            if now_s >= next_look_s:
                next_look_s += LOOK_S
                minutes.append((now_s - count_from_s) / 60)
                resident_kb.append(resident_bytes(device.pid) / 1e3)
            time.sleep(max(0.0, start_s + number / args.rate - time.monotonic()))
        slope, intercept = statistics.linear_regression(minutes, resident_kb)
        noise = statistics.pstdev(kb - intercept - slope * m for m, kb in zip(minutes, resident_kb, strict=True))
        ends = f"{resident_kb[0]:,.0f} to {resident_kb[-1]:,.0f} kB"
        return (
            f"{slope:+.1f} kB a minute over {args.minutes:g} minutes ({ends}, "
            f"noise {noise:.0f} kB); {number} messages, {answers[0]} answers"
        )


def ask(client: paho.Client, number: int) -> None:
    """One message of the traffic."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = f"stonechat/1/bench/out/reply/client-{number % CLIENTS}/{number}"
    properties.CorrelationData = str(number).encode()
    fields = {"prompt": f"reading {number} of many", "max_new": 4 if number % 10 else -1}  # what is refused, too
    client.publish("stonechat/1/bench/in/generate", json.dumps(fields), qos=1, properties=properties)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
