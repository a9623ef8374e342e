"""The file in which XNNPACK keeps packed weights between starts.

XNNPACK maps the file and does not check what is in it: weights that a power cut left unwritten are zeros, and
the answers nonsense. So a file gets its name only when it is complete and on the disk, and a process that finds
none writes one of its own. XNNPACK also ends the process when the disk is full: without room, there is no cache.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ["WeightCache"]

_SPARE_BYTES = 4 << 20  # for whatever else writes to this disk meanwhile


class WeightCache:
    """One bundle's packed weights.

    Args:
        folder: the bundle's cache folder; None where nothing can be written.
        model_bytes: size of the graph; packed weights take about as much.
        packing: names the runtime's version and the CPU. XNNPACK would misread or overwrite another's file, which is
            there after an upgrade or when a disk moves to another board.
    """

    def __init__(self, folder: Path | None, model_bytes: int, packing: str) -> None:
        self._final = folder / f"xnnpack-{packing}.weights" if folder else None
        self._part = folder / f"xnnpack-{os.getpid()}.part" if folder else None
        if folder is not None and self._final is not None and not self._final.is_file():
            _remove_orphans(folder)
            if shutil.disk_usage(folder).free < 2 * model_bytes + _SPARE_BYTES:
                self._final = self._part = None

    @property
    def path(self) -> str:
        """The file to open or to write; empty for none."""
        if self._final is None or self._final.is_file():
            return str(self._final or "")
        return str(self._part)

    def keep(self) -> None:
        """Call when the graph is loaded, and all weights are packed: what was written gets its name."""
        if self._part is None or self._final is None or not self._part.is_file():
            return
        with suppress(OSError):  # then the next start packs the weights again
            with open(self._part, "rb") as file:
                os.fsync(file.fileno())
            self._part.replace(self._final)


def _remove_orphans(folder: Path) -> None:
    """Files of processes that were killed while they packed."""
    for part in folder.glob("xnnpack-*.part"):
        process = part.stem.removeprefix("xnnpack-")
        if not Path("/proc", process).exists() or process == str(os.getpid()):
            part.unlink(missing_ok=True)
