"""A new bundle, put together in `incoming/` from what the device has and what it is sent.

    staging = Staging.begin(slots, policy.judge(manifest, …))       takes from the slots what has not changed
    for file in staging.missing():                                  what has to come from elsewhere, and from where on
        staging.write(file.name, file.have_bytes, data)             in any number of pieces
    staging.finish(limits)                                          checks all of it, and puts it on trial

The manifest comes first, and a policy has judged it before anything else is looked at. What has arrived outlives a
restart: the next `begin` with the same manifest goes on from there. The beginning of a file is not flushed before its
end has come, so after a loss of power it may turn out damaged: `write` then raises a BundleError at the last chunk, and
`missing` asks for the whole file again. Files are copied from a slot rather than linked: a link would let one bad
block, or one stray write, damage the new bundle and the one to go back to.

A file's sha256 is computed twice here, on purpose. When its last byte is written, because a source may send anything;
and in `finish`, over all files, because the power may have gone since the first check and taken what was not flushed.
The trial (`probe.py`) hashes them once more in its own process: it is the last look before the bundle serves. Nothing
else hashes files, except `install.has_bundle`, which looks for damage in a slot before it says that nothing is to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST, FileEntry, Manifest
from device_runtime.bundle.trust import SIGNATURE
from device_runtime.errors import BundleError, UpdateError
from device_runtime.machine.disk import free_bytes
from device_runtime.machine.path_errors import is_full
from device_runtime.update import durable
from device_runtime.update.policy import Admitted
from device_runtime.update.slots import Slots
from device_runtime.update.state import SLOTS, Last, TrialLimits

__all__ = ["CHUNK_BYTES", "Missing", "Source", "Staging", "peek"]

CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 20  # for the manifest, slots.json, and names


@dataclass(frozen=True)
class Missing:
    """A file that has not arrived whole."""

    name: str
    sha256: str  # of the whole file
    have_bytes: int  # from its beginning; `write` goes on from here
    size_bytes: int


class Source(Protocol):
    """Where the files of a bundle come from: `http_source.HttpSource` or `chunk_source.ChunkSource`."""

    def read(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """What the file `name` holds from byte `offset` on; nothing if there is no such file."""
        ...


class Staging:
    """The bundle in `incoming/`."""

    def __init__(self, slots: Slots, manifest: Manifest, reused: dict[str, int]) -> None:
        self.manifest = manifest
        self.reused = reused  # files that were taken from a slot: name -> bytes
        self._slots = slots

    @classmethod
    def begin(cls, slots: Slots, bundle: Admitted) -> Staging:
        """Start with a manifest, or go on where the last attempt with the same one was cut.

        A bundle that still waits for its trial is called off.

        Raises:
            UpdateError: there is no room; `incoming/` holds nothing then.
        """
        manifest, parsed = bundle.raw, bundle.manifest
        if slots.state.trial is not None:
            slots.give_back(_called_off(slots, parsed))
        if _read(slots.incoming / MANIFEST) != manifest:
            slots.discard_incoming()
        staging = cls(slots, parsed, {})
        staging._make_room()
        durable.make_folder(slots.incoming)
        for name, content in ((MANIFEST, manifest), (SIGNATURE, bundle.signature)):
            if content is None:
                durable.remove(slots.incoming / name)
            elif _read(slots.incoming / name) != content:
                durable.replace_file(slots.incoming / name, content)
        staging._settle()
        staging._reuse()
        return staging

    def missing(self) -> list[Missing]:
        """What has to be written before `finish`."""
        return [
            Missing(name, entry.sha256, _size(self._part(name)), entry.size_bytes)
            for name, entry in self.manifest.files.items()
            if not (self._slots.incoming / name).is_file()
        ]

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Take in a piece of a file. What is there already is left out, so a piece may come twice.

        Raises:
            BundleError: the file is not in the manifest, is longer than that says, or has another hash; what came
                of it is dropped in the last case.
            UpdateError: the disk is full, or a piece before this one is missing.
        """
        entry = self._entry(name)
        if (self._slots.incoming / name).is_file():
            return
        part = self._part(name)
        have = _size(part)
        if offset > have:
            raise UpdateError(f"{name}: a piece for byte {offset:,} came when byte {have:,} was next; send that first.")
        if offset + len(data) > entry.size_bytes:
            raise BundleError(
                f"{name} is longer than the {entry.size_bytes:,} bytes that the manifest says. The bundle is damaged, "
                "or not the one that the manifest belongs to; copy it again."
            )
        rest = data[have - offset :]
        with self._explained(entry.size_bytes - have):
            if rest or entry.size_bytes == 0:
                durable.append(part, have, rest)
            if have + len(rest) == entry.size_bytes:
                self._complete(name, entry)

    def finish(self, limits: TrialLimits = TrialLimits()) -> None:  # noqa: B008  frozen
        """Check every byte again, and put the bundle on trial in the free slot.

        Raises:
            UpdateError: files are missing.
            BundleError: one is damaged; it is dropped, and `missing` names it.
        """
        if missing := self.missing():
            raise UpdateError(f"{missing[0].name} has {missing[0].have_bytes:,} of {missing[0].size_bytes:,} bytes.")
        expected = {"manifest.json", SIGNATURE, *self.manifest.files}
        for path in self._slots.incoming.iterdir():
            if path.name not in expected:
                durable.remove(path)
        try:
            Bundle.open(self._slots.incoming, verify=True)
        except BundleError:
            for name, entry in self.manifest.files.items():
                if _hash(self._slots.incoming / name) != entry.sha256:
                    durable.remove(self._slots.incoming / name)
            raise
        durable.sync_folder(self._slots.incoming)
        self._slots.install(limits, Last("installed", self.manifest.name, self.manifest.version))

    def restart(self, name: str) -> None:
        """Drop what has arrived of a file that is not whole."""
        durable.remove(self._part(name))

    def abandon(self) -> None:
        """Drop what has arrived."""
        self._slots.discard_incoming()

    def _settle(self) -> None:
        """Files of which the last byte had arrived when the power went: take them, or drop them if they are damaged."""
        for file in self.missing():
            if file.have_bytes >= file.size_bytes > 0:
                with suppress(BundleError):
                    self._complete(file.name, self._entry(file.name))

    def _reuse(self) -> None:
        """Copy files that a slot has already. Their hashes are checked: damage does not spread."""
        have = {}
        for slot in SLOTS:
            path = self._slots.path(slot)
            if (theirs := peek(path)) is not None:
                have.update({entry.sha256: path / name for name, entry in theirs.files.items()})
        for file in self.missing():
            source = have.get(file.sha256)
            if source is None or _size(source) != file.size_bytes:
                continue
            with self._explained(file.size_bytes), suppress(BundleError):  # a damaged one has to be sent after all
                durable.write_file(self._part(file.name), _chunks(source))
                self._complete(file.name, self._entry(file.name))
                self.reused[file.name] = file.size_bytes

    def _complete(self, name: str, entry: FileEntry) -> None:
        part = self._part(name)
        found = _hash(part)
        if found != entry.sha256:
            durable.remove(part)
            raise BundleError(
                f"{name} is not the file that the manifest describes: sha256 {found[:16]}… instead of "
                f"{entry.sha256[:16]}…. It was altered, damaged, or is of another bundle; copy the bundle again."
            )
        durable.sync_file(part)
        durable.move(part, self._slots.incoming / name)

    def _make_room(self) -> None:
        """See that the rest fits onto the disk, at the cost of the bundle to go back to if it has to be."""
        slots = self._slots
        needed = sum(file.size_bytes - file.have_bytes for file in self.missing()) + _SPARE_BYTES
        free = free_bytes(slots.folder)
        if free >= needed:
            return
        previous = slots.state.previous
        if previous is not None and free + _tree_bytes(slots.path(previous)) >= needed:
            slots.forget_previous()
            return
        self._refuse(needed, free)

    def _refuse(self, needed: int, free: int) -> None:
        self.abandon()
        raise UpdateError(
            f"the disk of {self._slots.folder} has {free / 1e6:,.1f} MB free, and version {self.manifest.version} of "
            f"{self.manifest.name} needs {needed / 1e6:,.1f} MB; free {(needed - free) / 1e6:,.1f} MB more. "
            "What ran before still runs."
        )

    def _explained(self, needed: int) -> _FullDisk:
        return _FullDisk(lambda: self._refuse(needed + _SPARE_BYTES, free_bytes(self._slots.folder)))

    def _entry(self, name: str) -> FileEntry:
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{name!r} is not in the manifest; it lists {', '.join(sorted(self.manifest.files))}.")
        return entry

    def _part(self, name: str) -> Path:
        return self._slots.incoming / f".{name}.part"  # no name in a manifest begins with a dot


class _FullDisk:
    """Within this context, a full disk calls `refuse`, which raises."""

    def __init__(self, refuse: Callable[[], None]) -> None:
        self._refuse = refuse

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and is_full(error):
            self._refuse()


def _called_off(slots: Slots, by: Manifest) -> Last:
    last = slots.state.last
    name, version = (last.name, last.version) if last else ("a bundle", "?")
    return Last("rolled_back", name, version, f"called off before its trial ended: version {by.version} came")


def peek(bundle: Path) -> Manifest | None:
    """The manifest of a bundle whose files nobody has checked; None where there is none that can be read."""
    raw = _read(bundle / MANIFEST)
    try:
        return None if raw is None else Manifest.from_json(raw.decode())
    except (BundleError, UnicodeDecodeError):
        return None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tree_bytes(folder: Path) -> int:
    return sum(_size(path) for path in folder.rglob("*")) if folder.is_dir() else 0
