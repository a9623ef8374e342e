"""The process is killed at every step, and at any time: what a start then finds runs."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import ConfigurationError, UpdateError
from device_runtime.update import durable
from device_runtime.update.active import read_state, resolve
from device_runtime.update.install import install
from device_runtime.update.slots import Slots, lock
from device_runtime.update.state import Last
from device_runtime.update.trial import ready_bundle, roll_back
from tests.support.power_cut import Killer
from tests.support.update_bundles import confirm, contents, variant

QUESTION = "hello"
# What durable.py asks of the kernel; the write of a file is pwrite64, so that what is printed does not count.
SYSCALLS = "mkdir,rename,unlink,rmdir,fsync,pwrite64"


@pytest.fixture(scope="module")
def real(pi_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Versions 1 and 2, which run, and give the same answer. Read only."""
    folder = tmp_path_factory.mktemp("real")
    trial = {"prompt": QUESTION, "expect": answer(pi_bundle), "max_new": 4}
    return {v: variant(pi_bundle, folder / v, v, security_counter=int(v), trial=trial) for v in ("1", "2")}


def answer(path: Path) -> str:
    """What a bundle, or the active one of a slot folder, says."""
    with LanguageModel.open(path, threads=1, verify=True) as model:
        return "".join(model.generate([{"role": "user", "content": QUESTION}], max_new=4))


def wait_until_free(folder: Path) -> None:
    """Whoever was killed gives back the lock soon, not at once: a child of it may be on the way to its own program."""
    with open(folder / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def killed(number: int, act: Callable[[], object]) -> bool:
    """Whether `act`, in a process that is killed before its change `number`, was killed at all."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            durable.os = Killer(number)  # type: ignore[assignment]
            act()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def returned(slots: Slots) -> None:
    slots.attempt()
    slots.give_back(Last("rolled_back", "gqa-tied", "2", "wrong answer"))


CHANGES: dict[str, tuple[str | None, Callable[[Slots], object]]] = {
    "installed and confirmed": ("2", confirm),
    "installed and given back": ("2", returned),
    "called off": ("2", roll_back),
    "back by hand": (None, roll_back),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("installed and given back", "called off") else n
        for n in CHANGES
    ],
)
def test_killed_before_every_change_the_old_or_the_new_bundle_runs(
    name: str, real: dict[str, Path], slot_folder: Callable[..., Path], tmp_path: Path
) -> None:
    new, act = CHANGES[name]
    with_counter_1 = variant(real["1"], tmp_path / "1", "1", security_counter=2)
    before = slot_folder(with_counter_1) if new else slot_folder(with_counter_1, real["2"])
    whole = {"1": contents(with_counter_1), "2": contents(real["2"])}
    expected = answer(real["1"])

    def change(folder: Path) -> None:
        with lock(folder) as slots:
            if new is not None:
                install(real[new], slots)
            act(slots)

    number, seen, alive = 0, set(), True
    while alive:
        folder = Path(shutil.copytree(before, tmp_path / "cut"))
        alive = killed(number, partial(change, folder))
        with lock(folder) as slots:  # the next start
            state = slots.state
        found = contents(resolve(folder))
        assert found in whole.values(), f"{name}, killed before change {number}"
        for slot in {state.previous, state.trial and state.trial.slot} - {None}:
            assert contents(folder / str(slot)) in whole.values(), f"{name}, killed before change {number}"
        assert answer(folder) == expected
        seen.add(found == whole["2"])
        shutil.rmtree(folder)
        number += 1
    assert number > (5 if new is None else 30)
    assert seen == ({True, False} if name in ("installed and confirmed", "back by hand") else {False})


def strace_works() -> bool:
    try:
        return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_by_the_kernel_at_a_system_call_of_the_real_command(
    every: int, real: dict[str, Path], slot_folder: Callable[..., Path], tmp_path: Path
) -> None:
    if not strace_works():
        pytest.skip("strace is not installed, or may not trace here")
    before = slot_folder(variant(real["1"], tmp_path / "0", "0"), real["1"])
    shutil.copytree(before / "a", before / "c")  # what an earlier cut has left: it is cleared away, too
    whole = {v: contents(path) for v, path in real.items()}

    def run(folder: Path, *inject: str) -> int:
        trace = ["strace", "-f", "-qq", "-o", str(tmp_path / "log"), "-e", f"trace={SYSCALLS}"]
        command = [sys.executable, "-m", "toolkit", "slots", "install", str(real["2"]), str(folder), "--no-trial"]
        return subprocess.run([*trace, *inject, *command], capture_output=True).returncode

    assert run(Path(shutil.copytree(before, tmp_path / "whole"))) == 0
    calls = Counter(re.findall(rf"(?m)^\d+ +({SYSCALLS.replace(',', '|')})\(", (tmp_path / "log").read_text()))
    assert calls.keys() == set(SYSCALLS.split(",")) and calls.total() > 25
    kills = [(name, number) for name, count in calls.items() for number in range(1, count + 1)]
    for name, number in kills[::every]:
        folder = Path(shutil.copytree(before, tmp_path / "cut"))
        assert run(folder, "-e", f"inject={name}:signal=KILL:when={number}") == -signal.SIGKILL
        with lock(folder) as slots:
            trial = slots.state.trial
        assert contents(resolve(folder)) == whole["1"], f"killed at {name} {number} of {calls}"
        assert trial is None or contents(folder / trial.slot) == whole["2"], f"killed at {name} {number} of {calls}"
        shutil.rmtree(folder)


@pytest.mark.parametrize("kills", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_killed_at_random_a_start_serves_the_old_or_the_new_bundle(
    kills: int, real: dict[str, Path], tmp_path: Path
) -> None:
    """One folder lives through all of it: installs, trials and ways back, each killed at some time."""
    folder, draw = tmp_path / "model", random.Random(7)
    whole = {v: contents(path) for v, path in real.items()}
    whole_ones = [variant(real["2"], tmp_path / v, v) for v in ("3", "4")]  # with the counter of version 2
    whole |= {path.name: contents(path) for path in whole_ones}
    base = [sys.executable, "-m", "toolkit", "slots"]
    start_s = time.monotonic()
    assert subprocess.run([*base, "install", str(real["1"]), str(folder)], capture_output=True).returncode == 0
    usual_s = [time.monotonic() - start_s] * 3  # of each command, when it was last left to its end
    hits = served = 0
    for number in range(kills):
        bundle = draw.choice([real["2"], *whole_ones])
        kind = draw.randrange(3)
        command = [["install", str(bundle)], ["install", "--no-trial", str(bundle)], ["rollback"]][kind]
        start_s = time.monotonic()
        with subprocess.Popen(
            [*base, *command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(draw.random() * usual_s[kind])
                usual_s[kind] = time.monotonic() - start_s  # the machine may be busier, or less so, than it was
            except subprocess.TimeoutExpired:
                hits += 1
                process.kill()
        if number % 4 == 3:  # the service starts, and holds the trial if one is due
            wait_until_free(folder)
            found = ready_bundle(folder, 1)
            assert read_state(folder).trial is None
            served += 1
        else:
            found = resolve(folder)
        assert found is not None and contents(found) in whole.values(), f"after kill {number}: {command}"
    assert hits > kills // 4 and served == kills // 4
    assert answer(folder) == answer(real["1"])


def test_a_board_that_dies_in_every_trial_returns_to_the_old_bundle(
    real: dict[str, Path], slot_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Nobody is left to note a result: the starts were counted on the disk beforehand."""
    folder = slot_folder(real["1"])
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    hanging = variant(real["1"], tmp_path / "hanging", "2", security_counter=1, chat_template=loop)
    with lock(folder) as slots:
        install(hanging, slots)
    for left in (1, 0):
        with subprocess.Popen(
            [sys.executable, "-m", "toolkit", "slots", "trial", str(folder)],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as board:
            while (trial := read_state(folder).trial) is None or trial.attempts_left != left:
                assert board.poll() is None, "the trial ended by itself"
                time.sleep(0.01)
            os.killpg(board.pid, signal.SIGKILL)
    wait_until_free(folder)
    assert ready_bundle(folder) == folder / "a"
    state = read_state(folder)
    assert state.trial is None and not (folder / "b").exists()
    assert state.last is not None and "none of its 2 trials came to an end" in str(state.last.reason)


@pytest.mark.parametrize("trouble", ["the folder is another user's", "the disk is full"])
def test_a_trial_that_cannot_be_held_does_not_keep_the_old_bundle_from_serving(
    trouble: str, real: dict[str, Path], slot_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = slot_folder(real["1"])
    with lock(folder) as slots:
        install(real["2"], slots)
    if trouble == "the disk is full":

        def full(path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(durable, "replace_file", full)
    else:
        (folder / ".lock").unlink()
        (folder / ".lock").mkdir()  # which cannot be opened, by root neither
        with pytest.raises(UpdateError, match=r"cannot be changed .*do it as the user"), lock(folder):
            pass
    assert ready_bundle(folder, 1) == folder / "a"
    assert read_state(folder).trial is not None  # it is due at the next start


def test_a_first_bundle_that_fails_leaves_an_empty_folder_that_says_why(real: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with lock(folder, make=True) as slots:
        install(
            variant(real["1"], tmp_path / "silly", "1", trial={"prompt": "x", "expect": "Paris", "max_new": 2}), slots
        )
    with pytest.raises(ConfigurationError, match=r"no bundle that passed its trial.*expected an answer with 'Paris'"):
        ready_bundle(folder)
