"""`stonechat doctor` on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that anybody may enter, as those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize(
    ("bundle", "said"),
    [
        ("circle", "circle does not exist."),
        ("circle/model", "model does not exist."),
        ("x" * 300, "slots.json: File name too long -> check the path and its disk"),
        ("closed/model", "closed/model/slots.json: Permission denied -> Choose a place that this user may use"),
    ],
    ids=["circle", "in a circle", "long name", "closed"],
)
def test_what_cannot_be_looked_at_hides_no_other_finding(bundle, said, open_folder):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    (open_folder / "circle").symlink_to("circle")
    (open_folder / "closed").mkdir(0o700)
    port = free_port()
    (open_folder / "fleet.yaml").write_text(
        f'schema: 1\nbroker: {{url: "mqtt://127.0.0.1:{port}"}}\nmodels: {{m: {{bundle: {bundle}}}}}\n'
        "devices: {d: {model: m}}\n"
    )
    code = (
        "import os, sys\n"
        "from toolkit.cli import main\n"
        "words = ['doctor', '--fleet', 'fleet.yaml', '--device', 'd']\n"
        "os.chdir(sys.argv[1])\n"
        "main(words)\n"  # while all may be imported
        "print('once more', flush=True)\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "main(words)\n"
    )
    done = python(code, open_folder)
    found = " ".join(done.stdout.partition("once more")[2].split())
    assert said in found and f"no connection to the broker at 127.0.0.1:{port}" in found, done
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_gone(tmp_path):
    done = python(
        "import os, sys; from toolkit.cli import main; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); main(['doctor'])",
        tmp_path,
    )
    assert "fail disk this folder: No such file or directory ->" in " ".join(done.stdout.split()), done
    assert "clock" in done.stdout


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
