"""Bundles to a board over a real sshd: on trial, online, and back."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.errors import UnreachableError
from device_runtime.update.active import read_state
from tests.support.ssh_boards import Board, new_board
from toolkit.ssh.board_lock import only_one
from toolkit.ssh.device import BoardDevice, restart_by_command
from toolkit.ssh.ssh import Remote, Target


@pytest.fixture(scope="module")
def on_air(server, broker_port, pi_bundle, tmp_path_factory) -> Iterator[Board]:
    """Version 1 runs there; each test leaves it like that."""
    board = new_board(server, broker_port, tmp_path_factory.mktemp("on-air"))
    assert board.init(*board.restart_flag()).returncode == 0
    empty = board.run("device", "status", server.target)
    assert "model tiny  no bundle yet\n" in empty.stdout
    first = board.deploy(pi_bundle, "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["restarted"] is True
    assert {"model.tflite", "manifest.json"} <= set(report["sent"])
    yield board
    board.stop()


def connected(board: Board) -> Remote:
    return Remote(Target.parse(board.server.target), board.server.identity, ("-F", str(board.server.config)))


def until(what: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def ask(board: Board) -> str:
    command = [sys.executable, "-m", "toolkit", "ask", "--broker", f"mqtt://127.0.0.1:{board.port}"]
    done = subprocess.run([*command, "--device", "test-pi", "hello"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_what_changed_travels_and_the_way_back_is_open(on_air, pi_bundle, changed: Callable[..., Path]):
    done = on_air.deploy(changed(pi_bundle, version="2"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sent"] == ["manifest.json"]
    assert report["slots"]["versions"][report["slots"]["active"]] == "2"
    assert not list((on_air.root / "incoming").iterdir())

    status = on_air.run("device", "status", on_air.server.target)
    assert "model tiny   version 2, slot b; version 1 in slot a to go back to\n" in status.stdout
    assert "service      no systemd; started by somebody else\n" in status.stdout

    back = on_air.run("device", "rollback", on_air.server.target)
    assert (back.returncode, back.stdout) == (0, "test-pi: model tiny is back at version 1\n")
    assert ask(on_air)


def test_the_doctor_looks_at_the_model_and_the_broker(on_air):
    done = on_air.run("device", "doctor", on_air.server.target, "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["model"]["found"] == "gqa-tied 1"
    assert findings["broker"]["found"] == f"127.0.0.1:{on_air.port} answers, without encryption"


def test_without_a_journal_the_log_is_a_file(on_air):
    missing = on_air.run("device", "logs", on_air.server.target)
    assert missing.returncode == 2
    assert "serve.log; have what starts the service append its stderr to this file." in missing.stderr
    (on_air.root / "state" / "serve.log").write_text("one\ntwo\nthree\n")
    assert on_air.run("device", "logs", on_air.server.target, "-n", "2").stdout == "two\nthree\n"


def test_a_failed_trial_ends_with_6_and_the_message_of_the_board(on_air, pi_bundle, changed):
    trial = {"prompt": "hello", "expect": "nobody says this", "max_new": 8}
    done = on_air.deploy(changed(pi_bundle, version="2", trial=trial), "--json")
    assert done.returncode == 6
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "rolled_back"
    assert error["message"].startswith("test-pi: version 2 of gqa-tied did not pass its trial: ")
    assert ask(on_air)


def test_a_floor_for_its_speed_is_a_part_of_the_trial(on_air, pi_bundle, changed):
    done = on_air.deploy(changed(pi_bundle, version="2"), "--min-tps", "1e9")
    assert done.returncode == 6
    assert "tok/s" in done.stderr


def test_a_bundle_with_which_the_service_does_not_start_is_taken_back(on_air, pi_bundle, changed):
    """It passes its trial. The service manager starts it with version 1 only."""
    record = on_air.root / "device.json"
    before = json.loads(record.read_text())
    slots = on_air.root / "models" / "tiny"
    now = f'"active": "{read_state(slots).active}"'
    picky = f"grep -qF {shlex.quote(now)} {shlex.quote(str(slots / 'slots.json'))} || {{ echo not with me; exit 1; }}"
    record.write_text(json.dumps(before | {"restart": f"{before['restart']} && {picky}"}))
    try:
        done = on_air.deploy(changed(pi_bundle, version="9"))
    finally:
        record.write_text(json.dumps(before))
    assert done.returncode == 6
    assert "the service does not start with the new bundle (not with me). The one before is back, and runs." in (
        done.stderr
    )
    assert ask(on_air)


def test_a_second_deployment_to_a_board_is_refused_before_anything_travels(on_air, pi_bundle, changed):
    with connected(on_air) as remote, only_one(BoardDevice(remote, str(on_air.root))):
        done = on_air.deploy(changed(pi_bundle, version="2"), "--json")
        back = on_air.run("device", "rollback", on_air.server.target)
    assert (done.returncode, back.returncode) == (1, 1)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "update"
    assert f"another deployment to {on_air.server.target} is under way, by {getpass.getuser()}@" in error["message"]
    assert "copied" not in done.stderr
    with connected(on_air) as remote, only_one(BoardDevice(remote, str(on_air.root))):
        pass  # which the first has given back


def test_what_other_bundles_left_behind_half_copied_is_cleared_away(on_air, pi_bundle):
    left = on_air.root / "incoming" / f"{'0' * 64}.part"
    left.write_bytes(b"half of a model")
    assert on_air.deploy(pi_bundle).returncode == 0
    assert not left.exists()


def test_a_service_of_two_models_starts_when_both_have_come(board, pi_bundle, changed):
    text = board.fleet.read_text().replace("devices:", "  other: {bundle: elsewhere, threads: 1}\ndevices:")
    board.fleet.write_text(text.replace("model: tiny", "model: [tiny, other]"))
    assert board.init(*board.restart_flag()).returncode == 0
    trial = {"prompt": "hello", "expect": "nobody says this", "max_new": 8}
    assert board.deploy(changed(pi_bundle, version="2", trial=trial)).returncode == 6  # tried at once: nothing runs
    first = board.deploy(pi_bundle)
    assert (first.returncode, first.stdout) == (0, "test-pi: gqa-tied 1 waits for the service to restart as tiny\n")
    assert f"stonechat deploy BUNDLE --to {board.server.target} --model other" in first.stderr
    second = board.deploy(pi_bundle, "--model", "other")
    assert (second.returncode, second.stdout) == (0, "test-pi: gqa-tied 1 is online as other\n")
    assert ask(board)


def test_a_restart_that_has_begun_ends_also_when_the_connection_breaks(server, tmp_path):
    """Its words have nobody who hears them any more, and must not end it half-way."""
    steps = f"set -e; cd {shlex.quote(str(tmp_path))}; echo began; touch began; read go < go; echo on; touch ended"
    os.mkfifo(tmp_path / "go")
    options = ("-F", str(server.config))
    with Remote(Target.parse(server.target), server.identity, options) as remote:
        with ThreadPoolExecutor() as pool:
            restart = pool.submit(restart_by_command, remote, steps)
            until((tmp_path / "began").exists)
            os.kill(server.session_pid(), signal.SIGKILL)
            with pytest.raises(UnreachableError, match=r"The connection to .* broke"):
                restart.result(60)
        (tmp_path / "go").write_text("go\n")
        until((tmp_path / "ended").exists)


def test_a_board_without_room_is_known_before_anything_travels(server, small_disk, broker_port, pi_bundle, tmp_path):
    board = replace(new_board(server, broker_port, tmp_path), root=small_disk / "data")
    assert board.init().returncode == 0
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 100_000))
    done = board.deploy(pi_bundle, "--json")
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["path"]) == ("disk_full", f"{server.target}:{board.root}/incoming")
    assert error["needed_bytes"] > 2 * (pi_bundle / "model.tflite").stat().st_size  # on its way, and in a slot
    assert "copied" not in done.stderr
    filler.unlink()
    assert board.deploy(pi_bundle).returncode == 0


def test_a_model_that_the_device_does_not_serve_is_refused(board, pi_bundle):
    board.fleet.write_text(board.fleet.read_text().replace("devices:", "  other: {bundle: elsewhere}\ndevices:"))
    assert board.init(*board.restart_flag()).returncode == 0
    done = board.deploy(pi_bundle, "--model", "other")
    assert done.returncode == 2
    assert "test-pi does not serve 'other'; its models are tiny." in done.stderr


def test_a_model_that_the_fleet_file_does_not_know_is_refused(on_air, pi_bundle):
    done = on_air.deploy(pi_bundle, "--model", "huge")
    assert done.returncode == 2
    assert "has no model 'huge'; it has tiny." in done.stderr


def test_a_damaged_bundle_does_not_leave(board, pi_bundle, changed):
    damaged = changed(pi_bundle)
    with open(damaged / "model.tflite", "r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    done = board.deploy(damaged)
    assert done.returncode == 1
    assert "model.tflite" in done.stderr
    assert not board.root.exists()


def test_a_board_with_keys_takes_only_what_they_have_signed(board, pi_bundle, tmp_path):
    """And where nothing of ours starts the service, the operator is told to."""
    keys, packed = tmp_path / "keys", tmp_path / "model.zip"
    assert board.stonechat("key", "new", "site", "-o", keys).returncode == 0
    done = board.stonechat("bundle", "pack", pi_bundle, "-o", packed, "--key", keys / "site.key")
    assert done.returncode == 0, done.stderr
    assert board.init("--keys", keys).returncode == 0

    unsigned = board.deploy(pi_bundle, "--json")
    assert unsigned.returncode == 4
    assert json.loads(unsigned.stdout)["error"]["code"] == "signature"

    unsigned = board.deploy(pi_bundle, "--keys", keys)
    assert unsigned.returncode == 4
    assert not list((board.root / "incoming").glob("*"))  # it did not leave

    signed = board.deploy(packed, "--keys", keys)
    assert signed.returncode == 0, signed.stderr
    assert signed.stdout == "test-pi: gqa-tied 1 waits for the service to restart as tiny\n"
    assert f"restart the service there: '{board.prefix}/venv/bin/stonechat' serve " in signed.stderr
