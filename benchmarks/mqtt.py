"""What MQTT adds: time to a first token, the cost of readings that wake nobody, and a pool's way around a dead worker.

    python benchmarks/mqtt.py [--requests 500] [--sensors 1000] [--seconds 60] [--failovers 20]

The broker (mosquitto if installed, else the demo's) and the device are processes of their own on this machine. The
device runs the real service with a model that answers at once, so that what is measured is not the model:

1. latency: from publishing a request to its first piece, less the model's own time to first token.
2. sensors: so many publish one reading a second each; the link's `when` wakes the model for 1 in 200. Every wakeup is
   answered and counted; CPU and memory are those of the device's process.
3. pool: of two workers, the one that answers is killed in the middle of it: the time until the answer goes on. The
   other one takes 5 ms for a token, of which it says again what the first had said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from device_runtime.client.remote import RemoteModel
from device_runtime.device.service import Service
from device_runtime.engine.language_model import Completion
from device_runtime.errors import UnreachableError
from device_runtime.fleet.links import Link
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.topics import DeviceTopics
from toolkit.demo import broker
from toolkit.demo.processes import Processes

DEVICE = "bench"
WAKES = 200  # readings for one wakeup
THRESHOLD = 100 - 100 / WAKES


class Instant:
    """A model that says two words at once."""

    def generate(self, prompt: Any, **options: Any) -> _Answer:
        """As `LanguageModel.generate`."""
        return _Answer()

    def close(self) -> None:
        """As `LanguageModel.close`."""


class Steady(Instant):
    """A model that says 200 words, one every 5 ms."""

    def generate(self, prompt: Any, **options: Any) -> _SteadyAnswer:
        """As `LanguageModel.generate`."""
        return _SteadyAnswer()


class _Answer:
    result: Completion  # set when the iteration has ended

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._said = 0
        self._ttft_ms = 0.0

    def __iter__(self) -> _Answer:
        return self

    def __next__(self) -> str:
        if self._said == 2:
            self.result = Completion("so be it", "stop", 1, 0, 2, self._ttft_ms, 1000.0)
            raise StopIteration
        self._said += 1
        if self._said == 1:
            self._ttft_ms = (time.perf_counter() - self._started_s) * 1e3
        return "so " if self._said == 1 else "be it"

    def cancel(self) -> None:
        """Nothing to stop."""


class _SteadyAnswer(_Answer):
    def __next__(self) -> str:
        time.sleep(0.005)
        if self._said == 200:
            self.result = Completion("so " * 200, "stop", 1, 0, 200, 5.0, 200.0)
            raise StopIteration
        self._said += 1
        return "so "


def worker(port: int, folder: str, name: str) -> None:
    """One of a pool."""
    broker = BrokerAddress("127.0.0.1", port)
    Service(DeviceConfig(name, broker, Path(folder) / name, pool="bench"), lambda name: Steady()).run()


def device(port: int, folder: str) -> None:
    """The process under test."""
    link = Link("hot", "plant/+/air", "It is {{ temp_c }}.", "plant/advice/{{ topic[1] }}", f"temp_c >= {THRESHOLD}",
                deadline_s=60, overload="every")  # fmt: skip
    config = DeviceConfig(DEVICE, BrokerAddress("127.0.0.1", port), Path(folder), links=(link,), health_s=3600)
    Service(config, lambda name: Instant()).run()


def sensors(port: int, first: int, count: int, seconds: int, sent: Any) -> None:
    """Publish one reading a second for each of `count` sensors, spread over the second."""
    client = Client(BrokerAddress("127.0.0.1", port), f"sensors-{first}", on_message=lambda message: None)
    client.connect()
    number, start_s = 0, time.perf_counter()
    while (now_s := time.perf_counter() - start_s) < seconds:
        due = int(now_s * count)
        while number < due:
            # A pattern that wakes exactly one reading in WAKES, evenly.
            temp_c = 100.0 if number % WAKES == 0 else (number * 7919 % 9900) / 100
            client.publish(f"plant/{first + number % count}/air", json.dumps({"temp_c": temp_c}).encode(), qos=1)
            number += 1
        time.sleep(0.005)
    if not client.flush(120):
        sys.exit("the broker did not take what the sensors said")
    client.close()
    sent.put((number, -(-number // WAKES)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what MQTT adds")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--sensors", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--failovers", type=int, default=20)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with Processes() as parts, tempfile.TemporaryDirectory() as folder:
        kind, port = broker.start(parts)
        print(f"through {kind}")
        served = context.Process(target=device, args=(port, folder), daemon=True)
        served.start()
        heard: queue.Queue[tuple[float, Incoming]] = queue.Queue()
        client = Client(
            BrokerAddress("127.0.0.1", port), "bench-client",
            on_message=lambda message: heard.put((time.perf_counter(), message)),
        )  # fmt: skip
        topics = DeviceTopics(DEVICE)
        reply_to = topics.reply("bench", "1")
        client.subscribe(Subscription(topics.state), Subscription(reply_to), Subscription("plant/advice/+"))
        client.connect()
        while json.loads(heard.get(timeout=30)[1].payload).get("state") != "ready":
            pass
        latency(client, heard, topics, reply_to, args.requests)
        assert served.pid is not None
        load(context, port, served.pid, heard, args.sensors, args.seconds)
        client.close()
        served.terminate()
        failover(context, port, folder, args.failovers)


def latency(
    client: Client, heard: queue.Queue[tuple[float, Incoming]], topics: DeviceTopics, reply_to: str, requests: int
) -> None:
    """One request after the other."""
    added_ms = []
    for number in range(requests + 20):
        started_s = time.perf_counter()
        client.publish(
            topics.generate, b'{"prompt":"x","stream":true}', qos=1, response_topic=reply_to,
            correlation_data=str(number).encode(),
        )  # fmt: skip
        first_s = None
        while True:
            at_s, message = heard.get(timeout=10)
            if message.topic != reply_to:
                continue
            reply = json.loads(message.payload)
            first_s = first_s or at_s
            if reply.get("done"):
                break
        if number >= 20:
            added_ms.append((first_s - started_s) * 1e3 - reply["ttft_ms"])
    p50, p99 = statistics.median(added_ms), statistics.quantiles(added_ms, n=100)[98]
    print(f"added latency to the first token, {requests} requests: {p50:.2f} ms p50, {p99:.2f} ms p99", flush=True)


def load(
    context: Any, port: int, pid: int, heard: queue.Queue[tuple[float, Incoming]], count: int, seconds: int
) -> None:
    """Many sensors, few wakeups."""
    sent = context.Queue()
    process = context.Process(target=sensors, args=(port, 0, count, seconds, sent))
    answered: set[bytes] = set()
    answers, done = 0, threading.Event()

    def count_answers() -> None:
        nonlocal answers
        while not done.is_set() or not heard.empty():
            try:
                message = heard.get(timeout=0.2)[1]
            except queue.Empty:
                continue
            if message.topic.startswith("plant/advice/"):
                answers += 1
                answered.add(message.payload)

    process.start()
    counter = threading.Thread(target=count_answers)
    counter.start()
    time.sleep(min(5.0, seconds / 4))  # until the sensors are connected and the first readings are through
    cpu_s, rss_mb, started_s = cpu_seconds(pid), resident_mb(pid), time.perf_counter()
    total, woken = sent.get(timeout=seconds + 150)
    elapsed_s = time.perf_counter() - started_s
    cpu = (cpu_seconds(pid) - cpu_s) / elapsed_s
    end_mb = resident_mb(pid)
    process.join()
    end_s = time.monotonic() + 60  # a link's deadline: until then an answer is late, and not lost
    while answers < woken and time.monotonic() < end_s:
        time.sleep(0.1)
    done.set()
    counter.join()
    print(
        f"{count} sensors at 1 reading/s for {seconds} s: {total} readings, {woken} wakeups, {answers} answers; "
        f"CPU {cpu:.0%} of a core; memory {rss_mb:.1f} MB, at the end {end_mb:.1f} MB"
    )
    if answers != woken:
        sys.exit(f"{woken - answers} wakeups were not answered")


def failover(context: Any, port: int, folder: str, kills: int) -> None:
    """Kill the worker that answers, after ten pieces."""
    workers: dict[str, Any] = {}

    def start(name: str) -> None:
        workers[name] = context.Process(target=worker, args=(port, folder, name), daemon=True)
        workers[name].start()

    def ready() -> None:
        """Both are online: each has answered."""
        seen: set[str | None] = set()
        while len(seen) < 2:
            answer = model.generate("x", timeout_s=30)
            with contextlib.suppress(UnreachableError):  # neither of them is, yet
                next(answer)
                seen.add(answer.device)
                answer.cancel()
                list(answer)

    gaps_ms = []
    with RemoteModel(BrokerAddress("127.0.0.1", port), pool="bench") as model:
        for name in ("one", "two"):
            start(name)
        for _ in range(kills):
            ready()
            answer = model.generate("x", timeout_s=30)
            text = "".join(next(answer) for _ in range(10))
            name = answer.device or ""
            workers[name].kill()
            killed_s = time.perf_counter()
            text += next(answer)
            gaps_ms.append((time.perf_counter() - killed_s) * 1e3)
            text += "".join(answer)
            if text != "so " * 200:
                sys.exit(f"an answer was not whole: {len(text)} characters")
            workers[name].join()
            start(name)
        for process in workers.values():
            process.terminate()
    print(
        f"pool, {kills} workers killed after 10 pieces of an answer: all whole; it went on after "
        f"{statistics.median(gaps_ms):.0f} ms p50, {max(gaps_ms):.0f} ms at most"
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Its resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
