"""Give memory back to the system that a process has touched once and will not need again, or have it ready (Linux)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["populate_mapped_file", "release_mapped_file", "trim_heap"]

_AT_ONCE_BYTES = 8 << 20  # as long as the kernel brings pages in, no other thread can map anything
_MADV_WILLNEED, _MADV_DONTNEED, _MADV_POPULATE_READ = 3, 4, 22  # <sys/mman.h>


def release_mapped_file(path: Path) -> int:
    """Let go of the pages of every read-only mapping of a file; they are read from the file again when they are asked
    for.

    Returns:
        The bytes of the mappings; 0 where there are none, or on another system.
    """
    return _advise(path, _MADV_DONTNEED)


def populate_mapped_file(path: Path) -> int:
    """Have the pages of every read-only mapping of a file there before they are asked for, one after the other: a page
    a fault takes several times as long. Other threads go on meanwhile.

    Returns:
        As `release_mapped_file`.
    """
    return _advise(path, _MADV_POPULATE_READ) or _advise(path, _MADV_WILLNEED)  # the first since Linux 5.14


def _advise(path: Path, advice: int) -> int:
    wanted, advised = os.path.realpath(path), 0
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
        for part in range(start, stop, _AT_ONCE_BYTES):
            size = min(_AT_ONCE_BYTES, stop - part)
            if library.madvise(ctypes.c_void_p(part), ctypes.c_size_t(size), advice) == 0:
                advised += size
    return advised


def trim_heap() -> None:
    """Give back what the C library's heap has free, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
