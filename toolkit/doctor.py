"""What may be wrong with this machine, as a device of a fleet: each finding with its next step."""

from __future__ import annotations

import enum
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from boards import load_board
from boards.detect import detect_here
from device_runtime.errors import ConfigurationError, StonechatError
from device_runtime.fleet import file as fleet
from device_runtime.machine.kernels import better_package, kernel_family
from device_runtime.machine.machine import cpu_features, program_arch, temperature_c, throttled
from device_runtime.machine.path_errors import next_step
from device_runtime.mqtt.address import BrokerAddress, read_password
from device_runtime.mqtt.client import Client
from device_runtime.records.printable import counted

__all__ = ["Finding", "Level", "examine"]

HOT_C = 80.0  # a Raspberry Pi slows down from here on
ROOM_MB = 500  # 10^6 bytes, where the fleet file does not say how large a model is
_RUNTIMES = ("ai_edge_litert", "tflite_runtime")  # the better one first
_SYNCHRONIZED = Path("/run/systemd/timesync/synchronized")
_SYSTEMD = Path("/run/systemd/system")


class Level(enum.Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line."""

    what: str
    level: Level
    found: str
    next: str | None = None  # what to do; None when all is well


def examine(plan: fleet.Fleet | None, device: str | None, board: str | None, broker: str | None) -> Iterator[Finding]:
    """Every finding, the quick ones first.

    Args:
        plan: the fleet file, if there is one, and `device`, which of its devices this is.
        board: an id or a path, in place of what the device tree says.
        broker: a URL, in place of the fleet file's.
    """
    yield _looked("board", lambda: _board(board))
    yield _runtime()
    yield _kernels()
    yield _throttling()
    yield _temperature()
    yield _looked("disk", lambda: _disk(plan.path.parent if plan is not None else Path.cwd()))
    yield _clock()
    yield from _watchdog()
    if plan is not None and device is not None:
        yield _looked("model", lambda: _model(plan, device))
    if plan is not None or broker is not None:
        yield _looked("broker", lambda: _broker(plan, device, broker))


def _looked(what: str, look: Callable[[], Finding]) -> Finding:
    """A finding about files that a user names; one that the system keeps from us hides none of the others."""
    try:
        return look()
    except OSError as error:
        place = f"{error.filename}: " if error.filename else "this folder: "
        return Finding(
            what, Level.FAIL, f"{place}{error.strerror or error}", next_step(error) or "check the path and its disk"
        )


def _board(named: str | None) -> Finding:
    try:
        board = load_board(named) if named else detect_here()
    except ConfigurationError as error:
        return Finding("board", Level.FAIL, str(error), "name another with --board")
    machine = program_arch()
    if board is None:
        return Finding(
            "board", Level.WARN, f"no board file knows this machine ({machine})", "name one with --board, or write one"
        )
    if board.arch != machine:
        return Finding(
            "board", Level.FAIL, f"{board.id} is {board.arch}, and this system runs {machine}", "name the right --board"
        )
    return Finding("board", Level.OK, board.name)


def _kernels() -> Finding:
    """What the runtime will compute with on this processor."""
    arch = program_arch()
    family = kernel_family(arch, cpu_features())
    if family is None:
        return Finding("kernels", Level.WARN, f"plain C: nothing is known to be faster on this {arch}")
    found = f"{family.name} (as {family.like}): int8 weights {family.int8}, int4 weights {family.int4}"
    better = better_package(arch, platform.machine(), _installed_runtime())
    return Finding("kernels", Level.OK if better is None else Level.WARN, found, better)


def _installed_runtime() -> tuple[str, str] | None:
    for name in _RUNTIMES:
        try:
            return name, metadata.version(name.replace("_", "-"))
        except metadata.PackageNotFoundError:
            continue
    return None


def _runtime() -> Finding:
    known = _RUNTIMES
    for name in known:
        try:
            module = import_module(name)
        except ImportError:
            continue
        return Finding("runtime", Level.OK, f"{name} {getattr(module, '__version__', '')}".strip())
    return Finding(
        "runtime", Level.FAIL, "no TFLite runtime can be imported", f"pip install {known[0].replace('_', '-')}"
    )


def _throttling() -> Finding:
    slow = throttled()
    if slow is None:
        return Finding("throttling", Level.OK, "unknown on this machine")
    if slow:
        return Finding(
            "throttling",
            Level.WARN,
            "the processor runs slower now",
            "a stronger power supply, a shorter cable, a heat sink",
        )
    return Finding("throttling", Level.OK, "none")


def _temperature() -> Finding:
    hot = temperature_c()
    if hot is None:
        return Finding("temperature", Level.OK, "unknown on this machine")
    if hot >= HOT_C:
        return Finding("temperature", Level.WARN, f"{hot:.0f} °C", f"cool it: from {HOT_C:.0f} °C on it slows down")
    return Finding("temperature", Level.OK, f"{hot:.0f} °C")


def _disk(folder: Path) -> Finding:
    free_mb = shutil.disk_usage(folder).free / 1e6
    sizes = [file.stat().st_size for file in folder.glob("models/*/*/*") if file.is_file()]
    needed_mb = sum(sizes) / 1e6 if sizes else ROOM_MB
    text = f"{free_mb:,.0f} MB free in {folder}"
    if free_mb < 20:
        return Finding("disk", Level.FAIL, text, "make room: nothing can be written soon")
    if free_mb < needed_mb:
        return Finding("disk", Level.WARN, text, f"an update needs about {needed_mb:,.0f} MB; make room")
    return Finding("disk", Level.OK, text)


def _clock() -> Finding:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.gmtime().tm_year < 2025:
        return Finding("clock", Level.FAIL, f"it says {now}", "set it: sudo timedatectl set-ntp true")
    said = _output("timedatectl", "show", "-p", "NTPSynchronized", "--value")
    if said == "yes" or _SYNCHRONIZED.exists():
        return Finding("clock", Level.OK, f"{now}, synchronized")
    why = "not synchronized" if said == "no" else "nobody says whether it is synchronized"
    return Finding("clock", Level.WARN, f"{now}, {why}", "sudo timedatectl set-ntp true, or another NTP client")


def _watchdog() -> Iterator[Finding]:
    if not _SYSTEMD.is_dir():
        yield Finding(
            "watchdog", Level.WARN, "no systemd here", "have what starts the service watch it ($NOTIFY_SOCKET)"
        )
        return
    fields = dict(
        line.split("=", 1)
        for line in (_output("systemctl", "show", "stonechat.service", "-p", "WatchdogUSec", "-p", "ActiveState",
                             "-p", "NRestarts") or "").splitlines()
        if "=" in line
    )  # fmt: skip
    interval, state = fields.get("WatchdogUSec", "0"), fields.get("ActiveState", "unknown")
    if state != "active":
        yield Finding("service", Level.FAIL, f"stonechat.service is {state}", "journalctl -u stonechat -n 50")
    else:
        yield Finding("service", Level.OK, f"active, restarted {counted(fields.get('NRestarts', '?'), 'time')}")
    if interval in ("0", "infinity"):
        yield Finding(
            "watchdog", Level.WARN, "systemd does not watch the service", "stonechat device init writes its unit"
        )
        return
    hardware = _output("systemctl", "show", "-p", "RuntimeWatchdogUSec", "--value")
    if Path("/dev/watchdog").exists() and hardware in ("0", "infinity", None):
        yield Finding(
            "watchdog", Level.WARN, f"systemd watches the service ({interval}); nobody watches systemd",
            "RuntimeWatchdogSec=15 in /etc/systemd/system.conf lets the board's own watchdog do it",
        )  # fmt: skip
        return
    yield Finding("watchdog", Level.OK, f"systemd watches the service ({interval})")


def _model(plan: fleet.Fleet, device: str) -> Finding:
    from device_runtime.update.active import open_bundle

    try:
        bundles = [open_bundle(model.bundle) for model in plan.models_of(device).values()]
    except StonechatError as error:
        return Finding("model", Level.FAIL, str(error), "stonechat deploy BUNDLE --to this device")
    return Finding("model", Level.OK, ", ".join(f"{b.manifest.name} {b.manifest.version}" for b in bundles))


def _broker(plan: fleet.Fleet | None, device: str | None, url: str | None) -> Finding:
    try:
        if plan is not None and device is not None:
            address = plan.address(device, url)
        else:
            assert url is not None or plan is not None
            address = BrokerAddress.from_url(url or plan.broker.url, password=read_password())  # type: ignore[union-attr]
        ignore: Callable[[object], None] = lambda message: None  # noqa: E731
        client = Client(address, f"stonechat-doctor-{os.getpid()}", on_message=ignore)
        try:
            client.connect()
        finally:
            client.close(0)
    except StonechatError as error:
        return Finding("broker", Level.FAIL, str(error), "check `broker` in the fleet file, the network and the broker")
    how = "with TLS" if address.tls else "without encryption"
    return Finding("broker", Level.OK, f"{address} answers, {how}")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
