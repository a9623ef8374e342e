"""Every call of the engine gives what TFLite Micro, or numpy for int4 weights, computed when tests/data/kernel_vectors/
was made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.micro.library import CEngine, compiler
from tests.support.bare_metal import BOARDS, compile_for, missing_tools, run_on
from tests.support.c_programs import SANITIZED, compile_program, run

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "data" / "kernel_vectors"
NAMES = ["grouped", "odd", "blocks"]
# The same machines' cores with less: what suits one part of the engine must not be taken for granted by another.
LESS = {
    "M4 without floats": replace(BOARDS["M4"], cpu=("-mcpu=cortex-m4", "-mfloat-abi=soft")),
    "M55, Helium of integers": replace(BOARDS["M55"], cpu=("-mcpu=cortex-m55+nomve.fp", "-mfloat-abi=hard")),
}
CORES = BOARDS | LESS
pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")


@pytest.fixture(scope="module", params=SANITIZED)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("v") / "run"
    return compile_program(out, HERE / "run_vectors.c", flags=SANITIZED[request.param])


@pytest.mark.parametrize("name", NAMES)
def test_each_call_gives_what_tflite_micro_gives(program: Path, name: str) -> None:
    assert run(program, DATA / f"{name}.image", DATA / f"{name}.vectors") == (0, b"0\n")


def test_a_wrong_vector_is_found_at_its_call(program: Path, tmp_path: Path) -> None:
    vectors = bytearray((DATA / "odd.vectors").read_bytes())
    tokens = int.from_bytes(vectors[:4], "little")
    entry = 4 * (tokens + 2)
    call = int.from_bytes(vectors[entry : entry + 4], "little")
    vectors[entry + 12] ^= 1
    (tmp_path / "wrong").write_bytes(vectors)
    assert run(program, DATA / "odd.image", tmp_path / "wrong") == (0, b"%d\n" % (call + 1))


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", NAMES)
def test_so_does_each_call_on_an_emulated_board(core: str, name: str, tmp_path: Path) -> None:
    board = CORES[core]
    if missing := missing_tools(board.family):
        pytest.skip(missing)
    image, vectors = DATA / f"{name}.image", DATA / f"{name}.vectors"
    needs, vectors_at = CEngine(image).needs, board.memory + 0x100000
    defines = {
        "IMAGE_AT": board.memory, "IMAGE_BYTES": image.stat().st_size, "VECTORS_AT": vectors_at,
        "ARENA_BYTES": needs.arena_bytes + 64, "KV_BYTES": needs.kv_cache_bytes,
    }  # fmt: skip
    program = compile_for(board, tmp_path / "run.elf", "run_vectors_bare.c", defines)
    assert run_on(board, program, {board.memory: image, vectors_at: vectors}) == "0"
