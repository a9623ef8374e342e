"""The files that a board gets: its fleet file, its unit, and stonechat itself as a wheel."""

from __future__ import annotations

import base64
import csv
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from boards import load_board
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from device_runtime.update.state import TrialLimits
from toolkit.device.layout import Layout
from toolkit.ssh.fleet_file import fleet_for_board
from toolkit.ssh.unit import memory_max, unit_text
from toolkit.ssh.wheel import write_wheel

FLEET = """\
# our greenhouse
schema: 1
broker: {url: "mqtts://broker.site:8883", certs: '../certs of the site'}
models:
  assistant:
    bundle: ${MODELS:-../build}/smollm2  # on the desk
    system: "bundle: stays"
  "other": {bundle: b}
devices:
  pi-1: {model: assistant}
  pi-2: {model: other}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_only_the_paths_of_a_fleet_file_are_replaced(tmp_path):
    text = fleet_for_board(written(tmp_path, FLEET))
    assert text == (
        FLEET.replace("${MODELS:-../build}/smollm2", '"models/assistant"')
        .replace("{bundle: b}", '{bundle: "models/other"}')
        .replace("'../certs of the site'", '"certs"')
    )
    plan = fleet.load(written(tmp_path, text))
    assert plan.models_of("pi-1")["assistant"].bundle == str(tmp_path / "models/assistant")


def test_passwords_and_keys_have_their_places_too(tmp_path):
    text = FLEET.replace("'../certs of the site'", "certs, password_file: '${SECRETS}/all'")
    text = fleet_for_board(written(tmp_path, text.replace("models:", "keys: /home/me/keys  # ours\nmodels:")))
    assert 'certs: "certs", password_file: "certs"}' in text
    assert 'keys: "keys"  # ours\n' in text
    assert fleet.load(written(tmp_path, text)).keys_folder() == tmp_path / "keys"


def test_what_a_board_has_already_stays_as_it_is(tmp_path):
    once = fleet_for_board(written(tmp_path, FLEET))
    assert fleet_for_board(written(tmp_path, once)) == once


def test_models_that_share_a_path_through_an_anchor_are_refused(tmp_path):
    shared = FLEET.replace('  "other": {bundle: b}', "  other: {bundle: *b}").replace("bundle: ${", "bundle: &b ${")
    with pytest.raises(ConfigurationError, match="write `bundle:` out for each, without anchors"):
        fleet_for_board(written(tmp_path, shared))


def test_a_faulty_fleet_file_is_refused_with_its_place(tmp_path):
    with pytest.raises(ConfigurationError, match=r"fleet.yaml:\d+:\d+"):
        fleet_for_board(written(tmp_path, FLEET.replace("model: other", "model: none")))


def test_the_memory_of_the_service_is_the_boards(tmp_path):
    board = load_board("raspberry-pi-zero-2-w")  # 512 MiB, of which a model may take 256
    assert memory_max(board) == "448M"
    assert memory_max(None) == "75%"


@pytest.mark.parametrize("layout", [Layout(), Layout("/srv/my data/100%", "/opt/stone chat")])
def test_systemd_finds_no_fault_in_the_unit(layout, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    text = unit_text(layout, "pi-1", load_board("raspberry-pi-4-2gb"))
    program = tmp_path / "stonechat"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    unit = tmp_path / "stonechat.service"
    word = command.removeprefix("ExecStart=").split(" serve ")[0]
    unit.write_text(text.replace(word, str(program), 1))  # the program is not on this machine
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert not [line for line in done.stderr.splitlines() if "stonechat.service" in line], done.stderr
    assert "%%" in text if "%" in layout.root else "%" not in text


def test_the_unit_leaves_room_for_a_trial_and_for_updates():
    """`stonechat serve` holds the trials that are due before it is ready, and installs what comes over MQTT."""
    lines = dict(line.partition("=")[::2] for line in unit_text(Layout(), "pi-1", None).splitlines() if "=" in line)
    assert int(lines["TimeoutStartSec"]) > TrialLimits().timeout_s
    assert "/var/lib/stonechat/models" in lines["ReadWritePaths"].split()
    assert Layout().slots("assistant").startswith("/var/lib/stonechat/models/")


def test_a_wheel_is_the_same_each_time_and_its_record_is_right(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = write_wheel(tmp_path / "a"), write_wheel(tmp_path / "b")
    assert first.sha256 == second.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    with zipfile.ZipFile(first.path) as archive:
        record = f"stonechat-{first.version}.dist-info/RECORD"
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        assert {row[0] for row in rows} == set(archive.namelist())
        for name, digest, size in rows:
            if name != record:
                data = archive.read(name)
                assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip(
                    "="
                )
                assert int(size) == len(data)
        assert "boards/raspberry-pi-zero-2-w.yaml" in archive.namelist()
        metadata = archive.read(f"stonechat-{first.version}.dist-info/METADATA").decode()
    assert "Requires-Dist: paho-mqtt" in metadata


def test_pip_takes_the_wheel(tmp_path):
    wheel = write_wheel(tmp_path)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile", "--target"]
    done = subprocess.run([*command, str(site), str(wheel.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import toolkit.cli; toolkit.cli.main(['--version'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(site)}
    )
    assert done.stdout == f"stonechat {wheel.version}\n"
