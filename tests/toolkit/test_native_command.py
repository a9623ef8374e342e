"""`stonechat native`: the engine compiled ahead, and a model image that a linker can take."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit.cli import main

BUNDLE = Path(__file__).parents[2] / "examples" / "fall-alert" / "bundle"
PRINT = """
#include <stdio.h>
#include "model_image.h"
int main(void) { return fwrite(model_image, 1, model_image_bytes, stdout) != model_image_bytes; }
"""
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@needs_compiler
def test_an_array_holds_the_bytes_of_the_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["native", "array", str(BUNDLE), "-o", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (tmp_path / "print.c").write_text(PRINT)
    command = ["cc", "-std=c99", "-Wall", "-Werror", "-o", "print", "print.c", Path(facts["source"]).name]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "print"], capture_output=True, check=True)
    assert done.stdout == (BUNDLE / "model.image").read_bytes()
    assert facts["image_bytes"] == len(done.stdout)


def test_a_bundle_without_an_image_gets_one_for_its_array(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in BUNDLE.iterdir():
        if file.name != "model.image":
            shutil.copy(file, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["model.image"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert main(["native", "array", str(bundle), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model_image.c").stat().st_size > (BUNDLE / "model.image").stat().st_size
    assert not (bundle / "model.image").exists()


def test_a_bundle_of_the_other_profile_is_refused(pi_bundle: Path, tmp_path: Path, capsys) -> None:
    assert main(["native", "array", str(pi_bundle), "-o", str(tmp_path / "out")]) == 1
    assert "converted with --profile micro" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_compiler
def test_build_compiles_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path))
    assert main(["native", "build", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["native", "build", "--json"]) == 0
    assert (first["compiled"], json.loads(capsys.readouterr().out)["compiled"]) == (True, False)
    assert Path(first["library"]).is_file()
