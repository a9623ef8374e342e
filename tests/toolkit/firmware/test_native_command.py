"""`stonechat native`: the engine compiled ahead, and a model image inside a program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from c_programs import compile_program, compiler, run
from micro_bundles import micro_bundle, random_network

from device_runtime.bundle.manifest import IMAGE
from device_runtime.micro.library import CEngine
from toolkit.cli import main

MAIN = """
#include <stdio.h>
#include "model_image.h"
#include "stonechat.h"
static uint8_t arena[1 << 16] __attribute__((aligned(16))), kv_cache[1 << 16] __attribute__((aligned(16)));
int main(void) {
    sc_model *model;
    if (sc_open(&model, model_image, model_image_bytes, SC_CHECK_HASH, arena, sizeof arena, kv_cache,
                sizeof kv_cache) != SC_OK) {
        return 1;
    }
    if (sc_feed(model, 5) != SC_OK) return 2;
    printf("%u", (unsigned)sc_greedy(model));
    return 0;
}
"""


def test_build_compiles_once_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler()
    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path))
    for compiled in (True, False):
        assert main(["native", "build", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["compiled"] is compiled and Path(said["library"]).is_file()


def test_without_a_compiler_build_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert main(["native", "build"]) == 2
    assert "apt install gcc" in capsys.readouterr().err


def test_an_array_is_a_model_that_a_program_carries(tmp_path: Path) -> None:
    compiler()
    bundle = micro_bundle(tmp_path / "bundle", random_network(layers=1))
    assert main(["native", "array", str(bundle.path), "-o", str(tmp_path / "c")]) == 0
    (tmp_path / "main.c").write_text(MAIN)
    program = compile_program(
        tmp_path / "run", tmp_path / "main.c", tmp_path / "c" / "model_image.c", flags=[f"-I{tmp_path / 'c'}"]
    )
    engine = CEngine(bundle.path / IMAGE)
    engine.feed(5)
    status, said = run(program)
    assert status == 0 and int(said) == int(np.argmax(engine.logits))


def test_a_bundle_without_an_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = micro_bundle(tmp_path / "bundle", random_network(layers=1))
    (bundle.path / IMAGE).unlink()
    assert main(["native", "array", str(bundle.path), "-o", str(tmp_path / "c")]) != 0
    assert IMAGE in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
