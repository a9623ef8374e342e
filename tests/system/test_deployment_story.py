"""The whole story of a fleet, typed as its engineer would: a real sshd, a real mosquitto that knows everybody by name.

Set a board up, bring it a model, ask it; a broken version comes and is given back; a good one goes to five more
devices, one of them first, and over the air to the board as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from device_runtime.update.active import read_state
from tests.support.brokers import free_port, made_broker, mosquitto_path
from tests.support.ssh_boards import SUPERVISOR, link_environment
from tests.support.ssh_servers import SshServer, ssh_server

STONECHAT = Path(sys.executable).with_name("stonechat")
HERD = tuple(f"pi-{n}" for n in range(1, 6))
FLEET = """\
schema: 1
home_assistant: false
keys: keys
broker: {{url: "mqtts://localhost:{port}", certs: broker}}
models:
  assistant: {{bundle: "${{MODELS:-models}}/assistant", threads: 1, max_new: 8}}
devices:
  greenhouse: {{model: assistant, groups: [site]}}
  pi-1: {{model: assistant, groups: [herd]}}
  pi-2: {{model: assistant, groups: [herd]}}
  pi-3: {{model: assistant, groups: [herd]}}
  pi-4: {{model: assistant, groups: [herd]}}
  pi-5: {{model: assistant, groups: [herd]}}
"""


@dataclass
class Desk:
    """Where the engineer sits."""

    folder: Path
    server: SshServer  # of the board
    port: int  # of the broker
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def board(self) -> list[str]:
        """--root and the flags of the connection."""
        return [*self.server.flags, "--root", str(self.folder / "board" / "data")]

    @property
    def who(self) -> list[str]:
        """Whom `ask` comes as."""
        return ["--broker", f"mqtts://localhost:{self.port}", "--certs", "broker", "--as", "phone"]

    def stonechat(self, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        environment = os.environ | {"XDG_STATE_HOME": str(self.folder / "operator")}
        done = subprocess.run(
            [STONECHAT, *map(str, words)], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=540
        )
        print("$ stonechat", *words, f"({done.returncode})\n{done.stdout}{done.stderr}")  # what pytest shows on failure
        assert done.returncode == code, done.stderr
        return done

    def ask(self, device: str) -> str:
        return self.stonechat("ask", *self.who, "--device", device, "hello").stdout

    def version(self) -> tuple[str, list[str]]:
        """Of the board, as `device status` tells it: the one that runs, and all that are there."""
        shown = json.loads(self.stonechat("device", "status", self.server.target, *self.board, "--json").stdout)
        slots = shown["models"]["assistant"]
        return slots["versions"][slots["active"]], sorted(slots["versions"].values())

    def serve(self, device: str) -> None:
        """A device of the herd: another machine, with a folder of its own."""
        own = self.folder / device
        with open(self.folder / f"{device}.log", "ab") as log:
            self.running.append(
                subprocess.Popen(
                    [STONECHAT, "serve", "fleet.yaml", "--device", device, "--state-dir", own / "state"],
                    cwd=self.folder, env=os.environ | {"MODELS": str(own / "models")}, stdout=log, stderr=log,
                )
            )  # fmt: skip


@pytest.fixture(params=["linked", pytest.param("installed", marks=pytest.mark.slow)])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    """`linked`: the board's program is this very environment, because making one takes most of a minute."""
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed (Debian: apt install mosquitto mosquitto-clients)")
    with ssh_server(tmp_path / "sshd", env={"STONECHAT_CACHE": os.environ["STONECHAT_CACHE"]}) as server:
        desk = Desk(tmp_path, server, free_port())
        (tmp_path / "board").mkdir()
        if request.param == "linked":
            link_environment(tmp_path / "board" / "program", tmp_path / "wheel")
        elif (fault := _no_packages(tmp_path)) is not None:
            pytest.skip(f"no package index here: {fault}")
        (tmp_path / "fleet.yaml").write_text(FLEET.format(port=desk.port))
        try:
            yield desk
        finally:
            for process in desk.running:
                process.terminate()
            codes = [process.wait(30) for process in desk.running]
            subprocess.run([sys.executable, str(SUPERVISOR), str(tmp_path / "board" / "run")], check=True)
    assert codes == [0] * len(codes)


def _no_packages(folder: Path) -> str | None:
    """Why pip gets no packages on this machine, or None."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder / "probe"), "PyYAML"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def test_init_deploy_ask_a_broken_version_and_a_good_one_for_everybody(desk: Desk, pi_bundle: Path) -> None:
    make_keys_and_bundles(desk, pi_bundle)
    hosts = ["--host", "localhost", "--port", desk.port]
    desk.stonechat(
        "broker", "init", "broker", *hosts, "--fleet", "fleet.yaml", "--client", "phone", "--operator", "operator"
    )
    with made_broker(desk.folder / "broker", desk.port):
        to = ["--to", desk.server.target, *desk.board]
        set_up(desk)
        done = desk.stonechat("deploy", "v1.zip", *to)
        assert done.stdout == "greenhouse: gqa-tied 1 is online as assistant\n"
        said = desk.ask("greenhouse")
        assert said.strip()

        # A broken version, over SSH.
        error = json.loads(desk.stonechat("deploy", "broken.zip", *to, "--json", code=6).stdout)["error"]
        assert error["code"] == "rolled_back"
        assert "did not pass its trial: it answered 'hello' with" in error["message"]
        assert desk.version()[0] == "1"
        assert desk.ask("greenhouse") == said

        # Five devices more, and a good version for them.
        for name in HERD:
            folder = desk.folder / name / "models" / "assistant"
            desk.stonechat("slots", "install", "v1.zip", folder, "--keys", "keys")
            desk.serve(name)
        everybody = ["--fleet", "fleet.yaml", "--wait", "60"]
        done = desk.stonechat("deploy", "broken.zip", "--to", "fleet:herd", *everybody, "--canary", "20", code=6)
        assert "stopped (1 failed, 4 waiting)" in done.stdout
        assert versions(desk) == ["1"] * 5

        # A client may ask, and order nothing.
        done = desk.stonechat("deploy", "v3.zip", "--to", "fleet:herd", *everybody, "--as", "phone", code=2)
        assert "the broker does not let us order updates. Name an operator with --as" in done.stderr

        done = desk.stonechat("deploy", "v3.zip", "--to", "fleet:herd", *everybody, "--canary", "20", "--json")
        shown = json.loads(done.stdout)
        assert (shown["stage"], len(shown["canaries"])) == ("done", 1)
        assert [device["phase"] for device in shown["devices"].values()] == ["confirmed"] * 5
        assert versions(desk) == ["3"] * 5
        assert {desk.ask(name) for name in HERD} == {said}  # the same weights

        # And over the air to the board, in the slots that SSH has filled.
        desk.stonechat("deploy", "v3.zip", "--to", "fleet:site", *everybody)
        assert desk.version() == ("3", ["1", "3"])
        assert desk.ask("greenhouse") == said
        assert desk.stonechat("deploy", "v3.zip", *to).stdout.startswith("greenhouse: gqa-tied 3 is online")
        back = desk.stonechat("device", "rollback", desk.server.target, *desk.board)
        assert back.stdout == "greenhouse: model assistant is back at version 1\n"
        assert desk.ask("greenhouse") == said


def make_keys_and_bundles(desk: Desk, source: Path) -> None:
    desk.stonechat("key", "new", "plant", "-o", "keys")
    trial = ["--trial-prompt", "hello", "--trial-max-new", "4"]
    for name, version, *more in (("v1", "1"), ("broken", "2", "--trial-expect", "nobody says this"), ("v3", "3")):
        flags = ["--version", version, *trial, *more, "--key", "keys/plant.key"]
        desk.stonechat("bundle", "pack", source, "-o", f"{name}.zip", *flags)
        assert f"version {version}" in desk.stonechat("bundle", "verify", f"{name}.zip", "--keys", "keys").stdout


def set_up(desk: Desk) -> None:
    """The board has no systemd; a small service manager of ours takes its place."""
    root, program = desk.folder / "board" / "data", desk.folder / "board" / "program"
    serve = [program / "venv/bin/stonechat", "serve", root / "fleet.yaml", "--device", "greenhouse"]
    words = [sys.executable, SUPERVISOR, desk.folder / "board" / "run", *serve, "--state-dir", root / "state"]
    done = desk.stonechat(
        "device", "init", desk.server.target, "--device", "greenhouse", "--fleet", "fleet.yaml", *desk.board,
        "--prefix", program, "--service", "none", "--restart", shlex.join(map(str, words)),
    )  # fmt: skip
    assert f"bring a model: stonechat deploy BUNDLE --to {desk.server.target}" in done.stdout
    there = sorted(str(path.relative_to(root)) for path in root.rglob("*.*") if path.is_file())
    own = ["ca.crt", "greenhouse.crt", "greenhouse.key"]
    assert there == [*(f"certs/{name}" for name in own), "device.json", "fleet.yaml", "keys/plant.pub"]


def versions(desk: Desk) -> list[str]:
    found = []
    for name in HERD:
        folder = desk.folder / name / "models" / "assistant"
        state = read_state(folder)
        with contextlib.suppress(OSError):
            found.append(json.loads((folder / str(state.active) / "manifest.json").read_text())["version"])
    return found
