"""What an answer costs in energy: measured where the machine says it, else computed from what its board draws.

Measured: RAPL's counters (Linux powercap), an INA219 or INA226 through hwmon, the power controller of a Raspberry Pi 5
through `vcgencmd pmic_read_adc`. The last two say what is drawn now: a thread adds it up. All are of the whole machine
or processor, so that an answer beside other work costs more.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "ComputedEnergy",
    "EnergyMeter",
    "Power",
    "energy_fields",
    "energy_of_both",
    "find_meter",
    "grams_co2",
    "pmic_watts",
]

_SYS = Path("/sys")
_SAMPLE_S = 0.1
_INA = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina260")
_RAIL = re.compile(r"(\w+)_([AV]) \w+\(\d+\)=([0-9.]+)[AV]")
_J_PER_MWH = 3.6


@dataclass(frozen=True)
class Power:
    """What a board draws."""

    idle_w: float
    busy_w: float  # with all cores at work
    source: str = ""  # where both figures are from


class EnergyMeter(Protocol):
    """Joules since some moment, and how they are known."""

    how: str  # begins with `measured` or `computed`

    def joules(self) -> float:
        """Since some moment."""
        ...


class ComputedEnergy:
    """A board that answers draws `busy_w`: to be read before and after an answer, not across a pause."""

    def __init__(self, power: Power, clock: Callable[[], float] = time.monotonic) -> None:
        self.how = f"computed: {power.busy_w:g} W while it answers"
        self._power, self._clock = power, clock

    def joules(self) -> float:
        """As if the board had been at work all the time."""
        return self._clock() * self._power.busy_w


class _Rapl:
    """Counters of the processor's packages, which wrap."""

    how = "measured: RAPL"

    def __init__(self, domains: list[Path]) -> None:
        self._counters = [(path / "energy_uj", _number(path / "max_energy_range_uj")) for path in domains]
        self._last = [_number(file) for file, _ in self._counters]
        self._total_uj = 0.0
        self._lock = threading.Lock()

    def joules(self) -> float:
        with self._lock:
            for place, (file, span) in enumerate(self._counters):
                now = _number(file)
                self._total_uj += now - self._last[place] + (span if now < self._last[place] else 0)
                self._last[place] = now
            return self._total_uj / 1e6


class _Sampled:
    """Adds up what is drawn."""

    def __init__(self, how: str, watts: Callable[[], float]) -> None:
        self.how, self._watts = how, watts
        self._lock = threading.Lock()
        self._joules, self._now_w, self._at_s = 0.0, watts(), time.monotonic()
        threading.Thread(target=self._sample, name="stonechat-power", daemon=True).start()

    def joules(self) -> float:
        with self._lock:
            return self._joules + self._now_w * (time.monotonic() - self._at_s)

    def _sample(self) -> None:
        while True:
            time.sleep(_SAMPLE_S)
            with suppress(OSError, ValueError, subprocess.SubprocessError):
                drawn_w = self._watts()
                with self._lock:
                    now_s = time.monotonic()
                    self._joules += (self._now_w + drawn_w) / 2 * (now_s - self._at_s)
                    self._now_w, self._at_s = drawn_w, now_s


def find_meter(power: Power | None = None, root: Path = _SYS) -> EnergyMeter | None:
    """The best that this machine has; None where nothing is known.

    Args:
        power: of its board.
        root: where sysfs is.
    """
    with suppress(OSError, ValueError):
        domains = [path for path in sorted((root / "class/powercap").glob("intel-rapl:*")) if path.name.count(":") == 1]
        if domains:
            return _Rapl(domains)
    for name in sorted((root / "class/hwmon").glob("hwmon*/name")):
        drawn = name.with_name("power1_input")
        with suppress(OSError, ValueError):
            if name.read_text().strip() in _INA and _number(drawn) >= 0:
                return _Sampled(f"measured: {name.read_text().strip()}", partial(_microwatts, drawn))
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        if pmic_watts(_pmic()) > 0:
            return _Sampled("measured: the Pi 5's power controller", lambda: pmic_watts(_pmic()))
    return ComputedEnergy(power) if power is not None else None


def pmic_watts(text: str) -> float:
    """What `vcgencmd pmic_read_adc` lists, rail by rail: amperes times volts."""
    found: dict[tuple[str, str], float] = {(m[1], m[2]): float(m[3]) for m in _RAIL.finditer(text)}
    return sum(value * found.get((rail, "V"), 0.0) for (rail, unit), value in found.items() if unit == "A")


def energy_fields(joules: float, how: str) -> dict[str, Any]:
    """As replies and records have it."""
    return {"j": round(joules, 4), "mwh": round(joules / _J_PER_MWH, 5), "how": how}


def energy_of_both(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Of two answers of this machine, where the second took the place of the first; see `energy_fields`."""
    if first is None or second is None:
        return second
    return energy_fields(first["j"] + second["j"], second["how"])


def grams_co2(joules: float, g_per_kwh: float) -> float:
    """Of a grid that emits so many grams for a kilowatt-hour."""
    return joules / 3.6e6 * g_per_kwh


def _pmic() -> str:
    done = subprocess.run(["vcgencmd", "pmic_read_adc"], capture_output=True, text=True, timeout=2, check=True)
    return done.stdout


def _microwatts(file: Path) -> float:
    return _number(file) / 1e6


def _number(file: Path) -> float:
    return float(file.read_text())
