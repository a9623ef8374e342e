"""Tensors that stay in their file until they are read, one block of rows at a time.

A format's reader says where each tensor lies and how its bytes become floats (`Encoding`). Reading maps
just that range of the file, fills one float32 array and unmaps it: the peak is the result and one block.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from converters.architectures.family import Source
from converters.checkpoints.fields import SAME_AS_PUBLISHED
from converters.network.config import NetworkConfig
from converters.network.tensors import Tensor, tensors
from device_runtime.errors import ArchitectureError, CheckpointError

__all__ = ["FLOAT_ENCODINGS", "BoundTensor", "Bytes", "Encoding", "FloatArray", "StoredTensor", "bind", "sha256_of"]

FloatArray = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_VALUES_PER_BLOCK = 1 << 18  # decoded at once: 1 MiB of float32, small enough for the processor's cache


@dataclass(frozen=True)
class Encoding:
    """How values lie in a file: groups of `values` in `size` bytes each."""

    name: str  # "F32", "Q4_K"
    values: int  # in one group; 1 for plain numbers
    size: int  # bytes of one group
    decode: Callable[[Bytes], npt.NDArray[np.floating]]  # whole groups -> their values, in order

    def bytes_of(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape; its last axis has to be whole groups."""
        return math.prod(shape) // self.values * self.size


def _bfloat16(raw: Bytes) -> npt.NDArray[np.floating]:
    # numpy has no bfloat16: it is the upper half of a float32.
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


FLOAT_ENCODINGS: Mapping[str, Encoding] = {
    "F64": Encoding("F64", 1, 8, lambda raw: raw.view("<f8")),
    "F32": Encoding("F32", 1, 4, lambda raw: raw.view("<f4")),
    "F16": Encoding("F16", 1, 2, lambda raw: raw.view("<f2")),
    "BF16": Encoding("BF16", 1, 2, _bfloat16),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    name: str  # as the file spells it
    shape: tuple[int, ...]  # row-major, last axis contiguous
    encoding: Encoding
    path: Path
    offset: int  # bytes from the start of the file

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.encoding.bytes_of(self.shape)

    def read(self, rows: slice | None = None) -> FloatArray:
        """The tensor as a fresh, C-contiguous float32 array.

        Args:
            rows: `start:stop` of the first axis; None: all of it.

        Raises:
            CheckpointError: the file is gone, or shorter than when it was opened.
        """
        if rows is not None:
            return self._rows(rows).read()
        result = np.empty(math.prod(self.shape), dtype=np.float32)
        group = self.encoding.values
        step = max(1, _VALUES_PER_BLOCK // group)
        with self._mapped() as raw, np.errstate(all="ignore"):
            for first in range(0, result.size // group, step):
                groups = raw[first * self.encoding.size : (first + step) * self.encoding.size]
                result[first * group : (first + step) * group] = self.encoding.decode(
                    np.frombuffer(groups, dtype=np.uint8)
                )
        return result.reshape(self.shape)

    def _rows(self, rows: slice) -> StoredTensor:
        before, shape = (rows.start, *self.shape[1:]), (rows.stop - rows.start, *self.shape[1:])
        if math.prod(self.shape[1:]) % self.encoding.values:
            raise CheckpointError(
                f"{self.path}: rows of tensor {self.name} are not whole groups of {self.encoding.values} values. "
                f"{SAME_AS_PUBLISHED}"
            )
        return replace(self, shape=shape, offset=self.offset + self.encoding.bytes_of(before))

    def same_bytes(self, other: StoredTensor) -> bool:
        """Whether both hold the same values in the same encoding."""
        if (self.shape, self.encoding.name) != (other.shape, other.encoding.name):
            return False
        step = _VALUES_PER_BLOCK * 4
        with self._mapped() as ours, other._mapped() as theirs:
            return all(ours[at : at + step] == theirs[at : at + step] for at in range(0, self.size, step))

    def _mapped(self) -> _Mapping:
        return _Mapping(self)


class _Mapping:
    """The bytes of one tensor, mapped for as long as a `with` block lasts; slices of it are copies."""

    def __init__(self, tensor: StoredTensor) -> None:
        self._tensor = tensor

    def __enter__(self) -> Self:
        tensor = self._tensor
        self._start = tensor.offset % mmap.ALLOCATIONGRANULARITY  # a mapping begins on a page
        try:
            with tensor.path.open("rb") as file:
                self._map = mmap.mmap(
                    file.fileno(),
                    self._start + tensor.size,
                    access=mmap.ACCESS_READ,
                    offset=tensor.offset - self._start,
                )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{tensor.path}: cannot read tensor {tensor.name} ({tensor.size} bytes at {tensor.offset}): {error}. "
                "The file has changed since it was opened; open the checkpoint again."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def __getitem__(self, part: slice) -> bytes:
        return self._map[self._start + part.start : self._start + min(part.stop, self._tensor.size)]


@dataclass(frozen=True)
class BoundTensor:
    """Where a canonical tensor comes from."""

    stored: StoredTensor
    part: Callable[[FloatArray], FloatArray] | None = None  # what was read -> canonical; None: as it is
    rows: slice | None = None  # that are read; None: all

    def read(self) -> FloatArray:
        """The canonical tensor, fresh and C-contiguous."""
        values = self.stored.read(self.rows)
        return values if self.part is None else np.ascontiguousarray(self.part(values), np.float32)


def bind(
    config: NetworkConfig,
    stored: Mapping[str, StoredTensor],
    source: Callable[[Tensor], Source],
    where: str,
    *,
    unused: Callable[[str], bool] = lambda name: False,
) -> dict[str, BoundTensor]:
    """Find every tensor of the network, and nothing that the network would leave out.

    Args:
        config: the network.
        stored: what the checkpoint has, by the names of its format.
        source: where the format has a tensor of the network.
        where: the file or folder, for messages.
        unused: whether a tensor of the format's name may be there without a use.

    Returns:
        canonical name -> where it lies.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        ArchitectureError: a tensor has no place in the network.
    """
    bound: dict[str, BoundTensor] = {}
    used: set[str] = set()
    for wanted in tensors(config):
        name, found = wanted.name, source(wanted)
        shape = wanted.shape if found.shape is None else found.shape
        tensor = stored.get(found.name)
        if tensor is None:
            raise CheckpointError(
                f"{where}: tensor {found.name} ({name}) is missing; expected shape {shape}. "
                "The checkpoint is incomplete, or its configuration is of another model: use the files of one model."
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"{where}: tensor {found.name} ({name}) has shape {tensor.shape}, expected {shape} by the "
                "configuration. The weights and the configuration are of different models: use those of one."
            )
        bound[name] = BoundTensor(tensor, found.part, found.rows)
        used.add(found.name)
    left = sorted(name for name in stored if name not in used and not unused(name))
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise ArchitectureError(
            f"{where}: tensors without a place in the network: {', '.join(left[:3])}{more}. "
            "Leaving them out would change what the model computes; this variant is not supported."
        )
    return bound


def sha256_of(paths: Sequence[Path]) -> str:
    """Digest of the weight file; of several, what `sha256sum FILES… | sha256sum` prints in order of name."""
    digests = list(_digests(sorted(paths, key=lambda path: path.name)))
    if len(digests) == 1:
        return digests[0][1]
    listing = "".join(f"{digest}  {path.name}\n" for path, digest in digests)
    return hashlib.sha256(listing.encode()).hexdigest()


def _digests(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        try:
            with path.open("rb") as file:
                yield path, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error
