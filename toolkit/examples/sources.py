"""Where a task's examples come from: its files, its own program, its rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import Example, parse_examples, read_examples
from device_runtime.tasks.file import Task
from toolkit.examples.readings import generated

__all__ = ["all_examples", "calibration_examples", "generated_examples"]


def all_examples(task: Task, count: int, seed: int) -> Iterator[Example]:
    """The examples of the task's files, then `count` that are generated.

    Raises:
        ConfigurationError: a file or the generator has a fault.
    """
    for name in task.examples:
        yield from read_examples(task.folder / name, task.inputs, task.answer)
    if task.generate.program is not None or task.truth:
        yield from generated_examples(task, count, seed)


def calibration_examples(task: Task) -> list[Example]:
    """Those that the task file says confidence is calibrated on; none where it names no file.

    Raises:
        ConfigurationError: a file is not there, or has a fault.
    """
    return [e for name in task.calibrate for e in read_examples(task.folder / name, task.inputs, task.answer)]


def generated_examples(task: Task, count: int, seed: int) -> Iterator[Example]:
    """`count` examples from the task's program or its rules, the same for the same seed.

    Raises:
        ConfigurationError: it has neither, or they fail.
    """
    if task.generate.program is not None:
        yield from _printed(task, count, seed)
    else:
        yield from (Example(case["input"], case["answer"]) for case in generated(task, count, seed))


def _printed(task: Task, count: int, seed: int) -> list[Example]:
    """What the task's own program prints."""
    program = task.folder / str(task.generate.program)
    if not program.is_file():
        raise ConfigurationError(f"{program} is not there; `generate: program` names a file beside the task file.")
    command = [sys.executable, str(program), "--seed", str(seed), "--cases", str(count)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        raise ConfigurationError(f"{program} failed with exit code {done.returncode}: {last}")
    return parse_examples(done.stdout.decode("utf-8"), f"the output of {program.name}", task.answer)
