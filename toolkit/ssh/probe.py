"""What a board is and has, asked before anything on it is changed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from boards.board import Board
from device_runtime.errors import ConfigurationError, DoesNotFitError
from device_runtime.machine.machine import program_arch_of
from toolkit.device.layout import Layout
from toolkit.ssh.ssh import Remote

__all__ = ["Facts", "check_board", "probe"]

PYTHON = (3, 11)
PROGRAM_MB = 400  # 10^6 bytes: the environment (about 250 on x86-64), beside the one that it replaces
CLOCK_OFF_S = 300
_ARMV6 = "armv6"
# What has no wheel for 32-bit ARM, and the Debian package that it comes from there.
_FROM_DEBIAN = {
    "numpy": "python3-numpy",
    "sentencepiece": "python3-sentencepiece",
    "yaml": "python3-yaml",
    "cryptography": "python3-cryptography",
}
_PYTHON_32 = (3, 11)  # the last that tflite-runtime has wheels for

# The far side may have an old Python, or none: sh first, then what every Python 3 understands.
_PROBE = r"""
machine=$(uname -m)
if ! command -v python3 >/dev/null 2>&1; then echo "{\"machine\": \"$machine\", \"python\": null}"; exit 0; fi
exec python3 - "$@" <<'EOF'
import importlib.util, json, os, platform, shutil, struct, sys, time

def existing(path):
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path

try:
    import ensurepip, venv
    has_venv = True
except ImportError:
    has_venv = False
try:
    with open("/proc/device-tree/compatible", "rb") as file:
        compatible = file.read().decode("utf-8", "replace").strip("\0").split("\0")
except (IOError, OSError):
    compatible = []
with open("/proc/meminfo") as file:
    ram_kib = int(file.readline().split()[1])
print(json.dumps({
    "machine": platform.machine(), "python": list(sys.version_info[:3]), "bits": 8 * struct.calcsize("P"),
    "missing": [name for name in sys.argv[3:] if importlib.util.find_spec(name) is None],
    "venv": has_venv, "compatible": compatible, "ram_kib": ram_kib, "time_s": time.time(),
    "free_root_mb": shutil.disk_usage(existing(sys.argv[1])).free / 1e6,
    "free_prefix_mb": shutil.disk_usage(existing(sys.argv[2])).free / 1e6,
    "systemd": os.path.isdir("/run/systemd/system"), "uid": os.getuid(),
    "sudo": shutil.which("sudo") is not None and os.system("sudo -n true >/dev/null 2>&1") == 0,
    "writable": all(os.access(existing(path), os.W_OK) for path in sys.argv[1:3]),
}))
EOF
"""


@dataclass(frozen=True)
class Facts:
    """What a board says of itself."""

    machine: str  # as `uname -m` says it
    bits: int  # of its programs: a 64-bit kernel can run a 32-bit system
    python: tuple[int, ...]
    compatible: tuple[str, ...]  # of its device tree
    ram_kib: int
    clock_off_s: float  # slow when negative
    free_root_mb: float  # 10^6 bytes
    free_prefix_mb: float
    systemd: bool  # it runs as the first process
    uid: int
    sudo: bool  # without a password
    writable: bool  # both folders, by the user that we are there

    @property
    def arch(self) -> str:
        """As board files have it."""
        return program_arch_of(self.machine, self.bits)

    @property
    def word_size(self) -> str:
        """ "32" on a 32-bit system, "32 on 64" if its kernel is a 64-bit one, "" on a 64-bit system."""
        if self.bits == 64:
            return ""
        return "32 on 64" if self.machine in ("aarch64", "x86_64") else "32"


def probe(remote: Remote, layout: Layout) -> Facts:
    """Ask.

    Raises:
        ConfigurationError: it has no Python that stonechat runs on, or none that can make environments.
        DoesNotFitError: stonechat has no runtime for its processor.
        RemoteError: it cannot be asked.
    """
    said = json.loads(remote.check(_PROBE, layout.root, layout.prefix, *_FROM_DEBIAN))
    where = remote.target
    if said["machine"].startswith(_ARMV6):
        raise DoesNotFitError(
            f"{where} is an {said['machine']} board (a Raspberry Pi Zero or 1): no runtime for TFLite graphs exists "
            "for it. Take a Zero 2 W or newer."
        )
    needed = ".".join(map(str, PYTHON))
    if said["python"] is None:
        raise ConfigurationError(
            f"{where} has no python3; run there: sudo apt-get install python3 python3-venv (Python {needed} or newer)."
        )
    if tuple(said["python"]) < PYTHON:
        raise ConfigurationError(
            f"{where} has Python {'.'.join(map(str, said['python']))}; stonechat needs {needed} or newer, as in "
            "Debian 12 and Raspberry Pi OS (bookworm)."
        )
    if not said["venv"]:
        raise ConfigurationError(
            f"{where} cannot make Python environments; run there: sudo apt-get install python3-venv"
        )
    if said["bits"] == 32:
        _check_32_bit(said, str(where))
    return Facts(
        said["machine"], said["bits"], tuple(said["python"]), tuple(said["compatible"]), said["ram_kib"],
        said["time_s"] - time.time(), said["free_root_mb"], said["free_prefix_mb"], said["systemd"], said["uid"],
        said["sudo"], said["writable"],
    )  # fmt: skip


def _check_32_bit(said: dict[str, Any], where: str) -> None:
    """Raise a `ConfigurationError` if pip could not install the program on a 32-bit system."""
    if (found := tuple(said["python"])[:2]) != _PYTHON_32:
        raise ConfigurationError(
            f"{where} is a 32-bit system with Python {'.'.join(map(str, found))}, and the runtime for those "
            "(tflite-runtime 2.14) has packages up to Python 3.11; take Debian 12 or Raspberry Pi OS (bookworm) there, "
            "or a 64-bit system."
        )
    if said["missing"]:
        packages = " ".join(_FROM_DEBIAN[name] for name in said["missing"])
        raise ConfigurationError(
            f"{where} is a 32-bit system, for which not all packages come from the package index; run there: "
            f"sudo apt-get install {packages}"
        )


def check_board(facts: Facts, board: Board | None, where: str) -> list[str]:
    """Whether the program can go there; returns what is odd but no obstacle.

    Raises:
        DoesNotFitError: it cannot.
    """
    if board is not None and board.arch != facts.arch:
        hint = " Its system is a 32-bit one: write a 64-bit one to its card." if facts.arch == "armv7l" else ""
        raise DoesNotFitError(
            f"{where} runs {facts.arch}, and {board.id} is {board.arch}; name the right board with --board.{hint}"
        )
    if facts.arch not in ("aarch64", "x86_64", "armv7l"):
        raise DoesNotFitError(f"{where} runs {facts.arch}; stonechat has runtimes for aarch64, x86_64 and armv7l.")
    if facts.free_prefix_mb < PROGRAM_MB:
        raise DoesNotFitError(
            f"{where} has {facts.free_prefix_mb:.0f} MB free for the program, which needs {PROGRAM_MB}; make room, or "
            "name another disk with --prefix."
        )
    if abs(facts.clock_off_s) <= CLOCK_OFF_S:
        return []
    return [
        f"its clock is {_span(facts.clock_off_s)}, and certificates and signatures have dates; "
        "run there: sudo timedatectl set-ntp true"
    ]


def _span(off_s: float) -> str:
    minutes = abs(off_s) / 60
    size = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
    return f"{size} {'slow' if off_s < 0 else 'fast'}"
