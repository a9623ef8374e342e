"""Object files of C sources, each compiled once for what the preprocessor makes of it (tests only).

Many tests compile the same engine with the same flags, in several processes; the files are kept from run to run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

__all__ = ["kept_folder", "object_files"]

_KEPT = Path(__file__).parents[2] / ".cache" / "tests"  # git ignores it; may be deleted at any time
_UNUSED_S = 14 * 24 * 3600  # what no run has asked for since then goes


def object_files(cc: str, flags: Sequence[str], sources: Sequence[Path]) -> list[Path]:
    """One for each source. Whatever the compiler says of one is an error of the test."""
    folder = kept_folder("objects")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: _object_file(folder, cc, flags, source), sources))


@cache
def kept_folder(name: str) -> Path:
    """One that stays from run to run, without what has not been asked for in a long time."""
    folder = _KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.stat().st_mtime < time.time() - _UNUSED_S:
            path.unlink(missing_ok=True)
    return folder


def _object_file(folder: Path, cc: str, flags: Sequence[str], source: Path) -> Path:
    command = [cc, *flags, str(source)]
    lines = [] if "-g" in flags else ["-P"]  # where the code stands matters to a sanitizer's report only
    read = subprocess.run([*command, "-E", *lines], capture_output=True)
    assert read.returncode == 0, read.stderr.decode()
    known = [flag for flag in flags if not flag.startswith(("-D", "-I", "-Wl,"))]  # those show in what was read
    digest = hashlib.sha256(repr((cc, _version(cc), known)).encode() + read.stdout).hexdigest()
    path = folder / f"{source.stem}-{digest[:24]}.o"
    if path.exists():
        os.utime(path)
        return path
    part = folder / f".{os.getpid()}-{path.name}"  # other processes may be at the same file
    done = subprocess.run([*command, "-c", "-o", str(part)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    part.replace(path)
    return path


@cache
def _version(cc: str) -> str:
    return subprocess.run([cc, "--version"], capture_output=True, text=True, check=True).stdout
