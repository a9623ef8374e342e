"""Energy: measured where the machine says it, else computed and called so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from device_runtime.machine.power import ComputedEnergy, Power, energy_fields, find_meter, grams_co2, pmic_watts


def test_rapl_adds_its_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    for number, start in ((0, 900), (1, 100)):
        folder = tmp_path / "class" / "powercap" / f"intel-rapl:{number}"
        folder.mkdir(parents=True)
        (folder / "energy_uj").write_text(str(start))
        (folder / "max_energy_range_uj").write_text("1000")
    (tmp_path / "class" / "powercap" / "intel-rapl:0:0").mkdir()  # a part of a package, counted in it
    meter = find_meter(None, tmp_path)
    assert meter is not None and meter.how == "measured: RAPL" and meter.joules() == 0
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").write_text("50")  # it has wrapped: 150 on
    (tmp_path / "class/powercap/intel-rapl:1/energy_uj").write_text("350")
    assert meter.joules() == pytest.approx(400e-6)


def test_an_ina226_is_added_up(tmp_path: Path) -> None:
    folder = tmp_path / "class" / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    (folder / "name").write_text("ina226\n")
    (folder / "power1_input").write_text("2500000\n")  # microwatts
    meter = find_meter(None, tmp_path)
    assert meter is not None and meter.how == "measured: ina226"
    begin_s, begin_j = time.monotonic(), meter.joules()
    time.sleep(0.3)
    # 2.5 W all the time; both clocks are read one after the other
    assert meter.joules() - begin_j == pytest.approx(2.5 * (time.monotonic() - begin_s), rel=0.05)


def test_the_pi_5_lists_its_rails() -> None:
    text = "  VDD_CORE_A current(7)=2.00000000A\n  VDD_CORE_V volt(15)=0.80000000V\n 1V8_SYS_A current(4)=0.10000000A\n"
    text += " 1V8_SYS_V volt(12)=1.80000000V\n EXT5V_V volt(24)=5.10000000V\n"
    assert pmic_watts(text) == pytest.approx(2.0 * 0.8 + 0.1 * 1.8)
    assert pmic_watts("not found") == 0


def test_elsewhere_it_is_computed_and_called_so(tmp_path: Path) -> None:
    assert find_meter(None, tmp_path) is None
    now = [0.0]
    meter = ComputedEnergy(Power(2.7, 6.4), clock=lambda: now[0])
    before = meter.joules()
    now[0] = 2.0
    assert meter.joules() - before == pytest.approx(12.8) and meter.how == "computed: 6.4 W while it answers"
    found = find_meter(Power(1, 2), tmp_path)
    assert found is not None and found.how.startswith("computed")


def test_units() -> None:
    assert energy_fields(3.6, "x") == {"j": 3.6, "mwh": 1.0, "how": "x"}
    assert grams_co2(3.6e6, 380) == 380
