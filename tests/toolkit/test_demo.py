"""The demo, with a scripted model: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import re
import sys
from pathlib import Path

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import TypedAnswer
from device_runtime.tasks.purpose import Purpose
from device_runtime.update.active import open_bundle
from toolkit.demo import __main__ as demo
from toolkit.demo import boiler, broker
from toolkit.demo.processes import PartFailedError, Processes

ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, str(ROOT / "tests" / "toolkit" / "scripted_device.py")]


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


def children():
    """The ids of the processes whose parent is this one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if text.rpartition(")")[2].split()[1] == str(os.getpid()):
            found.add(stat.parent.name)
    return found


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_the_demo_shows_readings_and_answers_and_stops_what_it_started(bundle, capsys, monkeypatch, kind):
    if kind == "iotcore":
        pytest.importorskip("iotcore", reason="iotcore is not installed (pip install iotcore)")
        monkeypatch.setattr(broker.shutil, "which", lambda *_, **__: None)
    elif not broker.shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("mosquitto is not installed (Debian: apt install mosquitto)")
    before = children()
    demo.show(bundle, 4, serve=SERVE)
    shown = capsys.readouterr().out
    assert f"broker   {kind} on port" in shown
    assert " ".join(shown.split()).count("woke the link too-") == 4
    assert len(set(re.findall(r"woke\s+the\s+link\s+(\S+)", shown))) >= 2, "one link has all the answers"
    assert len(re.findall(r"\(\d+\.\d\s+tok/s\)", shown)) == 4
    assert max(map(len, shown.splitlines())) <= 80
    assert "TELL THE GARDENER IN ONE SENTENCE" in " ".join(shown.split())
    assert children() <= before


def test_the_boiler_advisor_is_right_beside_a_model_that_always_gives_alarm(monkeypatch, capsys):
    """The committed bundle answers all readings as the rules do; a scripted general model is right once."""

    class Alarmist(boiler.Answerer):
        def __init__(self, bundle, purpose, *, shown=(), **_):
            self.general = bool(shown)
            super().__init__(open_bundle(boiler.EXAMPLE / "bundle"), Purpose.of_manifest(bundle.manifest))

        def answer(self, given):
            said = {"severity": "alarm", "cause": "overpressure", "advice": "Word " * 24}
            return TypedAnswer(said, {"severity": 0.4}, ()) if self.general else super().answer(given)

    monkeypatch.setattr(boiler, "Answerer", Alarmist)
    assert boiler.beside(boiler.EXAMPLE / "bundle") == (len(boiler.READINGS), 1)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert len(re.findall(r"advisor  \w+, \w+ \(\d+% sure\)  right\n", shown)) == len(boiler.READINGS)
    assert shown.count("general  alarm, overpressure (40% sure)  wrong: ") == len(boiler.READINGS) - 1
    assert f"Right: the advisor {len(boiler.READINGS)} of {len(boiler.READINGS)}, the general model 1." in shown


def test_a_failing_part_is_named_with_its_last_words(bundle):
    broken = [sys.executable, "-c", "import sys; sys.exit('no model here')"]
    before = children()
    with pytest.raises(PartFailedError, match=r"the device ended with exit code 1\.(.|\n)*no model here"):
        demo.show(bundle, 1, serve=broken)
    assert children() <= before


def test_a_folder_that_is_no_bundle_is_said_to_be_none(tmp_path, capsys):
    assert demo.main(["--bundle", str(tmp_path)]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_no_broker_on_the_machine_says_what_to_install(monkeypatch):
    monkeypatch.setattr(broker.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(broker.importlib.util, "find_spec", lambda name: None)
    with Processes() as processes, pytest.raises(ConfigurationError, match="apt install mosquitto"):
        broker.start(processes)


def test_a_part_that_ignores_sigterm_is_killed(monkeypatch):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    before = children()
    with Processes() as processes:
        processes.start("stubborn", [sys.executable, "-c", code])
        processes.check()
        processes.stop(0.2)
    assert children() <= before


def test_the_same_seed_gives_the_same_readings_and_most_wake_nothing(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "greenhouse"))
    import sensors

    from device_runtime.fleet import file as fleet
    from device_runtime.fleet.links import Reading, Windows
    from device_runtime.mqtt.topics import matches

    day = list(itertools.islice(sensors.readings(3), 960))
    assert day == list(itertools.islice(sensors.readings(3), 960))
    links = [Windows(link, lambda: 0.0) for link in fleet.load(ROOT / "examples" / "greenhouse" / "fleet.yaml").links]
    woken = [
        w for topic, value in day for link in links
        if matches(link.link.source, topic) and (w := link.consider(Reading(topic, value, 0.0)))
    ]  # fmt: skip
    assert {w.link.name for w in woken} == {"too-hot", "too-dry", "too-damp"}
    assert len(woken) < len(day) / 5
