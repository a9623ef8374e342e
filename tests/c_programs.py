"""Compile C files of the engine and of tests with this machine's compiler (tests only)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from device_runtime.micro.sources import FLAGS, INCLUDES, WARNINGS, engine_sources

__all__ = ["SANITIZERS", "compile_program", "compiler", "run", "sources_of"]

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiler(name: str = "cc") -> str:
    """A C compiler, or the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here")
    return found


def sources_of(*names: str) -> list[Path]:
    """The C files of some folders of the engine, or single files as `runtime/utf8.c`, where a test needs no more."""
    found = [p for p in engine_sources() if p.parent.name in names or f"{p.parent.name}/{p.name}" in names]
    assert found, names
    return found


def compile_program(
    out: Path, *files: Path, flags: Sequence[str] = (), cc: str = "cc", engine: bool = True, shared: bool = False
) -> Path:
    """A program (or a shared library) of `files` and, with `engine`, of the whole engine.

    Whatever the compiler says is an error of the test: warnings are errors.
    """
    sources = [*files, *(engine_sources() if engine else [])]
    includes = [f"-I{folder}" for folder in INCLUDES]
    kind = ["-shared", "-fPIC"] if shared else []
    command = [compiler(cc), *FLAGS, *WARNINGS, *flags, *kind, *includes, *map(str, sources), "-o", str(out), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def run(program: Path, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, bytes]:
    """Exit status and stdout; what a sanitizer reports fails the test."""
    done = subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, timeout=120)
    assert b"ERROR: " not in done.stderr and b"runtime error" not in done.stderr, done.stderr.decode()
    assert done.returncode >= 0, f"ended by signal {-done.returncode}: {done.stderr.decode()}"
    return done.returncode, done.stdout
