"""Packed weights are kept between starts, and never half of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.device.runner import CancellableRun, ModelRunner
from device_runtime.device.statistics import Statistics
from device_runtime.device.watchdog import Heartbeat
from device_runtime.engine.backends import open_backend, weight_cache
from device_runtime.engine.backends.weight_cache import WeightCache
from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import DamagedWeightsError
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.messages import Request
from toolkit.cli import main

DEAD = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture
def bundle(pi_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle that starts for the first time."""
    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path / "cache"))
    return Bundle.open(pi_bundle)


def logits(bundle: Bundle) -> np.ndarray:
    backend = open_backend(bundle)
    result = backend.prefill(list(range(5, 100))).copy()
    backend.close()
    return result


def files(bundle: Bundle) -> list[str]:
    assert bundle.cache_path is not None
    return sorted(path.name for path in bundle.cache_path.glob("xnnpack*") if path.suffix != ".json")


def weights_file(bundle: Bundle) -> Path:
    """The one file of packed weights."""
    assert bundle.cache_path is not None
    (file,) = bundle.cache_path.glob("xnnpack-*.weights")
    return file


def damage_below_the_file_system(bundle: Bundle) -> Path:
    """As of a memory card: size, times and inode are what they were."""
    file = weights_file(bundle)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"stamp": weight_cache._stamp(file)}))
    return file


def test_the_first_start_keeps_the_weights_and_the_next_uses_them(bundle: Bundle) -> None:
    first = logits(bundle)
    assert files(bundle) == [weights_file(bundle).name]
    before = weights_file(bundle).stat()
    np.testing.assert_array_equal(logits(bundle), first)
    after = weights_file(bundle).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_file_gets_its_name_when_it_is_complete(bundle: Bundle) -> None:
    """Nothing is added to it later: neither the other signatures nor the steps themselves pack weights."""
    backend = open_backend(bundle)
    file = weights_file(bundle)
    loaded = file.read_bytes()
    backend.prefill(list(range(5, 100)))
    backend.decode(7)
    backend.close()
    assert file.read_bytes() == loaded


def test_what_a_killed_process_left_is_removed_and_never_used(bundle: Bundle) -> None:
    first = logits(bundle)
    whole = weights_file(bundle)
    half = bytearray(whole.read_bytes())
    half[len(half) // 5 : len(half) // 2] = bytes(len(half) // 2 - len(half) // 5)
    whole.unlink()
    whole.with_name(f"xnnpack-{DEAD}.part").write_bytes(half)
    np.testing.assert_array_equal(logits(bundle), first)
    assert files(bundle) == [weights_file(bundle).name]


def packed(folder: Path, version: str = "2.3.0", machine: str = "cpu", content: bytes = b"packed") -> Path:
    """A cache file as a start leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    cache = WeightCache(folder, 1, version, machine)
    Path(cache.path).write_bytes(content)
    cache.keep()
    return folder / f"xnnpack-{version}-{machine}.weights"


class TestDamage:
    """What is in the file is what the graph's signature vouches for, or it is not used."""

    @pytest.mark.parametrize("restored", [False, True])
    def test_in_the_middle_of_the_file_is_found_at_the_next_start(self, bundle: Bundle, restored: bool) -> None:
        first = logits(bundle)
        file = weights_file(bundle)
        before = file.stat()
        data = bytearray(file.read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        file.write_bytes(data)
        if restored:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        np.testing.assert_array_equal(logits(bundle), first)
        assert file.read_bytes() != data

    def test_below_the_file_system_is_found_in_the_background(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = logits(bundle)
        file = damage_below_the_file_system(bundle)
        backend = open_backend(bundle)
        backend._weights.finish_check()  # type: ignore[attr-defined]
        for step in (lambda: backend.prefill([5]), lambda: backend.decode(5)):
            with pytest.raises(DamagedWeightsError, match=r"were not those of the graph.*start again"):
                step()
        backend.close()
        assert not file.exists()
        np.testing.assert_array_equal(logits(bundle), first)

    def test_run_does_not_end_well_with_it(self, bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
        logits(bundle)
        damage_below_the_file_system(bundle)
        assert main(["run", str(bundle.path), "hello", "--max-new", "2"]) == 1
        assert "were not those of the graph" in capfd.readouterr().err
        assert main(["run", str(bundle.path), "hello", "--max-new", "2"]) == 0

    def test_a_device_opens_its_model_again_and_answers(self, bundle: Bundle) -> None:
        """A board in a field has nobody who starts it again."""
        opened: list[LanguageModel] = []

        def open_model(name: str) -> LanguageModel:
            opened.append(LanguageModel.open(bundle.path, threads=1))
            return opened[-1]

        def answer(said: list[str]) -> str:
            return runner.generate(request, CancellableRun(), said.append).text

        def checked() -> None:
            opened[-1].backend._weights.finish_check()  # type: ignore[attr-defined]

        runner = ModelRunner([ModelSettings("default")], open_model, Statistics(), Heartbeat())
        request = Request.from_value({"prompt": "hello", "max_new": 8})
        runner.open()
        expected = answer([])
        runner.reopen("default")
        checked()
        file = damage_below_the_file_system(bundle)
        runner.reopen("default")
        checked()
        said: list[str] = []
        assert answer(said) == "".join(said) == expected
        assert len(opened) == 4 and file.is_file()  # packed again

        runner.reopen("default")
        checked()
        damage_below_the_file_system(bundle)
        runner.reopen("default")
        checked()
        runner.reopen("default")  # as an update does, before anybody has asked
        assert answer([]) == expected
        opened[-1].close()

    @pytest.mark.parametrize("record", [None, "", "[]", '{"blake2b": "x"}', '{"stamp": [1]}'])
    def test_a_file_without_a_record_is_packed_again(self, record: str | None, tmp_path: Path) -> None:
        file = packed(tmp_path)
        file.with_suffix(".json").unlink()
        if record is not None:
            file.with_suffix(".json").write_text(record)
        assert WeightCache(tmp_path, 1, "2.3.0", "cpu").path == str(tmp_path / f"xnnpack-{os.getpid()}.part")
        assert not file.exists()

    def test_a_copy_of_the_whole_cache_is_used(self, tmp_path: Path) -> None:
        """It has other times and another inode, and the same content."""
        file = packed(tmp_path / "one")
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        copy = tmp_path / "two" / file.name
        assert WeightCache(tmp_path / "two", 1, "2.3.0", "cpu").path == str(copy)
        assert json.loads(copy.with_suffix(".json").read_text())["stamp"] == weight_cache._stamp(copy)


class TestOldFiles:
    def test_what_an_earlier_version_packed_goes(self, tmp_path: Path) -> None:
        old, other_machine = packed(tmp_path, "2.2.0"), packed(tmp_path, "2.2.0", "other")
        new = packed(tmp_path)
        assert (new.exists(), old.exists(), old.with_suffix(".json").exists()) == (True, False, False)
        assert other_machine.exists()  # the disk may go back there

    def test_what_has_not_been_used_for_a_month_goes(self, tmp_path: Path) -> None:
        files = [packed(tmp_path / "models" / name) for name in ("recent", "old")]
        month_ago_s = time.time() - 31 * 24 * 3600
        os.utime(files[1].with_suffix(".json"), (month_ago_s, month_ago_s))
        packed(tmp_path / "models" / "new")
        assert [file.exists() for file in files] == [True, False]

    def test_a_start_counts_as_use(self, tmp_path: Path) -> None:
        file = packed(tmp_path)
        os.utime(file.with_suffix(".json"), (0, 0))
        cache = WeightCache(tmp_path, 1, "2.3.0", "cpu")
        cache.keep()
        cache.close()
        assert time.time() - file.with_suffix(".json").stat().st_mtime < 100

    def test_other_models_make_room_on_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = packed(tmp_path / "models" / "old")
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 10**9 if not old.exists() else 1000))
        (tmp_path / "models" / "new").mkdir()
        assert WeightCache(tmp_path / "models" / "new", 1, "2.3.0", "cpu").path.endswith(".part")
        assert not old.exists()


def test_a_process_that_still_packs_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f"xnnpack-{os.getppid()}.part"
    other.write_bytes(b"x")
    cache = WeightCache(tmp_path, 1, "2.3.0", "cpu")
    assert cache.path == str(tmp_path / f"xnnpack-{os.getpid()}.part")
    assert other.exists()


def test_nothing_is_kept_when_nothing_was_written(tmp_path: Path) -> None:
    WeightCache(tmp_path, 1, "2.3.0", "cpu").keep()
    assert list(tmp_path.iterdir()) == []


def test_without_room_on_the_disk_the_model_runs_without_a_cache(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XNNPACK would end the process."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert np.isfinite(logits(bundle)).all()
    assert files(bundle) == []


def test_without_a_cache_folder_the_model_runs(
    pi_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path / "file"))
    assert np.isfinite(logits(Bundle.open(pi_bundle))).all()


def test_processes_that_start_together_agree(bundle: Bundle) -> None:
    command = [sys.executable, "-m", "toolkit", "run", str(bundle.path), "hello", "--max-new", "6"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=60) for process in running}
    assert len(answers) == 1
    assert files(bundle) == [weights_file(bundle).name]
