"""A file that a user names is there whole or not at all, and the error names it: commands on a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from converters.measure.trace import save
from device_runtime.bundle.work_place import whole_file, whole_stream
from device_runtime.errors import ConfigurationError, DiskFullError
from toolkit.broker.files import write_private
from toolkit.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
TRIAGE = EXAMPLES / "log-triage"
HOUSE = EXAMPLES / "router" / "fleet.yaml"
KEPT = '{"task": "log-triage", "input": {"text": "x"}, "answer": {"category": "network", "priority": "high"}}\n'
COMMANDS: list[tuple[list[Any], str]] = [  # and the file that it names when it cannot write
    (["task", "new", "DISK/pump"], "pump/task.yaml"),
    (["task", "generate", EXAMPLES / "boiler-advisor", "--cases", 20, "-o", "DISK/g.jsonl"], "g.jsonl"),
    (["task", "harvest", TRIAGE, "--from", "KEPT", "-o", "DISK/h.jsonl"], "h.jsonl"),
    (["router", "train", HOUSE, "--device", "house", "--cases", 20, "-o", "DISK/r.json"], "r.json"),
    (
        ["check", "--board", "raspberry-pi-5-8gb", TRIAGE / "bundle", "--baseline", "DISK/b", "--update-baseline"],
        "b",
    ),
    (["key", "new", "ours", "-o", "DISK/keys"], "keys/ours.key"),
]


def filled(disk: Path) -> Path:
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free))
    return filler


@pytest.mark.parametrize(("command", "named"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("full", [True, False], ids=["full", "read-only"])
def test_the_error_names_the_file_nothing_is_left_and_the_next_try_works(
    full: bool, command: list[Any], named: str, small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.jsonl").write_text(KEPT)
    words = [
        str(word).replace("DISK", str(small_disk)).replace("KEPT", str(tmp_path / "kept.jsonl")) for word in command
    ]
    filler = filled(small_disk)
    with nullcontext() if full else read_only(small_disk):
        assert main(words) in ((1,) if full else (1, 2))  # 1 of a folder that cannot be made
        said = capfd.readouterr().err
        if full:
            assert f"{small_disk / named} cannot be written: No space left on device. Free some, or choose" in said
        else:
            assert "Read-only file system. Choose a place on a disk that can be written." in said
            assert f"stonechat: {small_disk}" in said
        assert [path.name for path in small_disk.iterdir()] == ["filler"]
    filler.unlink()
    assert main(words) == 0
    assert (small_disk / named).stat().st_size


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.fixture
def short_files() -> Iterator[Callable[[], None]]:
    """Files may have 1,000 bytes at most, from the call on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, short_files: Callable[[], None]) -> None:
    target = tmp_path / "it.txt"
    target.write_text("before")
    short_files()
    with (
        pytest.raises(ConfigurationError, match=r"it\.txt cannot be written: File too large\. Choose a place"),
        whole_file(target) as write,
    ):
        write("x" * 2000)
    assert target.read_text() == "before" and os.listdir(tmp_path) == ["it.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionResetError("of the teacher"), OSError(28, "of it")])
def test_what_goes_wrong_beside_the_file_is_not_said_of_it(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, whole_file(tmp_path / "it.txt") as write:
        write("half")
        raise error
    assert caught.value is error and not os.listdir(tmp_path)


def test_nothing_written_is_no_file(tmp_path: Path) -> None:
    with whole_file(tmp_path / "it.txt"):
        pass
    assert not os.listdir(tmp_path)


def test_text_and_bytes_with_the_usual_permissions(tmp_path: Path) -> None:
    with whole_file(tmp_path / "it.txt") as write:
        write("one °C\n")
        write(b"two\n")
    assert (tmp_path / "it.txt").read_bytes() == "one °C\ntwo\n".encode()
    (tmp_path / "usual").touch()
    assert (tmp_path / "it.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_stream_takes_the_place_of_what_was_there_when_it_is_whole(
    tmp_path: Path, short_files: Callable[[], None]
) -> None:
    target = tmp_path / "it.bin"
    with whole_stream(target, mode=0o600) as stream:
        stream.seek(4)
        stream.write(b"x")
    assert target.read_bytes() == b"\0\0\0\0x" and target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyboardInterrupt), whole_stream(target) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    short_files()
    with (
        pytest.raises(ConfigurationError, match=r"it\.bin cannot be written: File too large\. Choose a place"),
        whole_stream(target) as stream,
    ):
        stream.write(bytes(2000))
    assert target.read_bytes() == b"\0\0\0\0x" and os.listdir(tmp_path) == ["it.bin"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="pipe is a device or a pipe; name a file"), whole_file(
        tmp_path / "pipe"
    ) as write:  # fmt: skip
        write("x")
    with pytest.raises(ConfigurationError, match=r"Is a directory\. Name a file"), whole_file(tmp_path) as write:
        write("x")
    for written in (save, write_private):
        with pytest.raises(ConfigurationError, match="pipe is a device or a pipe; name a file"):
            written(tmp_path / "pipe", {} if written is save else b"x")
    assert os.listdir(tmp_path) == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_the_private_half_of_a_key_goes_with_its_public_half(small_disk: Path) -> None:
    pytest.importorskip("cryptography", reason="the extra `sign` is not installed")
    from toolkit.signing.keys import new_key

    filler = filled(small_disk)
    os.truncate(filler, filler.stat().st_size - 4096)  # a page: room for one file
    with pytest.raises(DiskFullError, match=r"k\.pub cannot be written: No space left on device"):
        new_key("k", small_disk, None)
    assert os.listdir(small_disk) == ["filler"]
