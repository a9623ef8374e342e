"""Compile C files of the engine and of tests with this machine's compiler (tests only)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from device_runtime.micro.sources import FLAGS, INCLUDES, THIRD_PARTY, WARNINGS, engine_sources
from tests.support.c_objects import object_files

__all__ = ["SANITIZED", "SANITIZERS", "compile_program", "compiler", "link", "run", "sources_of"]

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Flags of a program that ends at the first wrong access, overflow or shift. Only what has vector code differs in both:
# the rest is compiled once.
SANITIZED = {
    "scalar": (*SANITIZERS, "-march=native", "-DSC_SCALAR"),
    "native": (*SANITIZERS, "-march=native"),
}


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

    Whatever the compiler says is an error of the test: warnings are errors, but for the code of others.
    """
    sources = [*files, *(engine_sources() if engine else [])]
    own = [path for path in sources if path.parent != THIRD_PARTY]
    others = [path for path in sources if path.parent == THIRD_PARTY]
    used = [*FLAGS, *flags, *(["-fPIC"] if shared else []), *(f"-I{folder}" for folder in INCLUDES)]
    plain = [flag for flag in used if flag not in SANITIZERS]
    objects = [
        *object_files(compiler(cc), [*WARNINGS, *used], own),
        *object_files(compiler(cc), [*plain, "-w"], others),
    ]
    link(out, objects, [*flags, *(["-shared"] if shared else [])], cc)
    return out


def link(out: Path, objects: Sequence[Path], flags: Sequence[str] = (), cc: str = "cc") -> None:
    """Link object files, and libraries among them."""
    done = subprocess.run([compiler(cc), *flags, *objects, "-lm", "-o", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, bytes]:
    """Exit status and stdout; what a sanitizer reports fails the test."""
    done = subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, timeout=120)
    assert b"ERROR: " not in done.stderr and b"runtime error" not in done.stderr, done.stderr.decode()
    assert done.returncode >= 0, f"ended by signal {-done.returncode}: {done.stderr.decode()}"
    return done.returncode, done.stdout
