"""LiteRT's own library, without the graphics library that its package carries.

Whatever accelerator is asked for, LiteRT looks for GPU drivers beside its library and loads what it finds. Its package
for 64-bit ARM has one there that is built for ARMv8.1: on a Cortex-A53 or -A72 (Raspberry Pi Zero 2 W, 3, 4) loading it
ends the process with SIGILL. So the library is loaded through a link in a folder of its own, where no driver lies;
who asks for it later gets the one that is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from importlib.util import find_spec
from pathlib import Path

__all__ = ["load_without_gpu"]

_LIBRARY = "libpywrap_litert_common.so"
_DEPTH = 8  # the library also looks into folders above its own: those are ours as well


@functools.cache
def load_without_gpu() -> None:
    """To be called before anything of ai_edge_litert is imported; does nothing where that is missing or different."""
    spec = find_spec("ai_edge_litert")
    if spec is None or spec.origin is None:
        return
    library = Path(spec.origin).parent / _LIBRARY
    if not library.is_file():
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, *["_"] * _DEPTH, _LIBRARY)
            link.parent.mkdir(parents=True)
            link.symlink_to(library)
            ctypes.CDLL(str(link))
    except OSError:  # no folder to write to, or not a library: LiteRT then loads it its own way
        return
