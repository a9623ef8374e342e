"""`stonechat slots` on a device: what it takes, what it refuses, and what it goes back from. Everything is real."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest

from device_runtime.update.active import read_state, resolve
from device_runtime.update.install import install
from device_runtime.update.slots import lock
from tests.support.update_bundles import confirm, contents, variant

QUESTION = "hello"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def stonechat(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in this process, which is faster; what it tries runs in one of its own all the same."""
    from toolkit.cli import main

    command, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(command)
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def golden(pi_bundle: Path) -> dict[str, Any]:
    """A golden prompt that the small model passes."""
    done = stonechat("run", pi_bundle, QUESTION, "--max-new", 4)
    assert done.returncode == 0, done.stderr
    return {"prompt": QUESTION, "expect": done.stdout.rstrip("\n"), "max_new": 4}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`secret/` with the keys of a plant, of last year, and of a stranger; `keys/` as a device has them."""
    folder = tmp_path_factory.mktemp("signing")
    for name in ("plant", "last-year", "stranger"):
        done = stonechat("key", "new", name, "-o", folder / "secret")
        assert done.returncode == 0, done.stderr
    (folder / "keys" / "retired").mkdir(parents=True)
    shutil.copy(folder / "secret" / "plant.pub", folder / "keys")
    shutil.copy(folder / "secret" / "last-year.pub", folder / "keys" / "retired")
    return folder


@pytest.fixture
def folder(pi_bundle: Path, golden: dict[str, Any], tmp_path: Path) -> Path:
    """A slot folder that runs version 1, with security_counter 1."""
    folder = tmp_path / "model"
    with lock(folder, make=True) as slots:
        install(variant(pi_bundle, tmp_path / "1", "1", security_counter=1, trial=golden), slots)
        confirm(slots)
    return folder


def test_an_install_takes_what_changed_tries_it_and_can_be_undone(
    folder: Path, pi_bundle: Path, golden: dict[str, Any], tmp_path: Path
) -> None:
    second = variant(pi_bundle, tmp_path / "2", "2", security_counter=1, trial=golden)
    done = stonechat("slots", "install", second, folder, "--max-rss-mb", 4000, "--min-tps", 0.001, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["copied"] == ["tokenizer.json"]
    assert sorted(result["reused"]) == ["model.tflite", "prefix.npz", "tokenizer.table"]
    assert (result["state"], result["active"], result["previous"]) == ("confirmed", "b", "a")
    assert result["last"]["outcome"] == "confirmed"
    assert result["last"]["tokens_per_s"] > 0 and result["last"]["peak_rss_mb"] > 10
    again = stonechat("slots", "install", second, folder)
    assert again.returncode == 0 and "has version 2 of gqa-tied already" in again.stdout
    assert stonechat("run", folder, QUESTION, "--max-new", 4).stdout == golden["expect"] + "\n"
    assert "version 2" in stonechat("inspect", folder).stdout
    back = stonechat("slots", "rollback", folder)
    assert back.returncode == 0 and "active            version 1, slot a" in back.stdout, back.stderr
    assert "by hand, to version 1" in back.stdout


def test_show_tells_what_runs_and_how_the_last_update_ended(folder: Path) -> None:
    done = stonechat("slots", "show", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "state             confirmed\n"
        "active            version 1, slot a\n"
        "previous          none\n"
        "security counter  1\n"
        "last update       version 1 of gqa-tied confirmed\n"
    )


# How the bundle differs from a good one, flags, and what the reason says.
FAILURES: dict[str, tuple[Callable[[Path], dict[str, Any]], list[object], str]] = {
    "wrong answer": (
        lambda b: {"trial": {"prompt": QUESTION, "expect": "Paris", "max_new": 4}},
        [],
        "expected an answer with 'Paris'",
    ),
    "too slow": (lambda b: {}, ["--min-tps", 1e9], "tok/s; the floor is 1e+09 tok/s"),
    "too much memory": (lambda b: {}, ["--max-rss-mb", 20], "MB of memory; the ceiling is 20 MB"),
    "endless template": (lambda b: {"chat_template": LOOP}, [], "chat template does not end"),
    "no model": (lambda b: {"files": {"model.tflite": b"junk"}}, [], "model.tflite"),
    "another profile": (lambda b: {"profile": "micro"}, [], ""),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_bundle_that_fails_its_trial_is_given_back_and_the_old_one_runs(
    name: str, folder: Path, pi_bundle: Path, golden: dict[str, Any], tmp_path: Path
) -> None:
    change, flags, words = FAILURES[name]
    fields = {"security_counter": 5, "trial": golden} | change(pi_bundle)
    is_given_back(variant(pi_bundle, tmp_path / "bad", "2", **fields), folder, flags, words, golden)


def test_a_trial_that_hangs_ends_at_its_time_limit(
    folder: Path, pi_bundle: Path, golden: dict[str, Any], tmp_path: Path
) -> None:
    good = variant(pi_bundle, tmp_path / "2", "2", security_counter=5, trial=golden)
    ended = threading.Event()

    def hang() -> None:
        with stopped_trial(folder):
            assert ended.wait(60)

    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(hang)
        is_given_back(good, folder, ["--trial-timeout-s", 3], "had not answered after 3 s", golden)
        ended.set()
        hanging.result(60)


def test_a_trial_whose_process_crashes(folder: Path, pi_bundle: Path, golden: dict[str, Any], tmp_path: Path) -> None:
    """As in a native library."""
    good = variant(pi_bundle, tmp_path / "2", "2", security_counter=5, trial=golden)

    def crash() -> None:
        with stopped_trial(folder, then=(signal.SIGSEGV, signal.SIGCONT)):
            pass

    with ThreadPoolExecutor() as pool:
        crashing = pool.submit(crash)
        is_given_back(good, folder, [], "its process crashed (SIGSEGV", golden)
        crashing.result(60)


def is_given_back(bad: Path, folder: Path, flags: list[object], words: str, golden: dict[str, Any]) -> None:
    """Install version 2, whose trial fails for the reason `words`; version 1 has to run as before."""
    before = contents(resolve(folder))
    done = stonechat("slots", "install", bad, folder, *flags, "--json")
    assert done.returncode == 6, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "rolled_back"
    assert words in error["message"] and error["message"].endswith("Version 1 runs as before.")
    state = read_state(folder)
    assert state.security_counter == 1  # counts only what was confirmed
    assert state.last is not None and state.last.outcome == "rolled_back" and words in str(state.last.reason)
    assert contents(resolve(folder)) == before and not (folder / "b").exists()
    assert stonechat("run", folder, QUESTION, "--max-new", 4).stdout == golden["expect"] + "\n"


@contextmanager
def stopped_trial(folder: Path, then: Sequence[signal.Signals] = (signal.SIGKILL,)) -> Iterator[None]:
    """Wait for the process that tries the bundle in slot b, and stop it: it hangs and ends by the signals of `then`."""
    words = [b"device_runtime.update.probe", str(folder / "b").encode()]
    process, end_s = None, time.monotonic() + 60
    while process is None:
        assert time.monotonic() < end_s, "no trial began"
        time.sleep(0.005)
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "cmdline").read_bytes().split(b"\0")[2:4] == words:
                    process = os.pidfd_open(int(entry.name))
    try:
        signal.pidfd_send_signal(process, signal.SIGSTOP)
        yield
    finally:
        with suppress(ProcessLookupError):
            for number in then:
                signal.pidfd_send_signal(process, number)
        os.close(process)


def test_a_trial_can_wait_and_be_called_off(
    folder: Path, pi_bundle: Path, golden: dict[str, Any], tmp_path: Path
) -> None:
    second = variant(pi_bundle, tmp_path / "2", "2", security_counter=2, trial=golden)
    for _ in range(2):  # the second changes nothing
        done = stonechat("slots", "install", second, folder, "--no-trial")
        assert done.returncode == 0 and "on trial          version 2, slot b, starts left 2" in done.stdout
    assert resolve(folder) == folder / "a"  # nothing serves before it was tried
    off = stonechat("slots", "rollback", folder)
    assert off.returncode == 0 and "rolled back: called off by hand" in off.stdout
    nothing = stonechat("slots", "trial", folder)
    assert (nothing.returncode, "waits for a trial" in nothing.stderr) == (2, True)
    assert stonechat("slots", "install", second, folder, "--no-trial").returncode == 0
    assert stonechat("slots", "trial", folder).returncode == 0
    back = stonechat("slots", "rollback", folder)
    assert back.returncode == 4 and "there is no way back before that" in back.stderr
    assert resolve(folder) == folder / "b"


def signed(bundle: Path, keys: Path, key: str = "plant", *flags: object) -> Path:
    done = stonechat("bundle", "sign", bundle, "--key", keys / "secret" / f"{key}.key", *flags)
    assert done.returncode == 0, done.stderr
    return bundle


def expired(bundle: Path) -> Path:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"expires": "2026-01-01T00:00:00Z"}))
    return bundle


def altered(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


# What is done to a good bundle of version 2, and the exit code.
REFUSALS: dict[str, tuple[Callable[[Path, Path], object], int]] = {
    "unsigned": (lambda bundle, keys: None, 4),
    "wrong key": (lambda bundle, keys: signed(bundle, keys, "stranger"), 4),
    "retired key": (lambda bundle, keys: signed(bundle, keys, "last-year"), 4),
    "flipped manifest": (lambda b, keys: altered(signed(b, keys) / "manifest.json", flipped), 4),
    "downgraded": (lambda bundle, keys: signed(bundle, keys, "plant", "--security-counter", 0), 4),
    "expired": (lambda bundle, keys: signed(expired(bundle), keys), 4),
    "for another board": (lambda bundle, keys: signed(bundle, keys, "plant", "--board", "raspberry-pi-5-4gb"), 5),
    "flipped byte": (lambda b, keys: altered(signed(b, keys) / "tokenizer.json", flipped), 1),
    "mixed from two bundles": (lambda b, keys: shutil.copy(b.parent / "1" / "tokenizer.json", signed(b, keys)), 1),
    "truncated": (lambda b, keys: altered(signed(b, keys) / "tokenizer.json", lambda c: c[:-1]), 1),
    "oversized": (lambda b, keys: altered(signed(b, keys) / "tokenizer.json", lambda c: c + b" "), 1),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_leaves_the_slot_folder_as_it_was(
    name: str, folder: Path, pi_bundle: Path, keys: Path, tmp_path: Path
) -> None:
    harm, code = REFUSALS[name]
    bundle = variant(pi_bundle, tmp_path / "2", "2", security_counter=1)
    harm(bundle, keys)
    before = contents(folder)
    flags = ["--keys", keys / "keys", "--board", "generic-x86-64", "--no-trial"]
    done = stonechat("slots", "install", bundle, folder, *flags)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr and len(done.stderr) > 40
    assert {k: v for k, v in contents(folder).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "a", "slots.json"]


def test_a_packed_and_signed_bundle_is_installed_by_what_changed(
    folder: Path, pi_bundle: Path, keys: Path, golden: dict[str, Any], tmp_path: Path
) -> None:
    bundle = signed(variant(pi_bundle, tmp_path / "2", "2", security_counter=1, trial=golden), keys)
    packed = stonechat("bundle", "pack", bundle, "-o", tmp_path / "2.zip")
    assert packed.returncode == 0, packed.stderr
    done = stonechat("slots", "install", tmp_path / "2.zip", folder, "--keys", keys / "keys", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["copied"] == ["tokenizer.json"]
    assert contents(resolve(folder)) == contents(bundle)


def test_a_key_that_is_retired_after_the_install_ends_the_trial(
    folder: Path, pi_bundle: Path, keys: Path, golden: dict[str, Any], tmp_path: Path
) -> None:
    bundle = signed(variant(pi_bundle, tmp_path / "2", "2", security_counter=1, trial=golden), keys)
    device = Path(shutil.copytree(keys / "keys", tmp_path / "keys"))
    assert stonechat("slots", "install", bundle, folder, "--keys", device, "--no-trial").returncode == 0
    (device / "plant.pub").rename(device / "retired" / "plant.pub")
    done = stonechat("slots", "trial", folder, "--keys", device)
    assert done.returncode == 6 and "retired" in done.stderr
    assert resolve(folder) == folder / "a"


def test_a_bundle_for_larger_boards_does_not_fit_a_micro_one(folder: Path, tmp_path: Path) -> None:
    done = stonechat("slots", "install", tmp_path / "1", tmp_path / "new", "--board", "stm32h743")
    assert done.returncode == 5 and "its profile is pi" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_second_install_is_refused_while_one_is_under_way(folder: Path, pi_bundle: Path, tmp_path: Path) -> None:
    second = variant(pi_bundle, tmp_path / "2", "2", security_counter=1)
    command = [sys.executable, "-m", "toolkit", "slots", "install", str(second), str(folder)]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first,
        stopped_trial(folder),
    ):
        try:
            trial = read_state(folder).trial
            assert trial is not None and trial.attempts_left == 1
            for action in (["install", tmp_path / "1", folder], ["rollback", folder], ["trial", folder]):
                done = stonechat("slots", *action)
                assert done.returncode == 1 and f"is being changed by process {first.pid}" in done.stderr
            assert stonechat("slots", "show", folder).returncode == 0
            assert stonechat("run", folder, QUESTION, "--max-new", 2).returncode == 0
        finally:
            first.kill()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["install", "nowhere", "new"], 2, "nowhere does not exist"),
        (["install", "empty", "new"], 2, "is not a bundle"),
        (["install", "bundle", "bundle"], 2, "is not a slot folder"),
        (["install", "bundle", "file"], 2, "is not a slot folder"),
        (["show", "nowhere"], 2, "does not exist"),
        (["show", "empty"], 2, "is not a slot folder"),
        (["trial", "empty"], 2, "is not a slot folder"),
        (["rollback", "nowhere"], 2, "does not exist"),
        (["install", "bundle", "new", "--min-tps", "-1"], 2, "not a number above 0"),
        (["install", "bundle", "new", "--max-rss-mb", "much"], 2, "not a number above 0"),
        (["install", "bundle", "new", "--board", "raspbery-pi-5"], 2, "no board"),
        (["install", "bundle", "new", "--keys", "empty"], 2, "empty has no *.pub"),
        (["show", "broken"], 1, "broken/slots.json: it is not JSON"),
        (["install", "bundle", "broken"], 1, "broken/slots.json: it is not JSON"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], code: int, words: str, pi_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "slots.json").write_text("{")
    (tmp_path / "file").write_text("")
    shutil.copytree(pi_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    done = stonechat("slots", *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_new_folder_that_no_model_of_the_fleet_file_has_is_refused(pi_bundle: Path, tmp_path: Path) -> None:
    """Mistyped, it would be filled and confirmed, and nothing would ever run it."""
    (tmp_path / "device.json").write_text('{"schema":1,"device":"test-pi","prefix":"/opt/x","service":"none"}')
    (tmp_path / "fleet.yaml").write_text(
        "schema: 1\nbroker: {url: mqtt://127.0.0.1}\nmodels:\n  assistant: {bundle: models/assistant}\n"
        "  elsewhere: {bundle: models/other}\ndevices:\n  test-pi: {model: [assistant, elsewhere]}\n"
    )
    wrong = stonechat("slots", "install", pi_bundle, tmp_path / "models" / "asistant", "--no-trial")
    assert wrong.returncode == 2
    assert "has no model 'asistant'" in wrong.stderr and "Did you mean 'assistant'?" in wrong.stderr
    assert not (tmp_path / "models").exists()
    for name in ("assistant", "other"):  # by its name, and by its path
        done = stonechat("slots", "install", pi_bundle, tmp_path / "models" / name, "--no-trial")
        assert done.returncode == 0, done.stderr
    assert stonechat("slots", "install", pi_bundle, tmp_path / "spare", "--no-trial").returncode == 0
    (tmp_path / "fleet.yaml").write_text("schema: [")
    unknown = stonechat("slots", "install", pi_bundle, tmp_path / "models" / "new", "--no-trial")
    assert unknown.returncode == 0, unknown.stderr


def fill(disk: Path, leave_bytes: int) -> None:
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - leave_bytes))


def test_a_full_disk_leaves_the_old_bundle_and_says_how_much_is_needed(
    folder: Path, small_disk: Path, pi_bundle: Path, tmp_path: Path
) -> None:
    slots = Path(shutil.copytree(folder, small_disk / "model"))
    before = contents(slots / "a")
    fill(small_disk, 500_000)
    other = variant(pi_bundle, tmp_path / "2", "2", security_counter=1)
    done = stonechat("slots", "install", other, slots)
    assert done.returncode == 1
    said = re.search(r"needs (.+) MB; free (.+) MB more. What ran before still runs.", done.stderr)
    assert said is not None, done.stderr
    needed_mb = (sum(file.stat().st_size for file in other.iterdir()) + (1 << 20)) / 1e6  # and a MiB to spare
    assert float(said[1]) == pytest.approx(needed_mb, abs=0.051)  # rounded to 0.1
    assert float(said[2]) == pytest.approx(float(said[1]) - 0.5, abs=0.11)  # each is rounded to 0.1
    assert contents(slots / "a") == before and resolve(slots) == slots / "a"
    assert not (slots / "incoming").exists()
    (small_disk / "filler").unlink()
    assert stonechat("slots", "install", other, slots).returncode == 0


def test_a_disk_that_fills_up_meanwhile_is_given_back_what_was_written(
    folder: Path, small_disk: Path, pi_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from device_runtime.errors import UpdateError
    from device_runtime.update import staging

    slots_folder = Path(shutil.copytree(folder, small_disk / "model"))
    fill(small_disk, 100_000)
    real, asked = staging.free_bytes, []

    def free_bytes(path: Path) -> int:  # as if somebody else had filled the disk after the first look
        asked.append(path)
        return 10**9 if len(asked) == 1 else real(path)

    monkeypatch.setattr(staging, "free_bytes", free_bytes)
    with lock(slots_folder) as slots, pytest.raises(UpdateError, match=r"needs 1\.\d MB; free \d\.\d MB more"):
        install(variant(pi_bundle, tmp_path / "2", "2", security_counter=1), slots)
    assert resolve(slots_folder) == slots_folder / "a" and not (slots_folder / "incoming").exists()
    assert real(slots_folder) >= 90_000


def test_where_room_is_short_the_bundle_to_go_back_to_makes_room(
    folder: Path, small_disk: Path, pi_bundle: Path, tmp_path: Path
) -> None:
    with lock(folder) as slots:
        install(variant(pi_bundle, tmp_path / "2", "2", security_counter=1), slots)
        confirm(slots)
    slots_folder = Path(shutil.copytree(folder, small_disk / "model"))
    fill(small_disk, 1_200_000)
    with lock(slots_folder) as slots:
        install(variant(pi_bundle, tmp_path / "3", "3", security_counter=1), slots)
        assert slots.state.previous is None and slots.state.trial is not None
    assert resolve(slots_folder) == slots_folder / "b"
