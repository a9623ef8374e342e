"""The README's commands, literally and in their order, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WAIT = "mosquitto_sub -C 1 -W 300 -t stonechat/1/greenhouse-pi/out/state | grep -q . && sleep 3\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that git knows or would add, as a user has them after `git clone`."""
    listed = subprocess.run(["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_commands_follow_from_each_other(checkout: Path) -> None:
    if shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("mosquitto is not installed (Debian: apt install mosquitto mosquitto-clients)")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 1883)) == 0:
            pytest.skip("port 1883 of this machine is in use; the README starts its broker there")
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) == 5
    script = "set -e\n" + "".join(blocks).replace("stonechat ask", WAIT + "stonechat ask", 1)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] += ":/usr/sbin"
    # To files: the broker and the device go on after the last command, and would keep a pipe open.
    with (checkout / "readme.out").open("w+") as out_file, (checkout / "readme.err").open("w+") as err_file:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=checkout, env=environment, start_new_session=True, stdout=out_file,
            stderr=err_file,
        )  # fmt: skip
        try:
            process.wait(timeout=2400)
        finally:
            for folder in Path("/proc").glob("[0-9]*"):  # the device and the broker, which has left our session
                try:
                    if Path(os.readlink(folder / "cwd")) == checkout:
                        os.kill(int(folder.name), signal.SIGTERM)
                except OSError:
                    continue
        out, err = (checkout / "readme.out").read_text(), (checkout / "readme.err").read_text()
    assert process.returncode == 0, err[-3000:]
    assert out.count("The capital of France is Paris.") == 2  # by LiteRT, and by the C engine
    assert "it fits" in out
    assert '"cause": "overheat"' in out
