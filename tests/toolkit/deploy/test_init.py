"""`device init` over a real sshd, without systemd; tests/system/test_board_over_ssh.py has the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import boards
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from tests.support.brokers import free_port
from tests.support.ssh_boards import Board
from tests.support.ssh_servers import ssh_server
from toolkit.device.layout import Layout


def tree(folder: Path) -> dict[str, object]:
    """Every path, its mode and its content."""
    return {
        str(path.relative_to(folder)): (oct(path.lstat().st_mode), path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
        if "venvs/" not in str(path)
    }


def test_the_second_init_changes_nothing(ready):
    before = tree(ready.root.parent)
    done = ready.init(*ready.restart_flag())
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        f"test-pi at {ready.server.target}: nothing changed",
    )
    assert tree(ready.root.parent) == before
    assert done.stderr.count("unchanged: ") == 5


def test_every_step_is_told_and_the_next_one_is_named(board):
    done = board.init()
    assert done.returncode == 0
    names = [line.split("] ")[1] for line in done.stderr.splitlines() if line.startswith("[")]
    assert names == ["check the board …", "folders …", "program …", "configuration …", "service …"]
    assert done.stdout.endswith(f"bring a model: stonechat deploy BUNDLE --to {board.server.target}\n")


def test_the_fleet_file_arrives_with_the_paths_of_the_board(ready):
    text = (ready.root / "fleet.yaml").read_text()
    assert 'tiny: {bundle: "models/tiny", threads: 1, max_new: 8}  # the operator\'s own path' in text
    assert json.loads((ready.root / "device.json").read_text())["device"] == "test-pi"


def test_a_dry_run_changes_nothing(board):
    before = tree(board.root.parent)
    done = board.init("--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["next"] == "nothing was changed (--dry-run)"
    assert "[3/5] program: make an environment in" in done.stderr
    assert tree(board.root.parent) == before


def with_certificates(board: Board, *names: str) -> Path:
    certs = board.fleet.parent / "certs"
    certs.mkdir()
    for name in names:
        (certs / name).write_text(f"this is {name}")
    board.fleet.write_text(
        board.fleet.read_text().replace('"}\nmodels', '", certs: certs}\nmodels').replace("mqtt://", "mqtts://")
    )
    return certs


def test_a_board_gets_its_own_certificates_and_nobody_elses(board):
    with_certificates(board, "ca.crt", "ca.key", "test-pi.crt", "test-pi.key", "other.crt", "other.key")
    done = board.init()
    assert done.returncode == 0, done.stderr
    found = {path.name: oct(path.stat().st_mode & 0o777) for path in (board.root / "certs").iterdir()}
    assert found == {"ca.crt": "0o640", "test-pi.crt": "0o640", "test-pi.key": "0o640"}


def test_a_missing_certificate_shows_before_anything_is_changed(board):
    with_certificates(board, "ca.crt", "test-pi.crt")
    done = board.init()
    assert done.returncode == 2
    assert "test-pi.key cannot be read (No such file or directory); make it with `stonechat broker init" in done.stderr
    assert not board.root.exists()


def test_a_board_gets_its_own_password_which_nobody_else_may_read(board):
    certs = with_certificates(board, "ca.crt", "test-pi.password", "other.password")
    text = board.fleet.read_text().replace("certs: certs}", "certs: certs, password_file: certs}")
    board.fleet.write_text(text)
    done = board.init()
    assert done.returncode == 0, done.stderr
    found = {path.name: oct(path.stat().st_mode & 0o777) for path in (board.root / "certs").iterdir()}
    assert found == {"ca.crt": "0o640", "test-pi.password": "0o600"}
    assert (board.root / "certs" / "test-pi.password").read_text() == "this is test-pi.password\n"
    assert "this is test-pi" not in done.stdout + done.stderr
    plan = fleet.load(board.root / "fleet.yaml")
    assert plan.address("test-pi").password == "this is test-pi.password"

    (certs / "test-pi.password").unlink()
    done = board.init()
    assert done.returncode == 2
    assert "cannot read the password file" in done.stderr


def test_keys_that_the_fleet_file_names_are_trusted(board):
    keys = board.fleet.parent / "our keys"
    keys.mkdir()
    (keys / "site.pub").write_text("site.pub")
    board.fleet.write_text(board.fleet.read_text().replace("models:", "keys: our keys\nmodels:"))
    assert board.init().returncode == 0
    assert (board.root / "keys" / "site.pub").read_text() == "site.pub"
    assert fleet.load(board.root / "fleet.yaml").keys_folder() == board.root / "keys"


def test_a_board_file_of_ones_own_comes_along(board, pi_bundle, tmp_path):
    text = (Path(boards.__path__[0]) / "generic-x86-64.yaml").read_text().replace("generic-x86-64", "our-box")
    (tmp_path / "our-box.yaml").write_text(text)
    done = board.init("--board", tmp_path / "our-box.yaml", *board.restart_flag())
    if done.returncode == 5:
        pytest.skip("this machine is no x86-64 one")
    assert done.returncode == 0, done.stderr
    assert json.loads((board.root / "device.json").read_text())["board"] == str(board.root / "our-box.yaml")
    done = board.deploy(pi_bundle)
    assert done.returncode == 0, done.stderr


def test_public_keys_are_trusted_and_private_ones_stay_here(board, tmp_path):
    keys = tmp_path / "keys"
    (keys / "retired").mkdir(parents=True)
    for name in ("site.pub", "site.key", "retired/old.pub"):
        (keys / name).write_text(name)
    assert board.init("--keys", keys).returncode == 0
    assert sorted(path.name for path in (board.root / "keys").rglob("*.*")) == ["old.pub", "site.pub"]


def test_a_folder_without_public_keys_is_refused(board, tmp_path):
    done = board.init("--keys", tmp_path)
    assert done.returncode == 2
    assert "has no public keys (*.pub); make one with `stonechat key new`" in done.stderr


def test_an_unknown_device_is_refused_before_connecting(board):
    done = board.run(
        "device", "init", "pi@nobody.invalid", "--device", "tets-pi", "--fleet", board.fleet, "--service", "none"
    )
    assert done.returncode == 2
    assert "has no device 'tets-pi'; did you mean 'test-pi'?" in done.stderr


def test_nobody_there_ends_with_3(board):
    done = board.run("device", "status", f"pi@127.0.0.1:{free_port()}", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "unreachable"


def test_a_board_of_another_kind_ends_with_5(board):
    done = board.init("--board", "raspberry-pi-5-4gb")
    assert done.returncode == 5
    assert "and raspberry-pi-5-4gb is aarch64; name the right board with --board" in done.stderr
    assert not board.root.exists()


def test_too_small_a_disk_ends_with_5(board, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small]).returncode:
        pytest.skip("a small disk needs root, and mount")
    try:
        done = board.run(
            "device", "init", board.server.target, "--device", "test-pi", "--fleet", board.fleet,
            "--prefix", small / "prefix", "--service", "none",
        )  # fmt: skip
    finally:
        subprocess.run(["umount", small], check=True)
    assert done.returncode == 5
    assert "has 8 MB free for the program, which needs 400; make room" in done.stderr


def says(**facts: object) -> str:
    """A python3 that speaks for another board."""
    told = {"machine": "aarch64", "python": [3, 11, 2], "venv": True, "missing": []} | facts
    return f"echo '{json.dumps(told)}'"


@pytest.mark.parametrize(
    ("tools", "code", "message"),
    [
        ({}, 2, "has no python3; run there: sudo apt-get install python3 python3-venv (Python 3.11 or newer)."),
        ({"uname": "echo armv6l"}, 5, "is an armv6l board (a Raspberry Pi Zero or 1): no runtime for TFLite graphs"),
        (
            {"python3": """echo '{"machine": "aarch64", "python": [3, 9, 2], "venv": true}'"""},
            2,
            "has Python 3.9.2; stonechat needs 3.11 or newer, as in Debian 12 and Raspberry Pi OS (bookworm).",
        ),
        (
            {"python3": """echo '{"machine": "aarch64", "python": [3, 11, 2], "venv": false}'"""},
            2,
            "cannot make Python environments; run there: sudo apt-get install python3-venv",
        ),
        (
            {"python3": says(bits=32, python=[3, 13, 5])},
            2,
            "is a 32-bit system with Python 3.13, and the runtime for those (tflite-runtime 2.14) has packages up to",
        ),
        (
            {"python3": says(bits=32, missing=["numpy", "yaml"])},
            2,
            "for which not all packages come from the package index; run there: sudo apt-get install python3-numpy "
            "python3-yaml",
        ),
    ],
)
def test_a_board_without_what_it_takes_is_refused(board, tmp_path, tools, code, message):
    """Its PATH has a few tools only, some of which speak for a board that is not here."""
    path = tmp_path / "bin"
    path.mkdir()
    for tool in ("sh", "cat", "uname", "id"):
        (path / tool).symlink_to(str(shutil.which(tool)))
    for tool, script in tools.items():
        (path / tool).unlink(missing_ok=True)
        (path / tool).write_text(f"#!/bin/sh\n{script}\n")
        (path / tool).chmod(0o755)
    with ssh_server(tmp_path / "bare", env={"PATH": str(path)}) as server:
        board.server = server
        done = board.init()
    assert done.returncode == code
    assert message in done.stderr
    assert not board.root.exists()


@pytest.mark.slow  # half a minute on a small machine: it makes a real environment
def test_a_program_that_cannot_be_installed_leaves_the_one_before(ready, tmp_path):
    shutil.rmtree(ready.prefix / "venvs" / os.readlink(ready.prefix / "venv").removeprefix("venvs/"))
    other = ready.prefix / "venvs" / "0.0.1-before"
    other.mkdir()
    (ready.prefix / "venv").unlink()
    (ready.prefix / "venv").symlink_to("venvs/0.0.1-before")
    empty = tmp_path / "wheels"
    empty.mkdir()
    done = ready.init("--wheelhouse", empty)
    assert done.returncode == 1
    assert "step 3, program: no environment could be made in" in done.stderr
    assert "No matching distribution found for" in done.stderr
    assert "The board is as it was; run this again." in done.stderr
    assert os.readlink(ready.prefix / "venv") == "venvs/0.0.1-before"
    assert [path.name for path in (ready.prefix / "venvs").iterdir()] == ["0.0.1-before"]


@pytest.mark.parametrize("path", ["data", "/", "/var/lib", "/a/../etc", "/x$HOME", "/x\ny", "/it's"])
def test_folders_that_are_not_its_own_are_refused(path):
    for flag, fields in (("--root", {"root": path}), ("--prefix", {"prefix": path})):
        with pytest.raises(ConfigurationError, match=f"{flag} is .*expected"):
            Layout(**fields)


def test_systemd_is_missed_by_name(board):
    if Path("/run/systemd/system").is_dir():
        pytest.skip("this machine runs systemd")
    done = board.init("--service", "systemd")
    assert done.returncode == 2
    assert "does not run systemd; use --service none, and start the service your own way." in done.stderr


def test_a_board_that_was_never_set_up_is_told_so(board):
    done = board.run("device", "status", board.server.target)
    assert done.returncode == 2
    assert f"set it up with `stonechat device init {board.server.target}` first" in done.stderr
