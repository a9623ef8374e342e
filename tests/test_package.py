"""What `make package` builds is whole, and works in an environment that has nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("stonechat", "device_runtime", "boards", "converters", "toolkit")
CHECKPOINT = ROOT / "tests" / "data" / "checkpoints" / "gqa-tied"


def tracked(*suffixes: str) -> set[str]:
    """The files of the packages in this checkout."""
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/ as `python -m build` makes it: an sdist, and the wheel made of it."""
    pytest.importorskip("build", reason="the package build is not installed (pip install '.[dev]')")
    folder = tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_the_wheel_has_every_file_that_runs(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert tracked(".py") <= names
    assert {name for name in tracked(".yaml", ".typed", ".c", ".h") if "/tests/" not in name} <= names
    assert {name for name in tracked(".txt", ".json") if name.startswith("converters/texts/")} <= names
    assert {name for name in tracked(".html", ".js", ".css", ".svg") if name.startswith("toolkit/")} <= names


def test_the_sdist_is_what_the_wheel_was_made_of(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked(".py") <= names
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= names


@pytest.mark.slow
def test_the_wheel_converts_and_answers_in_a_fresh_environment(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    venv, clean = tmp_path / "venv", {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    install = [str(venv / "bin" / "pip"), "install", "-q", f"{wheel}[convert]"]
    done = subprocess.run(install, capture_output=True, text=True, env=clean)
    if "No matching distribution" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    stonechat = str(venv / "bin" / "stonechat")
    bundle = str(tmp_path / "bundle")
    for command in (
        [stonechat, "convert", str(CHECKPOINT), "--profile", "pi", "--fast", "-o", bundle],
        [stonechat, "check", bundle, "--board", "raspberry-pi-zero-2-w"],
        [stonechat, "run", bundle, "hello", "--max-new", "3"],
        [str(venv / "bin" / "python"), "-c", f"from stonechat import LanguageModel; LanguageModel.open({bundle!r})"],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean)
        assert ran.returncode == 0, f"{command}: {ran.stderr}"
