"""The checks of float functions notice an error in them: with a constant changed, or a step left out, they fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from device_runtime.micro.library import compiler
from device_runtime.micro.sources import FLAGS, INCLUDES, engine_sources
from tests.device_runtime.micro.kernels.test_floats import EXP_HASH
from tests.support.bare_metal import BOARDS, compile_for, missing_tools, run_on
from tests.support.c_objects import object_files
from tests.support.c_programs import link, run

pytestmark = pytest.mark.slow
EXP = [path for path in engine_sources() if path.name == "exp.c"]
HERE = Path(__file__).parent
# What is changed -> (file, before, after).
ANYWHERE = {
    "the last bit of log2(e)": ("floats/power.h", "0xb8aa3b29u", "0xb8aa3b2au"),
    "the last bits of ln 2": ("floats/power.h", "0xb17217f8u", "0xb17217e8u"),
    "the last bits of a third": ("floats/power.h", "0x55555556u", "0x55555456u"),
    "the last bit of a power": ("exp.c", "0xb504f334", "0xb504f335"),
    "where exp overflows": ("exp.c", "x > 88.72283f", "x > 88.72282f"),
    "where exp is 0": ("exp.c", "-87.33654f", "-87.33655f"),
    "where the logistic is 1": ("numbers.h", "16.619047164916992188f", "16.61905f"),
    "where the logistic is exp": ("numbers.h", "x < -9.0f", "x <= -9.0f"),
    "where tanh is 1": ("numbers.h", "size > 9.1f", "size > 8.5f"),
    "where tanh is a series": ("numbers.h", "size < 0.02f", "size < 0.021f"),
    "the series of tanh": ("numbers.h", "/ 3.0f", "/ 3.001f"),
}
MVE, DSP = "floats/floats_mve.h", "floats/floats_dsp.h"
ON_BOARDS = {
    "Markstein: an inverse of another size": ("M55", MVE, "d.high, 1.0f) * d.high;", "d.high, 1.0f);"),
    "Markstein: an inverse one unit off": ("M55", MVE, "1.0f / by, 0.0f", "1.0000001f / by, 0.0f"),
    "Markstein: no correction": ("M55", MVE, "return vfmaq_n_f32(q, vfmaq_n_f32(x, q, -d.by), d.high);", "return q;"),
    "Markstein: scales too small for it": ("M55", MVE, "scale >= 0x1p-60f", "scale > 0.0f"),
    "bounds of what is stored": ("M55", MVE, "(float)((high) - zero_point)", "(float)((high) - zero_point - 1)"),
    "halves of shares": ("M55", MVE, "vaddq_n_f32(steps, SC_BELOW_HALF)", "vaddq_n_f32(steps, 0.5f)"),
    "halves of stores": ("M55", MVE, "vcvtaq_s32_f32", "vcvtnq_s32_f32"),
    "the bias of a split": ("M55", MVE, "vshrq_n_u32(bits, 23), 157", "vshrq_n_u32(bits, 23), 156"),
    "borrowing from the exponent": ("M55", MVE, "vqsubq_u32(vdupq_n_u32(1), fraction)", "vdupq_n_u32(0)"),
    "rounding a power": ("M55", MVE, "vrshrq_n_u32(y, 8)", "vshrq_n_u32(y, 8)"),
    "where the logistic is cut off": ("M55", MVE, "vabsq_f32(x), 9.0f", "vabsq_f32(x), 9.5f"),
    "where the logistic is 1": ("M55", MVE, "16.619047164916992188f", "16.7f"),
    "flags of small numbers": ("M55", MVE, "SC_FLAGS = 0x89", "SC_FLAGS = 0x01"),
    "flags of what is no number": ("M55", MVE, "SC_FLAGS = 0x89", "SC_FLAGS = 0x88"),
    "a fixed point too early": ("M4", DSP, "if (x >= 0x800000u) {", "if (x >= 0x400000u) {"),
    "a power's rounding": ("M4", DSP, "lsrs %0, %0, #8\\n\\tadc", "lsrs %0, %0, #8\\n\\tadds %0, %0, #0\\n\\tadc"),
    "where exp is 0": ("M4", DSP, "0x57562780u", "0x57562000u"),
}  # fmt: skip


def mutated(folder: Path, name: str, before: str, after: str) -> list[str]:
    """Flags that put a changed copy of the kernels before them."""
    kernels = next(path for path in INCLUDES if path.name == "kernels")
    shutil.copytree(kernels, folder / "kernels")
    file = folder / "kernels" / name
    text = file.read_text()
    assert before in text, f"{name} has no {before} any more"
    file.write_text(text.replace(before, after))
    return [f"-I{folder / 'kernels'}", f"-I{folder / 'kernels' / 'floats'}"]


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
@pytest.mark.parametrize("what", ANYWHERE)
def test_bits_of_exp_logistic_and_tanh_change_with(what: str, tmp_path: Path) -> None:
    flags = [*FLAGS, *mutated(tmp_path, *ANYWHERE[what]), *(f"-I{folder}" for folder in INCLUDES)]
    files = [HERE / "check_exp.c", tmp_path / "kernels" / "exp.c"]
    link(tmp_path / "run", object_files("cc", flags, files), [], "cc")
    status, out = run(tmp_path / "run")
    assert status == 0 and EXP_HASH not in out.decode()


@pytest.mark.parametrize("what", ON_BOARDS)
def test_a_board_finds_other_bits_with(what: str, tmp_path: Path) -> None:
    core, *change = ON_BOARDS[what]
    board = BOARDS[core]
    if missing := missing_tools(board.family):
        pytest.skip(missing)
    flags = mutated(tmp_path, *change)
    program = compile_for(board, tmp_path / "check.elf", "check_floats_bare.c", {}, flags, engine=EXP)
    assert run_on(board, program) != "0"
