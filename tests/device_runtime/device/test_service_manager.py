"""What a service manager hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_runtime.device.watchdog import Heartbeat, ServiceManager


class Clock:
    """Seconds that a test sets."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Ear:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)

    def next(self, timeout_s: float = 60) -> str:
        self.socket.settimeout(timeout_s)
        return self.socket.recv(4096).decode()

    def all(self) -> list[str]:
        """What has come so far."""
        heard = []
        self.socket.setblocking(False)
        while True:
            try:
                heard.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return heard


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    listening = Ear(str(tmp_path / "notify"))
    yield listening
    listening.socket.close()


def test_without_a_manager_nothing_happens():
    manager = ServiceManager.from_environment({})
    manager.ready()
    manager.status("all is well")
    manager.keep_alive(0)
    manager.stopping()
    assert manager.watchdog_s is None


def test_messages_are_those_of_sd_notify(ear, tmp_path):
    manager = ServiceManager(str(tmp_path / "notify"))
    manager.ready()
    manager.status("two\nlines")
    manager.status("two\nlines")
    manager.stopping()
    assert ear.all() == ["READY=1", "STATUS=two lines", "STOPPING=1"]


def test_a_start_up_that_takes_longer_says_so(ear, tmp_path):
    """As sd_notify(3) has it; a trial before `ready` may last longer than the unit's TimeoutStartSec."""
    ServiceManager(str(tmp_path / "notify")).starting(900.5)
    assert ear.all() == ["EXTEND_TIMEOUT_USEC=900500000"]


def test_an_abstract_address_is_understood():
    name = f"stonechat-test-{os.getpid()}"
    ear = Ear("\0" + name)
    ServiceManager("@" + name).ready()
    assert ear.next() == "READY=1"


def test_a_deaf_manager_does_not_end_the_service(tmp_path, caplog):
    ServiceManager(str(tmp_path / "nobody")).ready()
    assert "cannot be reached" in caplog.text


def test_the_variables_are_taken_from_children():
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    manager = ServiceManager.from_environment(environment)
    assert manager.watchdog_s == 3.0
    assert environment == {"A": "b"}


@pytest.mark.parametrize("usec", ["", "0", "-1", "often", "١"])
def test_a_watchdog_that_is_none_is_not_served(usec):
    assert ServiceManager.from_environment({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": usec}).watchdog_s is None


def test_a_watchdog_of_another_process_is_not_ours():
    assert ServiceManager.from_environment({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_signs_of_life_come_twice_per_interval_while_nothing_is_stalled(ear, tmp_path):
    clock = Clock()
    manager = ServiceManager(str(tmp_path / "notify"), 10.0, clock)
    for _ in range(20):  # 20 s, looked at every second
        manager.keep_alive(0)
        clock.now_s += 1
    assert ear.all() == ["WATCHDOG=1"] * 4
    for stalled_s in (5.1, 100.0, float("inf")):
        clock.now_s += 10
        manager.keep_alive(stalled_s)
    assert ear.all() == []
    manager.keep_alive(0.1)
    assert ear.all() == ["WATCHDOG=1"]


def test_a_heartbeat_counts_only_while_there_is_work():
    clock = Clock()
    heartbeat = Heartbeat(clock)
    clock.now_s += 1000
    assert heartbeat.stalled_s == 0
    with heartbeat.working():
        clock.now_s += 7
        assert heartbeat.stalled_s == 7
        heartbeat.beat()
        assert heartbeat.stalled_s == 0
        clock.now_s += 3
        heartbeat.observe("position 5")
        clock.now_s += 2
        heartbeat.observe("position 5")
        assert heartbeat.stalled_s == 2
    assert heartbeat.stalled_s == 0
    heartbeat.observe("position 6")
    clock.now_s += 1000
    assert heartbeat.stalled_s == 0


def test_a_heartbeat_ends_with_work_that_fails():
    heartbeat = Heartbeat(Clock())
    with pytest.raises(KeyError), heartbeat.working():
        raise KeyError
    assert heartbeat.stalled_s == 0
