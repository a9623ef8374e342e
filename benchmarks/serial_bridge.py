"""What the bridge adds: from publishing a request to its first piece, and the bytes that frames cost on the line.

    python benchmarks/serial_bridge.py [--requests 300] [--prompt-tokens 64]

Broker, bridge and board are processes of their own on this machine; the board runs the reference firmware with an
engine that answers at once, so what is measured is MQTT, the bridge and the protocol. The same service with a model in
its own process that answers at once runs beside it. A pseudo-terminal has no baud rate: the time that the same bytes
take on a real line is computed, and printed apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mqtt import Instant  # benchmarks/mqtt.py

from device_runtime.bridge.frames import frame
from device_runtime.bridge.link import Link
from device_runtime.bridge.messages import VERSION, Capability, Finish, Hello, Piece, Prompt, Start
from device_runtime.bridge.model import SerialModel
from device_runtime.device.service import Service
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.topics import DeviceTopics
from toolkit.demo import broker
from toolkit.demo.processes import Processes
from toolkit.emulate.model_board import listen, pseudo_terminal, serve
from toolkit.emulate.pty_board import Board

BODY = 256  # bytes of the largest body
HELLO = Hello(VERSION, Capability.TEXT, BODY, 2 * BODY, 4096, 50_000, 0, 0, 0, name="instant")
BAUD = 115_200


class Two:
    """An engine that says two words at once."""

    prompt_tokens, cached_tokens, completion_tokens = 1, 0, 2

    def start(self, prompt: bytes, start: Start) -> None:
        """Begin."""
        self._steps: Iterator[tuple[bytes, Finish | None]] = iter([(b"so ", None), (b"be it", Finish.STOP)])

    def step(self) -> tuple[bytes, Finish | None]:
        """The next word."""
        return next(self._steps)


def board(kind: str, name: Any) -> None:
    """The board's process."""
    wire = pseudo_terminal() if kind == "pty" else listen("127.0.0.1:0")
    name.put(wire.name)
    serve(Board(Two(), HELLO), wire)


def device(port: int, folder: str, kind: str, serial: str) -> None:
    """The process of the bridge, or of a Pi."""
    config = DeviceConfig(kind, BrokerAddress("127.0.0.1", port), Path(folder) / kind, health_s=3600)
    if kind == "none":
        Service(config, lambda name: Instant()).run()
    else:
        model = SerialModel(Link(serial))
        Service(config, lambda name: model.open(), hardware=model).run()


def added_ms(port: int, device: str, requests: int) -> list[float]:
    """From publishing each request to its first piece."""
    heard: queue.Queue[tuple[float, Incoming]] = queue.Queue()
    client = Client(
        BrokerAddress("127.0.0.1", port), f"bench-{device}",
        on_message=lambda message: heard.put((time.perf_counter(), message)),
    )  # fmt: skip
    topics = DeviceTopics(device)
    reply_to = topics.reply("bench", "1")
    client.subscribe(Subscription(topics.state), Subscription(reply_to))
    client.connect()
    while json.loads(heard.get(timeout=30)[1].payload).get("state") != "ready":
        pass
    found = []
    for number in range(requests + 20):
        began_s, first_s = time.perf_counter(), None
        client.publish(
            topics.generate, b'{"prompt":"x","stream":true}', qos=1, response_topic=reply_to,
            correlation_data=str(number).encode(),
        )  # fmt: skip
        while True:
            at_s, message = heard.get(timeout=10)
            if message.topic == reply_to:
                first_s = first_s or at_s
                if json.loads(message.payload).get("done"):
                    break
        if number >= 20:
            found.append((first_s - began_s) * 1e3)
    client.close()
    return found


def latency(requests: int) -> None:
    """Measure and print a table."""
    context = multiprocessing.get_context("spawn")
    with Processes() as parts, tempfile.TemporaryDirectory() as folder:
        kind, port = broker.start(parts)
        print(f"publish to first piece through {kind}, {requests} requests, engine that answers at once")
        print(f"{'board':<28}{'p50 ms':>8}{'p99 ms':>8}")
        for wire in ("none", "pty", "socket"):
            processes, serial = [], ""
            if wire != "none":
                name = context.Queue()
                processes.append(context.Process(target=board, args=(wire, name), daemon=True))
                processes[0].start()
                serial = name.get(timeout=30)
            processes.append(context.Process(target=device, args=(port, folder, wire, serial), daemon=True))
            processes[-1].start()
            times = added_ms(port, wire, requests)
            label = "no bridge: in the process" if wire == "none" else f"bridge over {wire}"
            print(
                f"{label:<28}{statistics.median(times):>8.2f}{statistics.quantiles(times, n=100)[98]:>8.2f}", flush=True
            )
            for process in processes:
                process.terminate()
                process.join()


def line(prompt_tokens: int) -> None:
    """Print what frames cost, with numbers as a 32,000-token vocabulary has them."""
    tokens = [(n * 7919) % 32_000 for n in range(1, prompt_tokens + 1)]

    def ids(values: list[int]) -> bytes:
        return struct.pack(f"<{len(values)}I", *values)

    room = BODY - 9
    data = ids(tokens)
    parts = [frame(Prompt(0x5EED1234, at, data[at : at + room]).pack()) for at in range(0, len(data), room)]
    start = frame(Start(0x5EED1234, len(data), 64, 0, 0, 0.0, 1.0, 0, 1, (2,)).pack())
    rows: list[tuple[str, int, int, int]] = [
        (f"prompt of {prompt_tokens} tokens", len(data), len(start) + sum(map(len, parts)), prompt_tokens)
    ]
    for count in (1, 4, 16):
        piece = frame(Piece(0x5EED1234, 400, ids(tokens[:count])).pack())
        rows.append((f"piece of {count} token{'s' * (count > 1)}", 4 * count, len(piece), count))

    def per_s(size: int) -> float:
        return BAUD / 10 / size

    print(f"\non a line of {BAUD} baud (10 bits a byte)")
    print(f"{'frames':<28}{'ids B':>8}{'line B':>8}{'overhead':>10}{'ms':>8}{'ids B/s':>9}{'tok/s':>8}")
    for name, payload, size, count in rows:
        print(
            f"{name:<28}{payload:>8}{size:>8}{(size - payload) / size:>10.0%}{1e3 / per_s(size):>8.2f}"
            f"{payload * per_s(size):>9.0f}{count * per_s(size):>8.0f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what the bridge adds")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    args = parser.parse_args()
    latency(args.requests)
    line(args.prompt_tokens)


if __name__ == "__main__":
    main()
