"""A disk that is too small is known before the work: the message has the path and both sizes, and nothing is left."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINTS
from toolkit.cli import main


def refused(capfd: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    assert main([*map(str, words), "--json"]) == 1
    error: dict[str, object] = json.loads(capfd.readouterr().out)["error"]
    assert error["code"] == "disk_full"
    assert f"MB in {error['path']}, and the disk has " in str(error["message"])
    assert int(str(error["needed_bytes"])) > int(str(error["available_bytes"]))
    return error


def fill(disk: Path, leave_bytes: int) -> None:
    (disk / "filler").write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - leave_bytes))


@pytest.mark.parametrize("profile", ["pi", "micro"])
def test_convert(profile: str, small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(small_disk, 100_000)
    words = ("convert", CHECKPOINTS / "gqa-tied", "--profile", profile, "--fast", "-o", small_disk / "not" / "yet")
    assert refused(capfd, *words)["path"] == str(small_disk / "not")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    (small_disk / "filler").unlink()
    assert main([*map(str, words)]) == 0


def test_the_report_of_a_conversion_has_a_disk_of_its_own(
    small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    fill(small_disk, 100_000)
    words = ("convert", CHECKPOINTS / "gqa-tied", "--profile", "pi", "-o", tmp_path / "bundle")
    assert refused(capfd, *words)["path"] == str(small_disk)
    assert not (tmp_path / "bundle").exists()


def test_bundle_pack_and_unpack(
    small_disk: Path, tmp_path: Path, pi_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "model.zip"
    assert main(["bundle", "pack", str(pi_bundle), "-o", str(packed)]) == 0
    capfd.readouterr()
    fill(small_disk, packed.stat().st_size - 1)
    assert refused(capfd, "bundle", "pack", pi_bundle, "-o", small_disk / "model.zip")["path"] == str(small_disk)
    assert main(["bundle", "unpack", str(packed), "-o", str(small_disk / "model")]) == 1
    assert f"{packed}, unpacked, needs 0." in capfd.readouterr().err
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_what_a_packed_bundle_is_said_to_need_is_what_it_takes(
    small_disk: Path, tmp_path: Path, pi_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "model.zip"
    assert main(["bundle", "pack", str(pi_bundle), "-o", str(packed)]) == 0
    capfd.readouterr()
    entries = len(zipfile.ZipFile(packed).infolist())
    fill(small_disk, 0)
    error = refused(capfd, "bundle", "pack", pi_bundle, "-o", small_disk / "model.zip")
    assert 0 <= int(str(error["needed_bytes"])) - packed.stat().st_size < 512 * entries
