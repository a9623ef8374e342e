"""Real brokers for tests."""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from device_runtime.mqtt.address import BrokerAddress

__all__ = ["Broker", "await_ready", "free_port", "made_broker", "mosquitto", "mosquitto_path"]


def mosquitto_path() -> str | None:
    """Where mosquitto is; Debian keeps it out of a user's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A TCP port that nobody listens on.

    Below 32768, where Linux gives none to outgoing connections: other tests open many before it is put to use.
    """
    while True:
        port = 10_240 + secrets.randbelow(32_768 - 10_240)  # not `random`, which Hypothesis seeds
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


@contextmanager
def mosquitto(folder: Path, *lines: str, port: int | None = None, address: str = "127.0.0.1") -> Iterator[int]:
    """A mosquitto on a free port of this machine; `lines` join its configuration."""
    binary = mosquitto_path()
    if binary is None:
        pytest.skip("mosquitto is not installed (Debian: apt install mosquitto mosquitto-clients)")
    port = port or free_port()
    config = folder / f"mosquitto-{port}.conf"
    access = [] if any(line.startswith("allow_anonymous") for line in lines) else ["allow_anonymous true"]
    config.write_text("\n".join([f"listener {port} {address}", *access, "persistence false", *lines, ""]))
    with _running(binary, config, port, address=address):
        yield port


class Broker:
    """A mosquitto that stops on SIGTERM and comes back on the same port."""

    def __init__(self, folder: Path, *, remembers: bool) -> None:
        """Prepare; with `remembers` it keeps on the disk what is retained."""
        kept = ("persistence true", f"persistence_location {folder}/", "user root") if remembers else ()
        self.port, self._folder, self._lines = free_port(), folder, kept
        self._runs = contextlib.ExitStack()

    def start(self) -> None:
        self._runs.enter_context(mosquitto(self._folder, *self._lines, port=self.port))

    def stop(self) -> None:
        self._runs.close()

    def address(self, protocol: Literal["5", "3.1.1"] = "5") -> BrokerAddress:
        return BrokerAddress("127.0.0.1", self.port, protocol=protocol)


@contextmanager
def made_broker(folder: Path, *ports: int) -> Iterator[subprocess.Popen[bytes]]:
    """A mosquitto with what `stonechat broker init` made in a folder; its log is beside mosquitto.conf."""
    binary = mosquitto_path()
    if binary is None:
        pytest.skip("mosquitto is not installed (Debian: apt install mosquitto mosquitto-clients)")
    config = folder / "mosquitto.conf"
    text = config.read_text()
    if "\nuser " not in text:  # as root it would become a user who may not read a test's keys
        config.write_text(f"{text}user root\n")
    with _running(binary, config, *ports) as process:
        yield process


def await_ready(
    port: int, device: str, *, ca: Path | None = None, login: tuple[str, str] | None = None, timeout_s: float = 120.0
) -> None:
    """Wait until a device says that it is ready: its subscriptions are there.

    Args:
        ca: the authority of a broker that speaks TLS.
        login: a user who may read states, and the password.
    """
    states: queue.Queue[str] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda c, u, message: states.put(json.loads(message.payload)["state"])
    if ca is not None:
        client.tls_set(str(ca))
    if login is not None:
        client.username_pw_set(*login)
    client.connect("localhost", port)
    client.loop_start()
    try:
        client.subscribe(f"stonechat/1/{device}/out/state", 1)
        while states.get(timeout=timeout_s) != "ready":
            pass
    finally:
        client.disconnect()
        client.loop_stop()


@contextmanager
def _running(binary: str, config: Path, *ports: int, address: str = "127.0.0.1") -> Iterator[subprocess.Popen[bytes]]:
    log = config.with_suffix(".log").open("wb")
    process = subprocess.Popen([binary, "-c", str(config)], stdout=log, stderr=log)
    try:
        end_s = time.monotonic() + 60
        for port in ports:
            while not _listens(port, address):
                assert process.poll() is None and time.monotonic() < end_s, Path(log.name).read_text()
                time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def _listens(port: int, address: str) -> bool:
    try:
        socket.create_connection((address, port), timeout=0.2).close()
    except OSError:
        return False
    return True
