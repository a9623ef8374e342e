"""How a pool on one mosquitto grows: simulated workers that take a second an answer, from 1 to 64, and none lost.

    python benchmarks/pool.py [--members 1 4 16 64] [--seconds 20] [--answer-s 1.0] [--churn]

Workers are real devices (`Service`) with a model that sleeps; several are in one process, so that a desk machine has
room for 64. Clients are `RemoteModel` on the pool, with two requests for each worker under way. `--churn` has processes
stopped, and others killed, while 16 workers answer, and new ones started: every request is answered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from device_runtime.client.remote import RemoteModel  # noqa: E402
from device_runtime.errors import StonechatError  # noqa: E402
from device_runtime.mqtt.address import BrokerAddress  # noqa: E402
from tests.support.brokers import await_ready, mosquitto  # noqa: E402

IN_A_PROCESS = 16

WORKERS = """
import sys, threading, time
from pathlib import Path
from device_runtime.device.service import Service, stop_on_signals
from device_runtime.engine.generation import Completion
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress

port, first, count = map(int, sys.argv[1:4])
answer_s, folder = float(sys.argv[4]), sys.argv[5]

class Answer:
    def __init__(self):
        self.cut = threading.Event()
    def __iter__(self):
        return self
    def __next__(self):
        if hasattr(self, "result"):
            raise StopIteration
        cut = self.cut.wait(answer_s)
        self.result = Completion("done", "cancelled" if cut else "stop", 5, 0, 1, 1.0, 1.0, None, ())
        return "" if cut else "done"
    def cancel(self):
        self.cut.set()

class Sleeper:
    def generate(self, prompt, **options):
        return Answer()
    def close(self):
        pass

class All:
    def __init__(self, services):
        self.services = services
    def stop(self):
        for service in self.services:
            service.stop()

services = [
    Service(
        DeviceConfig(f"worker-{n}", BrokerAddress("127.0.0.1", port), Path(folder) / f"worker-{n}", pool="herd",
                     home_assistant=False, queue=4),
        lambda name: Sleeper(),
    )
    for n in range(first, first + count)
]
threads = [threading.Thread(target=service.run) for service in services]
with stop_on_signals(All(services)):
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
"""


class Herd:
    """Processes with workers in them."""

    def __init__(self, port: int, folder: Path, answer_s: float) -> None:
        self._port, self._folder, self._answer_s = port, folder, answer_s
        self.processes: list[subprocess.Popen[bytes]] = []
        self._next = 0

    def start(self, count: int, in_a_process: int = IN_A_PROCESS) -> None:
        """Start workers, each with a name that no other had."""
        for begin in range(0, count, in_a_process):
            number = min(in_a_process, count - begin)
            arguments = [self._port, self._next, number, self._answer_s, self._folder]
            self.processes.append(subprocess.Popen([sys.executable, "-c", WORKERS, *map(str, arguments)], cwd=ROOT))
            self._next += number

    def stop(self) -> None:
        """Stop all."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)


class Clients:
    """Requests that are always under way, and what came of them."""

    def __init__(self, broker: BrokerAddress, under_way: int) -> None:
        self._broker, self._under_way = broker, under_way
        self._remotes: list[RemoteModel] = []
        self.answered: list[float] = []  # when, on the monotonic clock
        self.lost: Counter[str] = Counter()
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Clients:
        for _ in range(max(1, self._under_way // 16)):
            remote = RemoteModel(self._broker, pool="herd")
            remote.open()
            self._remotes.append(remote)
        for number in range(self._under_way):
            thread = threading.Thread(target=self._ask, args=[self._remotes[number % len(self._remotes)]], daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def finish(self) -> None:
        """Ask nothing more, and wait for what is under way."""
        self._end.set()
        for thread in self._threads:
            thread.join(200)

    def __exit__(self, *_: object) -> None:
        self.finish()
        for remote in self._remotes:
            remote.close()

    def _ask(self, remote: RemoteModel) -> None:
        while not self._end.is_set():
            try:
                answer = remote.generate("x", stream=False, timeout_s=180)
                text = "".join(answer)
                if text != "done":
                    self.lost[f"answered {text!r}"] += 1
                self.answered.append(time.monotonic())
            except StonechatError as error:
                self.lost[str(error)[:80]] += 1
                time.sleep(0.5)


@contextlib.contextmanager
def broker() -> Iterator[tuple[BrokerAddress, int, Path]]:
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name)) as port:
        yield BrokerAddress("127.0.0.1", port), port, Path(name)


def throughput(members: int, seconds: float, answer_s: float) -> tuple[float, Counter[str]]:
    """Answers a second, and what was lost."""
    with broker() as (address, port, folder):
        herd = Herd(port, folder, answer_s)
        herd.start(members)
        try:
            for number in range(members):
                await_ready(port, f"worker-{number}")
            with Clients(address, 2 * members) as clients:
                while len(clients.answered) < 2 * members:  # every worker is there
                    time.sleep(0.1)
                begin_s = time.monotonic()
                time.sleep(seconds)
                end_s = time.monotonic()
                clients.finish()
            count = sum(begin_s <= when < end_s for when in clients.answered)
            return count / (end_s - begin_s), clients.lost
        finally:
            herd.stop()


def churn(seconds: float, answer_s: float) -> tuple[int, Counter[str], int]:
    """Answers while members come and go, what was lost, and how many have gone."""
    with broker() as (address, port, folder):
        herd = Herd(port, folder, answer_s)
        herd.start(16, 2)
        gone = 0
        try:
            for number in range(16):
                await_ready(port, f"worker-{number}")
            with Clients(address, 24) as clients:
                while len(clients.answered) < 24:
                    time.sleep(0.1)
                end_s = time.monotonic() + seconds
                while time.monotonic() < end_s:
                    process = herd.processes.pop(0)
                    (process.kill if gone % 2 else process.terminate)()
                    process.wait(60)
                    gone += 2
                    herd.start(2, 2)
                    time.sleep(seconds / 8)
                clients.finish()
            return len(clients.answered), clients.lost, gone
        finally:
            herd.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--answer-s", type=float, default=1.0)
    parser.add_argument("--churn", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for members in args.members if not args.churn else []:
        rate, lost = throughput(members, args.seconds, args.answer_s)
        rows.append({
            "members": members, "answers_s": round(rate, 2), "linear": round(rate * args.answer_s / members, 3),
            "lost": lost.total(),
        })  # fmt: skip
        if not args.json:
            share = rows[-1]["linear"]
            print(f"{members:3} members: {rate:6.2f} answers a second, {share:.2f} of linear, {lost.total()} lost")
    if args.churn:
        count, lost, gone = churn(args.seconds, args.answer_s)
        rows.append({"members": 16, "gone": gone, "answers": count, "lost": lost.total()})
        if not args.json:
            print(f"16 members, {gone} of them stopped or killed: {count} answers, {lost.total()} lost {dict(lost)}")
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
