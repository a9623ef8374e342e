"""The file in which XNNPACK keeps packed weights between starts.

XNNPACK maps the file and does not check what is in it: weights that a power cut left unwritten are zeros, damage in the
middle gives other answers, and both without a word. What a signature vouches for is the graph, so what runs has to be
what was packed of it:

- a file gets its name only when it is complete and on the disk, and then its hash is written beside it;
- at a start, a file that is not the one whose hash was written (by size, times and inode) is hashed before it is used;
- one that is has its whole content hashed in the background, once the first answer has begun: earlier, the hash would
  take a core and the memory's bandwidth from what the user waits for.

What does not hold is removed, and packed again. XNNPACK also ends the process when the disk is full: without room,
there is no cache.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from device_runtime.bundle.folder import cache_root
from device_runtime.errors import DamagedWeightsError
from device_runtime.machine.hashes import blake2b_of_file

__all__ = ["WeightCache"]

_SPARE_BYTES = 4 << 20  # for whatever else writes to this disk meanwhile
_HASH = "blake2b"  # in a file's record
_IDLE_S = 5  # after which the content is hashed although nobody has asked for an answer
_UNUSED_S = 30 * 24 * 3600  # after which another model's or another machine's packed weights go


class WeightCache:
    """One bundle's packed weights.

    Args:
        folder: the bundle's cache folder; None where nothing can be written.
        model_bytes: size of the graph; packed weights take about as much.
        version: of the runtime. XNNPACK would misread or overwrite another's file, which is there after an upgrade.
        machine: names the CPU, since a disk may move to another board.
    """

    def __init__(self, folder: Path | None, model_bytes: int, version: str, machine: str) -> None:
        self._folder, self._machine = folder, machine
        self._final = folder / f"xnnpack-{version}-{machine}.weights" if folder else None
        self._part = folder / f"xnnpack-{os.getpid()}.part" if folder else None
        self._check: threading.Thread | None = None
        self._runs, self._begun = 0, threading.Event()  # runs of the graph; whether there was a first answer
        self._damaged = self._reported = False
        self.unkept = ""  # why no file of them is kept, where none is, and the next step; to be read after `keep`
        if folder is None or self._final is None:
            self.unkept = f"no folder can be written in {cache_root()}; set STONECHAT_CACHE to a place where one can"
            return
        if self._final.is_file() and not _is_recorded(self._final):
            _remove(self._final)
        if not self._final.is_file():
            _remove_orphans(folder)
            if not _has_room(folder, model_bytes):
                self._remove_old(at_once=True)
                if not _has_room(folder, model_bytes):
                    megabytes = _needed(model_bytes) / 1e6
                    self.unkept = f"the disk of {folder.parent} has no {megabytes:.0f} MB free; free as much there"
                    self._final = self._part = None

    @property
    def path(self) -> str:
        """The file to open or to write; empty for none."""
        if self._final is None or self._final.is_file():
            return str(self._final or "")
        return str(self._part)

    def keep(self) -> bool:
        """Call when the graph is loaded, and all weights are packed: what was written gets its name and its record. A
        file that was there before is checked in the background, as soon as the first answer has begun.

        Returns:
            Whether the graph has packed its weights now, and a file of them is there for the next one.
        """
        if self._part is None or self._final is None:
            return False
        if not self._part.is_file():
            if self._final.is_file():
                self._check = threading.Thread(target=self._check_all, name="weight cache", daemon=True)
                self._check.start()
            return False
        try:
            with open(self._part, "rb") as file:
                os.fsync(file.fileno())
                digest = blake2b_of_file(file)
            self._part.replace(self._final)
            _write_record(self._final, digest)
        except OSError as error:  # then the next start packs the weights again
            self.unkept = f"{self._final} could not be written: {error.strerror}; free some space there"
        self._remove_old()
        return self._final.is_file()

    def require_sound(self) -> None:
        """Call before each run of the graph: raises a `DamagedWeightsError` if the check in the background has found
        damage."""
        self._runs += 1
        if self._runs == 2:
            self._begun.set()
        self._raise_if_damaged()

    def finish_check(self) -> None:
        """Wait for the check, if there is one."""
        self._begun.set()
        if self._check is not None:
            self._check.join()

    def _raise_if_damaged(self) -> None:
        if self._damaged:
            self._reported = True
            raise DamagedWeightsError(
                f"The packed weights in {self._final} were not those of the graph: the disk has changed them, so that "
                "answers may have been wrong. They were removed; start again, and check the disk if it happens again."
            )

    def close(self) -> None:
        """Wait for the check, if one is under way: what was answered is as good as its outcome.

        Raises:
            DamagedWeightsError: as `require_sound`, if it was not reported yet.
        """
        self.finish_check()
        if not self._reported:
            self._raise_if_damaged()

    def _check_all(self) -> None:
        """Hash the whole file, after everything else that this machine has to do."""
        self._begun.wait(_IDLE_S)
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # of this thread alone, on Linux
        assert self._final is not None
        try:
            with open(self._final, "rb") as file:
                digest = blake2b_of_file(file)
            recorded = _read_record(self._final).get(_HASH)
        except OSError:
            return  # another process has removed it
        if digest != recorded:
            self._damaged = True
            _remove(self._final)
            import logging  # which a start does without

            log = logging.getLogger("stonechat.engine")
            log.error("the packed weights in %s were damaged and have been removed", self._final)
            return
        with suppress(OSError):
            os.utime(_record_of(self._final))  # used today

    def _remove_old(self, *, at_once: bool = False) -> None:
        """Remove what an earlier version packed here, and what has not been used for long; `at_once`: what another
        model has, since the disk is full."""
        assert self._folder is not None and self._final is not None
        for file in self._folder.glob(f"xnnpack-*-{self._machine}.weights"):
            if file != self._final:
                _remove(file)
        for file in self._folder.parent.glob("*/xnnpack-*.weights"):
            if file == self._final:
                continue
            with suppress(OSError):
                record = _record_of(file)
                used_s = (record if record.is_file() else file).stat().st_mtime
                if at_once or time.time() - used_s > _UNUSED_S:
                    _remove(file)


def _needed(model_bytes: int) -> int:
    return 2 * model_bytes + _SPARE_BYTES


def _has_room(folder: Path, model_bytes: int) -> bool:
    return shutil.disk_usage(folder).free >= _needed(model_bytes)


def _record_of(file: Path) -> Path:
    return file.with_suffix(".json")


def _stamp(file: Path) -> list[int]:
    """What changes with the file; the change time because a modification time can be set back."""
    status = file.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_record(file: Path) -> dict[str, object]:
    try:
        record = json.loads(_record_of(file).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(file: Path, digest: str) -> None:
    record = _record_of(file)
    part = record.with_name(f"{record.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps({_HASH: digest, "stamp": _stamp(file)}))
        part.replace(record)
    finally:
        part.unlink(missing_ok=True)


def _is_recorded(file: Path) -> bool:
    """Whether the file is what was packed: by its record, or, where that is of another copy of it, by its hash."""
    record = _read_record(file)
    try:
        if _HASH in record and record.get("stamp") == _stamp(file):
            return True
        with open(file, "rb") as stream:
            digest = blake2b_of_file(stream)
        if digest != record.get(_HASH):
            return False
        _write_record(file, digest)
    except OSError:
        return False
    return True


def _remove(file: Path) -> None:
    for path in (file, _record_of(file)):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_orphans(folder: Path) -> None:
    """Files of processes that were killed while they packed."""
    for part in folder.glob("xnnpack-*.part"):
        process = part.stem.removeprefix("xnnpack-").rpartition(".")[2]
        if not Path("/proc", process).exists() or process == str(os.getpid()):
            part.unlink(missing_ok=True)
