"""Bundles to a board over a real sshd: on trial, on the air, and back."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.ssh_boards import Board


def ask(board: Board) -> dict:
    command = [sys.executable, "-m", "toolkit", "ask", "--broker", f"mqtt://127.0.0.1:{board.port}"]
    done = subprocess.run(
        [*command, "--device", "test-pi", "hello", "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_bundle_comes_on_the_air_and_the_next_one_sends_only_what_changed(ready, pi_bundle, changed):
    first = ready.deploy(pi_bundle, "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["restarted"] is True
    assert "model.tflite" in report["sent"]
    assert ask(ready)["usage"]["completion_tokens"] > 0

    second = ready.deploy(changed(pi_bundle, version="2"), "--json")
    assert second.returncode == 0, second.stderr
    report = json.loads(second.stdout)
    assert report["sent"] == ["manifest.json"]
    assert report["slots"]["versions"][report["slots"]["active"]] == "2"
    assert not list((ready.root / "incoming").iterdir())
