"""The whole story of a Linux board: sshd, sudo, systemd with its watchdog and sandbox, pip, mosquitto. All real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.brokers import free_port, mosquitto
from tests.support.ssh_boards import FLEET
from tests.support.ssh_servers import SshServer
from tests.support.systemd_board import systemd_board

pytestmark = pytest.mark.slow

STONECHAT = [sys.executable, "-m", "toolkit"]
SLOTS = "/var/lib/stonechat/models/tiny"


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
    needed += [line.partition(";")[0] for line in lines if line.endswith('; extra == "sign"')]
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


def until(what: Callable[[], bool], timeout_s: float = 300) -> None:
    """Wait for what comes by itself; the limit is for what never comes."""
    end_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.5)


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


def test_the_service_holds_the_trial_so_that_there_is_never_memory_needed_for_two_models(on_air, pi_bundle, changed):
    pid = on_air.sh("systemctl show stonechat -p MainPID --value")
    trial = {"prompt": "hello", "expect": "nobody says this", "max_new": 8}
    done = on_air.run("deploy", changed(pi_bundle, version="5", trial=trial), "--to", on_air.server.target)
    assert done.returncode == 6
    assert on_air.sh("systemctl show stonechat -p MainPID --value") not in (pid, "0")
    journal = on_air.sh('sudo journalctl "_SYSTEMD_UNIT=stonechat.service" -o cat --no-pager').splitlines()
    assert any("version 5 of gqa-tied did not pass its trial" in line for line in journal[-5:])


def test_what_the_fleet_file_asks_is_a_part_of_the_trial(on_air, pi_bundle, changed):
    done = on_air.run("deploy", changed(pi_bundle, version="3", chat_template=None), "--to", on_air.server.target)
    assert done.returncode == 6
    assert "has no chat template" in done.stderr
    assert "Version 1 runs as before." in done.stderr
    assert ask(on_air)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_operators_side_the_board_gets_its_service_back(on_air, pi_bundle, changed, end):
    """systemd has just been asked to restart when Ctrl-C comes, or when this side vanishes with its connection."""
    bundle = changed(pi_bundle, version=f"6.{end}", trial={"prompt": "hello", "expect": "", "max_new": 64})
    command = [*STONECHAT, "deploy", str(bundle), "--to", on_air.server.target, *on_air.server.flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    assert any("systemd finishes the restart" in line for line in process.stderr)
    os.killpg(process.pid, end)
    process.communicate(timeout=120)

    def version() -> str:
        shown = json.loads(on_air.sh("sudo /opt/stonechat/venv/bin/stonechat slots show --json " + SLOTS))
        return shown["versions"][shown["active"]]

    until(lambda: on_air.sh("systemctl is-active stonechat") == "active" and version() == f"6.{end}")
    assert ask(on_air)
    again = on_air.run("deploy", bundle, "--to", on_air.server.target)
    assert again.returncode == 0, again.stderr
    assert "copied 0.0 MB" in again.stderr
    assert on_air.run("device", "rollback", on_air.server.target).returncode == 0


def test_without_a_broker_the_trial_is_held_all_the_same_and_the_operator_is_told(on_air, pi_bundle, changed):
    fleet = "/var/lib/stonechat/fleet.yaml"
    on_air.sh(f"sudo sed -i 's/127.0.0.1:{on_air.port}/127.0.0.1:{free_port()}/' {fleet}")
    try:
        done = on_air.run("deploy", changed(pi_bundle, version="7"), "--to", on_air.server.target)
    finally:
        on_air.sh(f"sudo sed -i 's/127.0.0.1:[0-9]*/127.0.0.1:{on_air.port}/' {fleet}")
        on_air.sh("sudo systemctl restart stonechat")
    assert done.returncode == 3
    assert "test-pi has the new bundle, and the service of pi@" in done.stderr
    assert "does not reach its broker" in done.stderr
    status = json.loads(on_air.run("device", "status", on_air.server.target, "--json").stdout)
    slots = status["models"]["tiny"]
    assert (slots["versions"][slots["active"]], slots["last"]["outcome"]) == ("7", "confirmed")
    assert on_air.run("device", "rollback", on_air.server.target).returncode == 0


def test_a_good_bundle_and_the_way_back(on_air, pi_bundle, changed):
    done = on_air.run("deploy", changed(pi_bundle, version="4"), "--to", on_air.server.target)
    assert (done.returncode, done.stdout) == (0, "test-pi: gqa-tied 4 is online as tiny\n")
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
    until(lambda: on_air.sh("systemctl show stonechat -p MainPID --value") not in (pid, "0"))
    assert "Watchdog timeout" in on_air.sh("sudo journalctl -u stonechat -o cat --no-pager")
    until(lambda: on_air.sh("systemctl is-active stonechat") == "active")
    assert ask(on_air)
