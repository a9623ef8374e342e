"""Work beside a target: the target is never without its name, and what a killed process leaves is cleared."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from device_runtime.bundle import work_place
from device_runtime.bundle.work_place import clear_leftovers, put_in_place, work_file, work_folder

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from pathlib import Path
from device_runtime.bundle.work_place import {kind}
with {kind}(Path(sys.argv[1])) as work:
    ((work / "part") if work.is_dir() else work).write_text("half")
    print(work, flush=True)
    time.sleep(600)
"""


def maker(target: Path, kind: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that is making something for `target`, and where."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(kind=kind), target], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("kind", ["work_folder", "work_file"])
def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_makes_is_not(tmp_path: Path, kind: str):
    dead, left = maker(tmp_path / "bundle", kind)
    alive, made = maker(tmp_path / "other", kind)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        (tmp_path / ".bundle.stonechat-notes").mkdir()  # not ours
        (tmp_path / ".x.stonechat-00000000").symlink_to(tmp_path / "elsewhere")
        assert left.exists() and made.exists()
        with work_folder(tmp_path / "bundle"):
            assert not left.exists() and made.exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [made.name, ".bundle.stonechat-notes", ".x.stonechat-00000000"]
        )
    finally:
        for process in (dead, alive):
            process.kill()
            process.wait()
            process.stdout.close()
    clear_leftovers(tmp_path)
    assert not made.exists()


def test_an_error_leaves_nothing_and_a_finished_one_gets_its_name(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "a") as work:
        (work / "part").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with work_file(tmp_path / "b") as work:
        work.write_text("whole")
        put_in_place(work, tmp_path / "b")
    with work_file(tmp_path / "b") as work:
        work.write_text("newer")
        put_in_place(work, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_text() == "newer"


def test_a_folder_that_is_replaced_is_never_without_its_name(tmp_path: Path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "version").write_text("0")
    missing, seen, ended = [], set(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                seen.add((target / "version").read_text())
            except FileNotFoundError:
                missing.append(len(seen))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(1, 200):
            with work_folder(target) as work:
                (work / "version").write_text(str(number))
                put_in_place(work, target)
    finally:
        ended.set()
        watcher.join()
    assert missing == [] and len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_where_names_cannot_be_exchanged_the_old_one_comes_back_after_an_error(tmp_path: Path, monkeypatch):
    def cannot(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(work_place, "_exchange", cannot)
    target = tmp_path / "bundle"
    target.mkdir()
    with work_folder(target) as work:
        (work / "new").touch()
        put_in_place(work, target)
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(FileNotFoundError), work_folder(target) as work:
        put_in_place(tmp_path / "nowhere", target)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", [work_folder, work_file])
@pytest.mark.parametrize("step", ["open", "fstat"])
def test_ctrl_c_between_making_and_using_it_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind, step):
    def interrupted(*_arguments: object) -> int:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(work_place.os, step, interrupted)
    with pytest.raises(KeyboardInterrupt), kind(tmp_path / "bundle"):
        raise AssertionError("it must not come this far")
    assert list(tmp_path.iterdir()) == []
