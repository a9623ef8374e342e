"""A disk that may lose what was not flushed when the power goes (tests only).

`Recorder` stands in for `os` in device_runtime/update/durable.py: it does what it is told on the real disk, and notes
each change. `Recorder.after_cut` then builds the folder that a start after a cut may find. It is harsher than ext4:
every change of a name that has not been flushed with its folder may be there or not, independently of all others, so
that a rename may survive the creation of what it renames; and every write that has not been flushed may be there,
not be there, or be there by half.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from device_runtime.update import durable

__all__ = ["Killer", "Recorder", "recorded"]

CHANGES = (
    "open",
    "pwrite",
    "fsync",
    "mkdir",
    "rename",
    "unlink",
    "rmdir",
)  # all that durable.py calls to change a disk


@dataclass(eq=False)
class Node:
    """A file or a folder, whatever its names are."""

    is_folder: bool


@dataclass(frozen=True)
class Names:
    """Entries of folders that change together: (folder, name, what it is from now on)."""

    changes: tuple[tuple[Node, str, Node | None], ...]


@dataclass(frozen=True)
class Write:
    """Bytes of a file; None empties it."""

    file: Node
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Flush:
    """fsync."""

    node: Node


@dataclass
class Tree:
    """What a disk holds."""

    entries: dict[Node, dict[str, Node]] = field(default_factory=dict)
    data: dict[Node, bytes] = field(default_factory=dict)

    def apply(self, change: Names | Write, share: float = 1.0) -> None:
        """`share` of a write has reached the disk."""
        if isinstance(change, Names):
            for folder, name, node in change.changes:
                self.entries.setdefault(folder, {}).pop(name, None)
                if node is not None:
                    self.entries[folder][name] = node
        elif change.data is None:
            self.data[change.file] = b""
        else:
            before, data = self.data.get(change.file, b""), change.data[: round(len(change.data) * share)]
            self.data[change.file] = (
                before[: change.offset].ljust(change.offset, b"\0") + data + before[change.offset + len(data) :]
            )

    def copy(self) -> Tree:
        """Another one."""
        return Tree({folder: dict(names) for folder, names in self.entries.items()}, dict(self.data))

    def write_to(self, path: Path, root: Node) -> None:
        """Make it real."""
        path.mkdir()
        for name, node in self.entries.get(root, {}).items():
            if node.is_folder:
                self.write_to(path / name, node)
            else:
                (path / name).write_bytes(self.data.get(node, b""))


class Recorder:
    """`os`, and a list of what was done with it under one folder."""

    def __init__(self, root: Path) -> None:
        self._root, self._node = root, Node(True)
        self.before, self.now = Tree(), Tree()
        self.log: list[Names | Write | Flush] = []
        self._files: dict[int, Node] = {}
        self._load(root, self._node)
        self.before = self.now.copy()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pending(self, cut: int) -> list[int]:
        """Which of the changes before `cut` a loss of power there may undo."""
        found = []
        for i, change in enumerate(self.log[:cut]):
            flushed = [later.node for later in self.log[i + 1 : cut] if isinstance(later, Flush)]
            if isinstance(change, Names):
                if any(folder not in flushed for folder, _, _ in change.changes):
                    found.append(i)
            elif isinstance(change, Write) and change.file not in flushed:
                found.append(i)
        return found

    def after_cut(self, cut: int, survives: Callable[[int], float], path: Path) -> Path:
        """The folder as a start may find it when the power went after `cut` changes.

        Args:
            survives: of the changes that were not flushed, the share that has reached the disk.
        """
        tree, pending = self.before.copy(), set(self.pending(cut))
        for i, change in enumerate(self.log[:cut]):
            share = survives(i) if i in pending else 1.0
            if share and not isinstance(change, Flush):
                tree.apply(change, share)
        tree.write_to(path, self._node)
        return path

    # what durable.py calls

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Note that a file came to be, or was emptied."""
        known = self._find(path)
        file = os.open(path, flags, mode)
        if known is None:
            known = Node(False)
            self._note(Names(((self._folder(path), path.name, known),)))
        if flags & os.O_TRUNC:
            self._note(Write(known, 0, None))
        self._files[file] = known
        return file

    def pwrite(self, file: int, data: bytes, offset: int) -> int:
        """Note a write."""
        written = os.pwrite(file, data, offset)
        self._note(Write(self._files[file], offset, bytes(data[:written])))
        return written

    def fsync(self, file: int) -> None:
        """Note a flush. The real disk need not do it."""
        self.log.append(Flush(self._files[file]))

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Note a folder."""
        os.mkdir(path, mode)
        self._note(Names(((self._folder(path), path.name, Node(True)),)))

    def rename(self, source: Path, target: Path) -> None:
        """Note a rename."""
        node = self._find(source)
        os.rename(source, target)
        changes = ((self._folder(source), source.name, None), (self._folder(target), target.name, node))
        self._note(Names(changes))

    def unlink(self, path: Path) -> None:
        """Note that a name is gone."""
        os.unlink(path)
        self._note(Names(((self._folder(path), path.name, None),)))

    def rmdir(self, path: Path) -> None:
        """Note that a folder is gone."""
        os.rmdir(path)
        self._note(Names(((self._folder(path), path.name, None),)))

    def _note(self, change: Names | Write) -> None:
        self.log.append(change)
        self.now.apply(change)

    def _folder(self, path: Path) -> Node:
        node = self._find(path.parent)
        assert node is not None, path
        return node

    def _find(self, path: Path) -> Node | None:
        node: Node | None = self._node
        for name in path.relative_to(self._root).parts:
            node = self.now.entries.get(node, {}).get(name) if node else None
        return node

    def _load(self, path: Path, node: Node) -> None:
        self.now.entries[node] = {}
        for child in path.iterdir():
            below = self.now.entries[node][child.name] = Node(child.is_dir())
            if below.is_folder:
                self._load(child, below)
            else:
                self.now.data[below] = child.read_bytes()


class Killer:
    """`os` until the `number`-th change, from 0: then SIGKILL, before it is made. Flushes nothing."""

    def __init__(self, number: float = float("inf")) -> None:
        self._left = number

    def __getattr__(self, name: str) -> Any:
        if name in CHANGES:
            if self._left == 0:
                os.kill(os.getpid(), 9)
            self._left -= 1
        # What a killed process has written stays without a flush, and the test is faster.
        return getattr(os, name) if name != "fsync" else lambda file: None


@contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """Within this context, what durable.py does under `root` is recorded."""
    recorder = Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "os", recorder)
        yield recorder
