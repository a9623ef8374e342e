"""Give memory back to the system that a process has touched once and will not need again (Linux)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["release_mapped_file", "trim_heap"]

_MADV_DONTNEED = 4  # <sys/mman.h>


def release_mapped_file(path: Path) -> int:
    """Let go of the pages of every read-only mapping of a file; they are read from the file again when they are asked
    for.

    Returns:
        The bytes of the mappings; 0 where there are none, or on another system.
    """
    wanted, released = os.path.realpath(path), 0
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
        library = ctypes.CDLL(None, use_errno=True)
    except OSError:
        return 0
    for line in maps.splitlines():
        # 7f00-7f80 r--p 00000000 08:01 1234    /path with spaces
        fields = line.split(maxsplit=5)
        # What was written to a private mapping would be lost.
        if len(fields) < 6 or fields[5] != wanted or "w" in fields[1]:
            continue
        start, stop = (int(address, 16) for address in fields[0].split("-"))
        if library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED) == 0:
            released += stop - start
    return released


def trim_heap() -> None:
    """Give back what the C library's heap has free, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
