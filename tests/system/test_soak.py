"""Many requests while the broker is restarted and the device is killed: each is answered once, or refused by name."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from device_runtime.errors import StonechatError, UnreachableError
from device_runtime.mqtt.client import BrokerAddress
from device_runtime.mqtt.remote import RemoteModel
from tests.brokers import free_port, mosquitto

ROOT = Path(__file__).parents[2]
DEVICE = ROOT / "tests" / "toolkit" / "scripted_device.py"


class Device:
    """The scripted device, which can be killed and comes back."""

    def __init__(self, folder: Path, port: int) -> None:
        fleet = ROOT / "examples" / "greenhouse" / "fleet.yaml"
        url = f"mqtt://127.0.0.1:{port}"
        self._command = [sys.executable, str(DEVICE), str(fleet), "--device", "greenhouse-pi", "--broker", url]
        self._command += ["--state-dir", str(folder / "state")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.mark.parametrize(
    "requests, restart_every, kill_every", [(60, 30, 45), pytest.param(4_000, 500, 1_000, marks=pytest.mark.slow)]
)
def test_every_request_has_one_end(requests: int, restart_every: int, kill_every: int, tmp_path: Path) -> None:
    port = free_port()
    device = Device(tmp_path, port)
    broker = contextlib.ExitStack()
    broker.enter_context(mosquitto(tmp_path, port=port))
    device.start()
    ends: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    try:
        with RemoteModel(BrokerAddress("127.0.0.1", port), "greenhouse-pi") as model:
            for number in range(requests):
                if number % restart_every == restart_every - 1:
                    broker.close()
                    broker.enter_context(mosquitto(tmp_path, port=port))
                if number % kill_every == kill_every - 1:
                    device.kill()
                    device.start()
                prompt = f"request {number}"
                try:
                    text = "".join(model.generate(prompt, timeout_s=2.0))
                except UnreachableError as error:
                    refusals[type(error).__name__] += 1
                    ends["refused"] += 1
                    time.sleep(0.3)
                else:
                    # A piece or an answer of another request would show here.
                    assert text == prompt.upper()
                    ends["answered"] += 1
    except StonechatError as error:  # anything else is not by name
        raise AssertionError(f"after {dict(ends)}: {error}") from error
    finally:
        device.kill()
        broker.close()
    assert sum(ends.values()) == requests
    # A restart costs what is on the way, and what comes until both sides are connected again.
    interruptions = requests // restart_every + requests // kill_every
    assert ends["refused"] <= 15 * (interruptions + 1), dict(ends)
    assert ends["answered"] >= requests / 3
    print(f"\n{dict(ends)}")
