"""The whole story of a Linux board: sshd, sudo, systemd with its watchdog and sandbox, pip, mosquitto. All real."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.brokers import mosquitto
from tests.ssh_boards import FLEET
from tests.ssh_servers import SshServer
from tests.systemd_board import systemd_board

pytestmark = pytest.mark.slow

STONECHAT = [sys.executable, "-m", "toolkit"]


@dataclass
class Board:
    server: SshServer
    fleet: Path
    wheelhouse: Path
    port: int

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*STONECHAT, *map(str, arguments), *self.server.flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=540)
        print(*arguments, done.returncode, done.stdout, done.stderr, sep="\n")
        return done

    def init(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run(
            "device", "init", self.server.target, "--device", "test-pi", "--fleet", self.fleet,
            "--wheelhouse", self.wheelhouse, *arguments,
        )  # fmt: skip

    def sh(self, script: str) -> str:
        words = ["ssh", "-F", str(self.server.config), "-i", str(self.server.identity), "-p", str(self.server.port)]
        done = subprocess.run([*words, "pi@127.0.0.1", script], capture_output=True, text=True, timeout=60)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a site without internet would carry to its boards."""
    from importlib.metadata import requires

    folder = tmp_path_factory.mktemp("wheelhouse")
    needed = [line for line in requires("stonechat") or [] if "extra ==" not in line]
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(folder), *needed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    if done.returncode:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def board(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("board")
    with mosquitto(folder) as port, systemd_board(folder) as server:
        (folder / "fleet.yaml").write_text(FLEET.format(port=port))
        yield Board(server, folder / "fleet.yaml", wheelhouse, port)


@pytest.fixture(scope="module")
def ready(board: Board) -> Board:
    done = board.init()
    assert done.returncode == 0, done.stderr
    assert "bring a model: stonechat deploy BUNDLE --to pi@127.0.0.1" in done.stdout
    return board


@pytest.fixture(scope="module")
def on_air(ready: Board, pi_bundle: Path) -> Board:
    done = ready.run("deploy", pi_bundle, "--to", ready.server.target)
    assert done.returncode == 0, done.stderr
    return ready


def ask(board: Board, prompt: str = "hello") -> str:
    command = [*STONECHAT, "ask", "--broker", f"mqtt://127.0.0.1:{board.port}", "--device", "test-pi", prompt]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_answers_inside_of_its_sandbox(on_air):
    assert ask(on_air)
    status = json.loads(on_air.run("device", "status", on_air.server.target, "--json").stdout)
    assert status["service"]["ActiveState"] == "active"
    assert status["service"]["StatusText"].startswith("test-pi at 127.0.0.1")
    assert status["models"]["tiny"]["active"] in ("a", "b")
