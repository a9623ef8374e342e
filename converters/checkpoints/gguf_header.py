"""The header of a GGUF file: metadata and the list of tensors (GGUF specification, versions 2 and 3).

`gguf.GGUFReader` keeps a numpy view for every string: a vocabulary of 49,152 takes it 5.4 s. This reader
takes 0.1 s, and checks each length against the file's size before it believes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from converters.checkpoints.fields import SAME_AS_PUBLISHED
from device_runtime.errors import CheckpointError

__all__ = ["MAGIC", "Header", "TensorInfo", "read_header"]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of tensor data, unless general.alignment says otherwise
_MOST_DIMENSIONS = 4
_CHUNK = 1 << 20  # bytes read at a time
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One line of the list of tensors."""

    name: str
    shape: tuple[int, ...]  # row-major: reversed from the file's order
    ggml_type: int
    offset: int  # bytes from the start of the file


@dataclass(frozen=True)
class Header:
    """All that comes before the tensor data."""

    metadata: dict[str, Any]  # int, float, bool, str, or a list of them
    tensors: tuple[TensorInfo, ...]
    file_size: int  # bytes


def read_header(path: Path) -> Header:
    """Read metadata and tensor list; touches no tensor data.

    Raises:
        CheckpointError: not a GGUF file, or one that is cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path).header()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = path.stat().st_size
        self.data = b""  # what has been read of the file so far
        self.at = 0

    def header(self) -> Header:
        magic = self._take(4)
        if magic != MAGIC:
            raise CheckpointError(f"{self.path}: starts with {magic!r}, expected {MAGIC!r}. This is not a GGUF file.")
        version = self._number("I")
        if version not in _VERSIONS:
            if version & 0xFFFF == 0:
                raise CheckpointError(
                    f"{self.path}: a big-endian GGUF file; expected little-endian. Fetch the little-endian file of the "
                    "model, or export it from the original checkpoint again: converters of the byte order swap "
                    "quantized blocks that gguf-py never swapped."
                )
            raise CheckpointError(
                f"{self.path}: GGUF version {version}; expected 2 or 3. Export it again with a current llama.cpp."
            )
        tensor_count, pair_count = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(self._fits(pair_count, 12)):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"metadata has {key!r} twice")
            metadata[key] = self._value(self._number("I"))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}, expected a power of two")
        entries = [self._tensor() for _ in range(self._fits(tensor_count, 24))]
        base = -(-self.at // alignment) * alignment
        tensors = tuple(TensorInfo(name, shape, kind, base + offset) for name, shape, kind, offset in entries)
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            raise self._damaged(f"two tensors are named {next(n for n in names if names.count(n) > 1)!r}")
        return Header(metadata, tensors, self.size)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {dimensions} dimensions, expected 1 to {_MOST_DIMENSIONS}")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind != _ARRAY or depth > 2:
            raise self._damaged(f"metadata value of unknown type {kind}")
        item, count = self._number("I"), self._number("Q")
        if item in _NUMBERS:
            code = _NUMBERS[item]
            data = self._take(self._fits(count, struct.calcsize(code)) * struct.calcsize(code))
            return list(struct.unpack(f"<{count}{code}", data))
        if item == _STRING:
            return self._strings(self._fits(count, 8))
        return [self._value(item, depth + 1) for _ in range(self._fits(count, 12))]

    def _strings(self, count: int) -> list[str]:
        # The hot loop: vocabularies and merges have some hundred thousand strings.
        strings, length_at = [], struct.Struct("<Q").unpack_from
        for _ in range(count):
            at = self._need(8)
            (length,) = length_at(self.data, at)
            self.at = at + 8
            at = self._need(length)
            self.at = at + length
            strings.append(self._text(self.data[at : self.at]))
        return strings

    def _string(self) -> str:
        return self._text(self._take(self._number("Q")))

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"text that is not UTF-8: {data[:40]!r}") from error

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]

    def _take(self, count: int) -> bytes:
        at = self._need(count)
        self.at = at + count
        return self.data[at : self.at]

    def _need(self, count: int) -> int:
        """Make sure that `count` bytes from here are in `data`; returns where they start."""
        end = self.at + count
        if end > len(self.data):
            if end > self.size:
                raise CheckpointError(
                    f"{self.path}: cut short or damaged: {self.size} bytes, but its header names data up to byte {end}."
                    " Fetch the file again."
                )
            # Doubling keeps the copies linear in the header's size.
            self.data += self.file.read(max(_CHUNK, len(self.data), end - len(self.data)))
            if end > len(self.data):
                raise self._damaged("the file became shorter while it was read")
        return self.at

    def _fits(self, count: int, least: int) -> int:
        """`count` entries of at least `least` bytes can lie between here and the end of the file."""
        if count * least > self.size - self.at:
            raise CheckpointError(
                f"{self.path}: cut short or damaged: {count} entries are announced at byte {self.at}, "
                f"and {self.size - self.at} bytes follow. Fetch the file again."
            )
        return count

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged near byte {self.at}: {what}. {SAME_AS_PUBLISHED}")
