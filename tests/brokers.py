"""Real brokers for tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["free_port", "mosquitto", "mosquitto_path"]


def mosquitto_path() -> str | None:
    """Where mosquitto is; Debian keeps it out of a user's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
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
    log = (folder / f"mosquitto-{port}.log").open("wb")
    process = subprocess.Popen([binary, "-c", str(config)], stdout=log, stderr=log)
    try:
        end_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((address, port), timeout=0.2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end_s, Path(log.name).read_text()
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(5)
        log.close()
