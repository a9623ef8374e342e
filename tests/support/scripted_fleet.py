"""Devices as processes of their own, which can be killed and come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

__all__ = ["Device", "await_state", "fleet_file", "resident_mb", "wait_until"]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "toolkit" / "scripted_device.py"


class Device:
    """A scripted device (tests/toolkit/scripted_device.py)."""

    def __init__(self, folder: Path, port: int, device: str, fleet: Path | None = None, piece_s: float = 0.005) -> None:
        self.device, self._port = device, port
        self.state_dir = folder / f"state-{device}"
        self.log = folder / f"{device}.log"
        self.hold = folder / f"{device}.hold"  # while this file is there, the model says nothing
        fleet = fleet or ROOT / "examples" / "greenhouse" / "fleet.yaml"
        self._command = [sys.executable, str(SCRIPT), str(fleet), "--device", device]
        self._command += ["--broker", f"mqtt://127.0.0.1:{port}", "--state-dir", str(self.state_dir)]
        script = {"STONECHAT_SCRIPT_PIECE_S": str(piece_s), "STONECHAT_SCRIPT_HOLD": str(self.hold)}
        self._environment = os.environ | script
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = False) -> None:
        """Start the process; with `ready`, wait until the device is online."""
        counter = self.state_dir / "boot"
        boot = int(counter.read_text()) + 1 if counter.exists() else 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log, stdout=log, env=self._environment)
        if ready:

            def up(state: dict) -> bool:
                return state["state"] == "ready" and state["boot"] == boot

            await_state(self._port, self.device, up, process=self.process)

    def kill(self) -> None:
        """As a power cut does, but that its TCP connection is closed."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop the process where it stands; return when none of its threads runs any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        wait_until(lambda: all(_thread_state(thread) == "T" for thread in threads.iterdir()))

    def stop(self) -> None:
        """As systemd does."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()[-2000:]


def fleet_file(folder: Path, devices: dict[str, str], links: str = "") -> Path:
    """A fleet file with `devices`: their names, and what follows the model."""
    lines = [f"  {name}: {{model: scripted{more}}}" for name, more in devices.items()]
    text = "\n".join(["schema: 1", "models:", "  scripted: {bundle: nowhere}", "devices:", *lines, links, ""])
    path = folder / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def await_state(
    port: int,
    device: str,
    wanted: Callable[[dict], bool],
    timeout_s: float = 60.0,
    host: str = "127.0.0.1",
    process: subprocess.Popen[bytes] | None = None,
) -> dict:
    """The first state of a device that is `wanted`."""
    seen: list[dict] = []
    end_s = time.monotonic() + timeout_s
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda c, u, message: seen.append(json.loads(message.payload))
    client.connect(host, port)
    client.loop_start()
    client.subscribe(f"stonechat/1/{device}/out/state", qos=1)
    try:
        while not any(map(wanted, seen)):
            assert time.monotonic() < end_s and (process is None or process.poll() is None), f"{device} said {seen}"
            time.sleep(0.02)
        return next(filter(wanted, seen))
    finally:
        client.disconnect()
        client.loop_stop()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0, otherwise: str = "it never came") -> None:
    """Poll until something is so."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, otherwise
        time.sleep(0.02)


def _thread_state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
