"""What the runtime needs to know of the machine it runs on."""

from __future__ import annotations

import os
import platform
import resource
import struct
import zlib
from pathlib import Path

__all__ = [
    "cpu_features",
    "cpu_fingerprint",
    "numpy_without_threads",
    "peak_rss_mb",
    "program_arch",
    "program_arch_of",
    "rss_mb",
    "temperature_c",
    "throttled",
    "usable_cores",
]

_THERMAL = Path("/sys/class/thermal/thermal_zone0/temp")
_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")  # of a Raspberry Pi
_NAMES = {"asimd": "neon", "sse4_1": "sse4.1", "sse4_2": "sse4.2"}  # of /proc/cpuinfo, where board files differ
_THROTTLED_NOW = 0b1111  # under-voltage, frequency capped, throttled, soft temperature limit


def program_arch() -> str:
    """The architecture of the programs that run here, as board files name it."""
    return program_arch_of(platform.machine(), 8 * struct.calcsize("P"))


def program_arch_of(machine: str, bits: int) -> str:
    """The architecture of programs whose addresses have `bits`, under a kernel that says `machine`.

    Raspberry Pi OS starts a 64-bit kernel under its 32-bit system where it can: the kernel says aarch64, and every
    package has to be for armv7l.
    """
    return "armv7l" if machine in ("aarch64", "armv8l") and bits == 32 else machine


def usable_cores() -> int:
    """Cores that this process may use, at most 4: small models do not gain from more."""
    return min(4, len(os.sched_getaffinity(0)))


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    # Not getrusage: its figure starts at what the process had that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def rss_mb() -> float:
    """The resident memory of this process now, in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def temperature_c() -> float | None:
    """Of the processor; None where the machine does not know."""
    try:
        return round(int(_THERMAL.read_text()) / 1000, 1)
    except (OSError, ValueError):
        return None


def throttled() -> bool | None:
    """Whether a Raspberry Pi runs slower now because of its supply or its temperature; None elsewhere."""
    try:
        return bool(int(_THROTTLED.read_text(), 16) & _THROTTLED_NOW)
    except (OSError, ValueError):
        return None


def cpu_features() -> frozenset[str]:
    """What the processor has, by the names of board files; empty where it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    words = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return frozenset(_NAMES.get(word, word) for word in words)


def numpy_without_threads() -> None:
    """Call before numpy is imported by a process that only answers: its BLAS starts a thread for each core, which waits
    busily for matrices that never come, and takes the core from the model."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def cpu_fingerprint() -> str:
    """Eight hexadecimal digits that differ between CPUs for which native code would arrange weights differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("flags", "Features", "CPU implementer", "CPU part", "model", "vendor_id")  # x86 and ARM
    known = sorted({line for line in lines if line.split("\t")[0].split(":")[0].strip() in kinds})
    return f"{zlib.crc32('|'.join([platform.machine(), *known]).encode()):08x}"
