"""The whole story of a Linux board: sshd, sudo, systemd with its watchdog and sandbox, pip, mosquitto. All real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
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
    lines = requires("stonechat") or []
    needed = [line for line in lines if "extra ==" not in line]
    needed += [line.partition(";")[0] for line in lines if line.endswith('; extra == "update"')]
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


def test_files_belong_to_whom_they_should(on_air):
    lines = on_air.sh(
        "sudo stat -c '%A %U:%G %n' /var/lib/stonechat /var/lib/stonechat/fleet.yaml /var/lib/stonechat/models "
        "/var/lib/stonechat/state /var/lib/stonechat/keys /opt/stonechat/venv/bin/stonechat"
    ).splitlines()
    assert lines == [
        "drwxr-x--- root:stonechat /var/lib/stonechat",
        "-rw-r----- root:stonechat /var/lib/stonechat/fleet.yaml",
        "drwxr-x--- stonechat:stonechat /var/lib/stonechat/models",
        "drwxr-x--- stonechat:stonechat /var/lib/stonechat/state",
        "drwxr-xr-x root:root /var/lib/stonechat/keys",
        "-rwxr-xr-x root:root /opt/stonechat/venv/bin/stonechat",
    ]


def test_init_once_more_changes_nothing(on_air):
    pid = on_air.sh("systemctl show stonechat -p MainPID --value")
    done = on_air.init("--json")
    assert done.returncode == 0, done.stderr
    assert [step["name"] for step in json.loads(done.stdout)["steps"] if step["changed"]] == []
    assert on_air.sh("systemctl show stonechat -p MainPID --value") == pid


def test_the_sandbox_is_rated_as_safe(on_air):
    """systemd rates from 0 (closed) to 10 (open); its network is what is left open."""
    rating = on_air.sh("systemd-analyze security --no-pager stonechat.service | tail -1")
    assert float(rating.split(":")[1].split()[0]) < 2.0, rating


def test_a_bundle_that_fails_its_trial_ends_with_6_and_the_old_one_runs(on_air, pi_bundle, changed):
    before = ask(on_air)
    broken = changed(pi_bundle, version="2", trial={"prompt": "hello", "expect": "nobody says this", "max_new": 8})
    done = on_air.run("deploy", broken, "--to", on_air.server.target, "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout)["error"]["code"] == "rolled_back"
    assert ask(on_air) == before


def test_a_bundle_with_which_the_service_does_not_start_is_taken_back(on_air, pi_bundle, changed):
    done = on_air.run("deploy", changed(pi_bundle, version="3", chat_template=None), "--to", on_air.server.target)
    assert done.returncode == 6
    assert "has no chat template" in done.stderr
    assert "The one before is back, and runs." in done.stderr
    assert ask(on_air)


def test_a_good_bundle_and_the_way_back(on_air, pi_bundle, changed):
    done = on_air.run("deploy", changed(pi_bundle, version="4"), "--to", on_air.server.target)
    assert (done.returncode, done.stdout) == (0, "test-pi: gqa-tied 4 is on the air as tiny\n")
    done = on_air.run("device", "rollback", on_air.server.target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "test-pi: model tiny is back at version 1\n"
    assert ask(on_air)


def test_logs_come_from_the_journal(on_air):
    done = on_air.run("device", "logs", on_air.server.target, "-n", "20")
    assert done.returncode == 0
    assert "connected to 127.0.0.1" in done.stdout


def test_the_doctor_sees_the_service_its_watchdog_and_the_broker(on_air):
    done = on_air.run("device", "doctor", on_air.server.target, "--json")
    levels = {finding["what"]: finding["level"] for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0
    assert [levels[what] for what in ("runtime", "service", "model", "broker")] == ["ok"] * 4
    assert levels["watchdog"] in ("ok", "warn")  # the second where this machine has a watchdog that nobody uses


def test_a_service_that_hangs_is_started_anew_by_the_watchdog(on_air):
    on_air.sh(
        "cd /run/systemd/system && sudo mkdir -p stonechat.service.d && "
        "printf '[Service]\\nWatchdogSec=3\\nRestartSec=0\\n' | sudo tee stonechat.service.d/test.conf && "
        "sudo systemctl daemon-reload && sudo systemctl restart stonechat"
    )
    pid = on_air.sh("systemctl show stonechat -p MainPID --value")
    on_air.sh(f"sudo kill -STOP {pid}")
    deadline_s = time.monotonic() + 90
    while on_air.sh("systemctl show stonechat -p MainPID --value") in (pid, "0"):
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
    assert "Watchdog timeout" in on_air.sh("sudo journalctl -u stonechat -n 200 -o cat --no-pager")
    while on_air.sh("systemctl is-active stonechat") != "active":
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
    assert ask(on_air)
