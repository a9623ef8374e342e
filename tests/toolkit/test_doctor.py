"""`stonechat doctor` on this machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.brokers import free_port, mosquitto
from toolkit import doctor as module
from toolkit.doctor import Level, examine


def doctor(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit", "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_each_line_that_is_not_well_has_a_next_step():
    done = doctor("--broker", f"mqtt://127.0.0.1:{free_port()}", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert all((finding["level"] == "ok") == (finding["next"] is None) for finding in report["findings"])
    broker = report["findings"][-1]
    assert (broker["what"], broker["level"]) == ("broker", "fail")


def test_a_broker_that_answers_is_well(tmp_path):
    with mosquitto(tmp_path) as port:
        done = doctor("--broker", f"mqtt://127.0.0.1:{port}")
    assert f"ok    broker       127.0.0.1:{port} answers, without encryption\n" in done.stdout


def test_a_board_of_another_kind_fails():
    done = doctor("--board", "raspberry-pi-zero-2-w")
    if "ok    board" in done.stdout:
        pytest.skip("this machine is an aarch64 one")
    assert done.returncode == 1
    assert "fail board raspberry-pi-zero-2-w is aarch64, and this system runs" in " ".join(done.stdout.split())
    assert done.stderr.endswith("checks failed\n")


@pytest.mark.parametrize(
    ("name", "answer", "what", "level"),
    [
        ("throttled", lambda: True, "throttling", Level.WARN),
        ("throttled", lambda: False, "throttling", Level.OK),
        ("temperature_c", lambda: 85.2, "temperature", Level.WARN),
        ("temperature_c", lambda: 55.0, "temperature", Level.OK),
    ],
)
def test_what_this_machine_cannot_show_is_judged_too(monkeypatch, name, answer, what, level):
    """A sensor of a Raspberry Pi says so: the judgement is ours, the sensor is not here."""
    monkeypatch.setattr(module, name, answer)
    found = {finding.what: finding for finding in examine(None, None, None, None)}
    assert found[what].level is level
