"""What `make fuzz` begins with, replayed under the sanitizers: requests of SMP, and (slowly) a whole serial line."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from device_runtime.micro.sources import FIRMWARE_INCLUDES, firmware_sources, update_sources
from tests.support.c_programs import SANITIZED, compile_program, run

FUZZ = Path(__file__).parents[2] / "fuzz"


def replay(target: str, sources: Sequence[Path], folder: Path, *, engine: bool) -> None:
    """Run a target on its corpus, and on copies of it that are damaged."""
    files = [FUZZ / f"{target}.c", FUZZ / "replay.c", *sources]
    flags = [*SANITIZED["native"], *(f"-I{include}" for include in FIRMWARE_INCLUDES)]
    program = compile_program(folder / target, *files, flags=flags, engine=engine)
    dice, cases = random.Random(7), []
    for path in sorted((FUZZ / "corpus" / target).iterdir()):
        cases.append(path)
        for number in range(40):
            data = bytearray(path.read_bytes())
            for _ in range(dice.randint(1, 6)):
                place = dice.randrange(len(data))
                data[place : place + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 3))
            cases.append(folder / f"{path.name}-{number}")
            cases[-1].write_bytes(data)
    status, out = run(program, *cases)
    assert (status, out) == (0, b"%d\n" % len(cases))


def test_requests_of_smp_stay_inside_of_their_memory(tmp_path: Path) -> None:
    replay("smp", update_sources(), tmp_path, engine=False)


@pytest.mark.slow
def test_commands_over_mqtt_stay_inside_of_their_memory_and_are_answered_in_json(tmp_path: Path) -> None:
    replay("fleet", firmware_sources(), tmp_path, engine=True)


@pytest.mark.slow
def test_whatever_comes_over_the_line_stays_inside_of_its_memory(tmp_path: Path) -> None:
    replay("line", firmware_sources(), tmp_path, engine=True)
