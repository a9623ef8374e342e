"""A board for tests: a real sshd, a folder for its data, one for its program, and a service manager."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.ssh_servers import SshServer
from toolkit.ssh.wheel import write_wheel

__all__ = ["FLEET", "Board", "new_board"]

SUPERVISOR = Path(__file__).parent / "supervisor.py"
FLEET = """\
schema: 1
home_assistant: false
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  tiny: {{bundle: ../somewhere/else, threads: 1, max_new: 8}}  # the operator's own path
devices:
  test-pi: {{model: tiny}}
"""


@dataclass
class Board:
    """What a test needs to know of it."""

    server: SshServer
    root: Path
    prefix: Path
    fleet: Path
    port: int  # of the broker
    device: str = "test-pi"
    timeout_s: float = 240

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`stonechat` on this side; a board's flags are added."""
        command = [sys.executable, "-m", "toolkit", *map(str, arguments), *self.server.flags, "--root", str(self.root)]
        return subprocess.run(command, capture_output=True, text=True, timeout=self.timeout_s)

    def stonechat(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`stonechat` on this side, without a board."""
        command = [sys.executable, "-m", "toolkit", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def init(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run(
            "device", "init", self.server.target, "--device", self.device, "--fleet", self.fleet,
            "--prefix", self.prefix, "--service", "none", *arguments,
        )  # fmt: skip

    def restart_flag(self) -> list[str]:
        """--restart: the service manager of this board."""
        serve = [
            str(self.prefix / "venv/bin/stonechat"), "serve", str(self.root / "fleet.yaml"), "--device", self.device,
            "--state-dir", str(self.root / "state"),
        ]  # fmt: skip
        return ["--restart", shlex.join([sys.executable, str(SUPERVISOR), str(self.root / "state/run"), *serve])]

    def deploy(self, bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run("deploy", bundle, "--to", self.server.target, *arguments)

    def stop(self) -> None:
        subprocess.run([sys.executable, str(SUPERVISOR), str(self.root / "state/run")], check=True)


def link_environment(prefix: Path, tmp: Path) -> None:
    """The environment of this very Python, where `device init` would put the one that it makes.

    Making one takes half a minute: tests/system/test_board_over_ssh.py does.
    """
    tmp.mkdir()
    wheel = write_wheel(tmp)
    venv = prefix / "venvs" / f"{wheel.version}-{wheel.sha256[:12]}"
    venv.mkdir(parents=True)
    for name in ("bin", "lib", "pyvenv.cfg"):
        (venv / name).symlink_to(Path(sys.prefix) / name)
    (venv / "complete").touch()


def new_board(server: SshServer, broker_port: int, folder: Path) -> Board:
    """Before `device init`; its folders have spaces in their names."""
    place = folder / "the board"
    place.mkdir()
    fleet = folder / "fleet.yaml"
    fleet.write_text(FLEET.format(port=broker_port))
    made = Board(server, place / "data", place / "pro gram", fleet, broker_port)
    link_environment(made.prefix, folder / "wheel")
    return made
