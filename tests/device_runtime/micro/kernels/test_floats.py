"""Softmax and the operations of programs give the same bits on every processor, of denormal numbers and halves too."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_runtime.micro.library import compiler
from tests.support.bare_metal import BOARDS, compile_for, missing_tools, run_on
from tests.support.c_programs import SANITIZED, SANITIZERS, compile_program, run

EXP_HASH = "d5f001174b9a0037"  # of what check_exp.c computes, by the same order of floats


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
def test_loops_over_floats_give_the_bits_of_one_after_the_other(tmp_path: Path) -> None:
    flags = next(iter(SANITIZED.values()))
    program = compile_program(tmp_path / "run", Path(__file__).with_name("check_floats.c"), flags=flags)
    assert run(program) == (0, b"0\n")


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
def test_exp_is_within_two_thirds_of_a_unit_and_its_bits_are_known(tmp_path: Path) -> None:
    program = compile_program(tmp_path / "run", Path(__file__).with_name("check_exp.c"), flags=SANITIZERS)
    status, out = run(program)
    of_exp, of_others, bits = out.decode().split()
    assert status == 0 and bits == EXP_HASH
    assert float(of_exp) <= 0.68 and float(of_others) <= 0.1  # units of the last place; millionths


@pytest.mark.slow
@pytest.mark.parametrize("core", BOARDS)
def test_so_do_they_on_an_emulated_board(core: str, tmp_path: Path) -> None:
    board = BOARDS[core]
    if missing := missing_tools(board.family):
        pytest.skip(missing)
    program = compile_for(board, tmp_path / "check.elf", "check_floats_bare.c", {})
    assert run_on(board, program) == "0"
