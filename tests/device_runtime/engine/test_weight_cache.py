"""Packed weights are kept between starts, and never half of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend
from device_runtime.engine.backends.weight_cache import WeightCache

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
    return sorted(path.name for path in bundle.cache_path.glob("xnnpack*"))


def weights_file(bundle: Bundle) -> Path:
    """The one file of packed weights."""
    assert bundle.cache_path is not None
    (file,) = bundle.cache_path.glob("xnnpack-*.weights")
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


def test_what_another_version_or_cpu_packed_is_neither_used_nor_touched(tmp_path: Path) -> None:
    other = tmp_path / "xnnpack-2.2.0-cpu.weights"
    other.write_bytes(b"x")
    cache = WeightCache(tmp_path, 1, "2.3.0-cpu")
    assert cache.path != str(other)
    Path(cache.path).write_bytes(b"packed")
    cache.keep()
    assert other.read_bytes() == b"x"
    assert (tmp_path / "xnnpack-2.3.0-cpu.weights").read_bytes() == b"packed"


def test_a_process_that_still_packs_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f"xnnpack-{os.getppid()}.part"
    other.write_bytes(b"x")
    cache = WeightCache(tmp_path, 1, "2.3.0-cpu")
    assert cache.path == str(tmp_path / f"xnnpack-{os.getpid()}.part")
    assert other.exists()


def test_nothing_is_kept_when_nothing_was_written(tmp_path: Path) -> None:
    WeightCache(tmp_path, 1, "2.3.0-cpu").keep()
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
