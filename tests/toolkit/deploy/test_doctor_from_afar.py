"""`stonechat device doctor` of a board on which something is broken: a sentence and its next step, whatever it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.mqtt.address import PASSWORD_VARIABLE
from tests.support.brokers import mosquitto
from tests.support.ssh_boards import Board, new_board


@pytest.fixture(scope="module")
def board(server, broker_port, tmp_path_factory) -> Iterator[Board]:
    """Each test leaves it as it was."""
    made = new_board(server, broker_port, tmp_path_factory.mktemp("to-examine"))
    assert made.init(*made.restart_flag()).returncode == 0
    yield made
    made.stop()


@pytest.fixture
def broken(board: Board) -> Iterator[Board]:
    """The same; its files are mended after the test."""
    files = {path: path.read_bytes() for path in (board.root / "device.json", board.root / "fleet.yaml")}
    yield board
    for path, content in files.items():
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)


def doctor(board: Board) -> str:
    """What it prints, in one line; it is the same as JSON."""
    done = board.run("device", "doctor", board.server.target)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert not re.search(r"""[{}]|\[Errno|<class""", done.stdout), done.stdout
    as_json = board.run("device", "doctor", board.server.target, "--json")
    findings = json.loads(as_json.stdout)["findings"]
    assert all(finding["next"] for finding in findings if finding["level"] == "fail")
    text = " ".join(done.stdout.split())
    for finding in findings:
        assert finding["what"] in ("disk", "clock") or " ".join(finding["found"].split()) in text
    return text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"schema: 1\nmodels: [", "fleet.yaml:2:10: not YAML: "),
        (b"schema: 1\nmodels: {m: {bundle: b}}\ndevices: {other: {model: m}}\n", "has no device 'test-pi'; its"),
        (b"\xff", "fleet.yaml:1: not UTF-8: found byte 0xff."),
        (None, "fleet.yaml: No such file or directory. Check the path."),
        ("a folder", "fleet.yaml: Is a directory. Check the path."),
    ],
    ids=["no YAML", "another device's", "no UTF-8", "missing", "a folder"],
)  # fmt: skip
def test_a_fleet_file_that_cannot_be_used(content: bytes | str | None, said: str, broken: Board):
    """Its `stonechat doctor` says so as JSON, which was shown as it came."""
    fleet = broken.root / "fleet.yaml"
    fleet.unlink()
    if content == "a folder":
        fleet.mkdir()
    elif isinstance(content, bytes):
        fleet.write_bytes(content)
    found = doctor(broken)
    assert found.startswith("fail program ") and said in found and "does not start" not in found
    assert f"-> stonechat device init {broken.server.target} … makes its environment and its files again" in found
    if content and not isinstance(content, str):
        status = broken.run("device", "status", broken.server.target)
        assert f"{broken.server.target}:{fleet}" in status.stderr or status.returncode == 0  # not that of a copy here


def test_a_program_that_is_gone(broken: Board):
    record = broken.root / "device.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"prefix": "/nowhere"}))
    assert "stonechat does not start there: " in (found := doctor(broken)) and "not found" in found


def test_findings_of_another_version(broken: Board, tmp_path: Path):
    program = tmp_path / "venv" / "bin" / "stonechat"
    program.parent.mkdir(parents=True)
    findings = json.dumps({"ok": True, "findings": [{"what": "x", "level": "note", "found": "y"}]})
    program.write_text(f"#!/bin/sh\necho '{findings}'\n")
    program.chmod(0o755)
    record = broken.root / "device.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"prefix": str(tmp_path)}))
    assert "its stonechat found what this one does not know: another version?" in doctor(broken)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("manifest.json", "manifest.json is not JSON (Expecting"),
        ("slots.json", "slots.json: it is not JSON (Expecting"),
    ],
)
def test_a_damaged_model(name: str, said: str, broken: Board):
    tiny = broken.root / "models" / "tiny"
    tiny.mkdir(parents=True, exist_ok=True)
    (tiny / name).write_text("{")
    found = doctor(broken)
    (tiny / name).unlink()
    assert "fail model " in found and said in found
    assert f"127.0.0.1:{broken.port} answers" in found  # what comes after it is looked at, too


def test_a_broker_that_is_away_or_does_not_know_us(broken: Board, tmp_path: Path):
    fleet = broken.root / "fleet.yaml"
    text = fleet.read_text()
    fleet.write_text(text.replace(str(broken.port), "1"))
    assert "no connection to the broker at 127.0.0.1:1: Connection refused. Check that it runs" in doctor(broken)
    (tmp_path / "passwords").write_text("test-pi:$7$101$" + "A" * 16 + "$" + "B" * 86 + "==\n")
    (tmp_path / "passwords").chmod(0o644)
    lines = ("allow_anonymous false", f"password_file {tmp_path / 'passwords'}", "user root")
    with mosquitto(tmp_path, *lines) as port:
        (broken.root / "pass word").write_text("wrong\n")
        changed = text.replace(f':{broken.port}"', f':{port}", password_file: pass word')
        fleet.write_text(changed)
        found = doctor(replace(broken, port=port))
        assert f"the broker at 127.0.0.1:{port} refuses this client: " in found and PASSWORD_VARIABLE in found
    (broken.root / "pass word").unlink()
    assert "cannot read the password file " in doctor(broken)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", None], ids=["list", "half", "no UTF-8", "missing"])
def test_a_board_that_nobody_has_set_up(content: bytes | None, broken: Board):
    record = broken.root / "device.json"
    record.unlink()
    if content is not None:
        record.write_bytes(content)
    done = broken.run("device", "doctor", broken.server.target)
    assert (done.returncode, done.stdout) == (2, "")
    assert "device.json cannot be used: " in done.stderr if content else "device.json; set it up with" in done.stderr
    assert "stonechat device init" in done.stderr
