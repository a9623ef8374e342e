"""`stonechat records -o FILE`: the file is there, whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.device_runtime.conftest import OnAir
from tests.device_runtime.device.test_corrections import LOGS, model, send
from toolkit.cli import main

ROOT = Path(__file__).parents[3]


def fleet(folder: Path, port: int, *devices: str) -> Path:
    path = folder / "fleet.yaml"
    entries = "".join(f"  {name}: {{model: m, records: {{keep: 9}}}}\n" for name in devices)
    broker = f"broker: {{url: 'mqtt://127.0.0.1:{port}'}}\n"
    path.write_text(f"schema: 1\n{broker}models: {{m: {{bundle: nowhere}}}}\ndevices:\n{entries}")
    return path


def gather(path: Path, output: Path, *more: str) -> int:
    return main(["records", str(path), "-o", str(output), "--timeout", "0.5", *more])


def test_nothing_that_came_is_no_file_and_the_next_try_is_like_the_first(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = fleet(tmp_path, port, "nobody"), tmp_path / "off.jsonl"
    for _ in range(2):
        assert gather(path, output) == 3
        assert f"{output} was not written: 0 devices answered, with no record" in capsys.readouterr().err
        assert [file.name for file in tmp_path.iterdir()] == ["fleet.yaml"]
    assert gather(path, output, "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert said["file"] is None and said["records"] == 0 and list(said["silent"]) == ["nobody"]


def test_a_device_that_keeps_none_yet(
    tmp_path: Path, on_air: Callable[..., OnAir], capsys: pytest.CaptureFixture[str]
) -> None:
    device = on_air(model(), links=(LOGS,))
    path, output = fleet(tmp_path, device.client.port, device.topics.device), tmp_path / "none.jsonl"
    assert gather(path, output, "--examples") == 0
    assert f"{output} was not written: 1 device answered, with no example" in capsys.readouterr().err
    assert not output.exists()


@pytest.fixture
def kept(on_air: Callable[..., OnAir]) -> OnAir:
    """A device with an example."""
    device = on_air(model(), links=(LOGS,))
    send(device, link="logs", topic="logs/a", reading="eth3: link down")
    return device


def test_what_came_of_the_others_is_kept(tmp_path: Path, kept: OnAir, capsys: pytest.CaptureFixture[str]) -> None:
    name = kept.topics.device
    path, output = fleet(tmp_path, kept.client.port, "nobody", name), tmp_path / "some.jsonl"
    assert gather(path, output, "--examples") == 3
    said = capsys.readouterr().err
    assert f"{output}: 1 example of 1 device\nnot in it: nobody; ask again with --device, into another file" in said
    assert json.loads(output.read_text())["device"] == name


def test_a_full_disk(small_disk: Path, kept: OnAir, capsys: pytest.CaptureFixture[str]) -> None:
    path = fleet(small_disk, kept.client.port, kept.topics.device)
    filler, output = small_disk / "filler", small_disk / "full.jsonl"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert gather(path, output, "--examples") == 1
    assert f"stonechat: {output} cannot be written: No space left on device. Free some" in capsys.readouterr().err
    assert sorted(file.name for file in small_disk.iterdir()) == ["filler", "fleet.yaml"]
    filler.unlink()
    assert gather(path, output, "--examples") == 0


def test_a_folder_that_takes_no_file_is_known_before_anybody_is_asked(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "no" / "such.jsonl"
    assert gather(fleet(tmp_path, port, "nobody"), output) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{output} cannot be written: No such file or directory. Check the path" in said


def test_ctrl_c_leaves_nothing(tmp_path: Path, port: int) -> None:
    path, output = fleet(tmp_path, port, "nobody"), tmp_path / "cut.jsonl"
    command: list[Any] = [sys.executable, "-m", "toolkit", "records", path, "-o", output, "--timeout", "60"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    try:
        end_s = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end_s:  # until it has begun with its file
            time.sleep(0.05)
        assert not output.exists()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (130, b"\nstonechat: interrupted\n")
    assert [file.name for file in tmp_path.iterdir()] == ["fleet.yaml"]
