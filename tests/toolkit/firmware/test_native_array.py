"""`stonechat native`: the engine compiled ahead, and a model image inside a program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle.manifest import IMAGE
from device_runtime.micro.library import CEngine
from tests.support.c_programs import compile_program, compiler, run
from tests.support.micro_bundles import micro_bundle, random_network
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
