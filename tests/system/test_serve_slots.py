"""`stonechat serve` on a slot folder: the trial comes before `ready`, and a bundle that fails it never serves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device_runtime.update.active import read_state, resolve
from device_runtime.update.install import install
from device_runtime.update.slots import lock
from tests.support.brokers import mosquitto
from tests.support.update_bundles import confirm, contents, variant


@pytest.mark.parametrize(("expect", "version"), [("", "2"), ("Paris", "1")])
def test_a_service_tries_what_is_pending_before_it_is_ready(
    expect: str, version: str, pi_bundle: Path, write_fleet: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("mosquitto_sub is not installed (Debian: apt install mosquitto-clients)")
    golden = {"prompt": "hello", "expect": expect, "max_new": 4}
    bundles = {v: variant(pi_bundle, tmp_path / v, v, security_counter=int(v), trial=golden) for v in ("1", "2")}
    for v, bundle in bundles.items():
        with lock(tmp_path / "model", make=True) as slots:
            install(bundle, slots)
            if v == "1":
                confirm(slots)
    with mosquitto(tmp_path) as port:
        fleet = str(write_fleet(tmp_path, port))
        checked = subprocess.run([sys.executable, "-m", "toolkit", "check", fleet], capture_output=True, text=True)
        assert checked.returncode == 0 and "not on this machine" not in checked.stdout  # it looked into the slot
        command = [sys.executable, "-m", "toolkit", "serve", fleet, "--device", "test-pi"]
        with open(tmp_path / "log", "w") as log:
            device = subprocess.Popen([*command, "--state-dir", str(tmp_path)], stdout=log, stderr=log)
            try:
                topic = "stonechat/1/test-pi/out/state"
                listen = ["mosquitto_sub", "-p", str(port), "-t", topic, "-W", "240"]
                with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as states:
                    assert states.stdout is not None
                    assert any(json.loads(line)["state"] == "ready" for line in states.stdout)
                    state = read_state(tmp_path / "model")  # at this moment, and not later
                    states.kill()
            finally:
                device.send_signal(signal.SIGTERM)
                assert device.wait(120) == 0, (tmp_path / "log").read_text()
    words = {"2": "version 2 of gqa-tied passed its trial", "1": "did not pass its trial: it answered 'hello' with"}
    assert words[version] in (tmp_path / "log").read_text()
    assert state.trial is None and state.last is not None
    assert state.last.outcome == {"2": "confirmed", "1": "rolled_back"}[version]
    assert contents(resolve(tmp_path / "model")) == contents(bundles[version])
