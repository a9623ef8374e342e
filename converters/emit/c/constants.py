"""Constants in the kernels' layout, each stored once.

Weights: int8 [rows][columns], columns rounded up to 16 with zeros, so that no kernel has a rest to look after; every
constant starts at a multiple of 16. They are spooled to disk, so that a model is never whole in memory.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converters.quantize.blocks import BLOCK
from device_runtime.errors import GraphError

__all__ = ["Constants", "multiplier_and_shift", "packed_multiplier", "padded"]

ALIGNMENT = 16
_ROWS_AT_A_TIME = 4096
_BLOCK_ROWS = 4  # of int4 weights, that lie side by side


def padded(columns: int) -> int:
    """Columns of a row of weights as it is stored."""
    return -(-columns // ALIGNMENT) * ALIGNMENT


class Constants:
    """A spool of constants; an offset is in bytes from its start."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open until `close`
        self._size = 0
        self._known: dict[tuple[object, ...], int] = {}

    def array(self, values: npt.NDArray[np.generic]) -> int:
        """A table; two with the same bytes are one."""
        data = np.ascontiguousarray(values).tobytes()
        key = (hashlib.sha256(data).digest(),)
        if key not in self._known:
            self._known[key] = self._start()
            self._write(data)
        return self._known[key]

    def weights(self, buffer: int, values: npt.NDArray[np.int8]) -> int:
        """A matrix (rows, columns), of the graph's buffer of this number."""
        key = ("weights", buffer)
        if key not in self._known:
            self._known[key] = self._start()
            rows, columns = values.shape
            excess = padded(columns) - columns
            for start in range(0, rows, _ROWS_AT_A_TIME):
                block = values[start : start + _ROWS_AT_A_TIME]
                self._write(np.pad(block, ((0, 0), (0, excess))).tobytes() if excess else block.tobytes())
        return self._known[key]

    def block_weights(
        self, buffer: int, values: npt.NDArray[np.int8], multipliers: npt.NDArray[np.integer]
    ) -> tuple[int, int]:
        """A matrix in int4, of the graph's buffer of this number, and its multipliers: where each of the two lies.

        As device_runtime/micro/kernels/blocks/blocks.h describes: the blocks of four rows side by side.

        Args:
            values: (rows, columns), in -8 … 7.
            multipliers: (rows, blocks), in 1 … 255.
        """
        key = ("weights", buffer)
        if key not in self._known:
            rows, count = multipliers.shape
            excess = -rows % _BLOCK_ROWS
            stored = np.pad(values, ((0, excess), (0, 0))) + np.int8(8)
            halves = stored.view(np.uint8).reshape(-1, _BLOCK_ROWS, count, 2, BLOCK // 2)
            packed = halves[:, :, :, 0] | halves[:, :, :, 1] << np.uint8(4)  # (groups, four rows, blocks, 16)
            self._known[key] = self._start()
            self._write(np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).tobytes())
        factors = np.pad(multipliers, ((0, -multipliers.shape[0] % _BLOCK_ROWS), (0, 0)), constant_values=1)
        groups = factors.astype(np.uint8).reshape(-1, _BLOCK_ROWS, factors.shape[1])
        return self._known[key], self.array(groups.transpose(0, 2, 1))

    @contextmanager
    def mapped(self) -> Iterator[mmap.mmap | bytes]:
        """All of them."""
        self._file.flush()
        if not self._size:
            yield b""
            return
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data

    def close(self) -> None:
        """Remove the spool."""
        self._file.close()

    def _start(self) -> int:
        self._write(bytes(-self._size % ALIGNMENT))
        return self._size

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._size += len(data)


def multiplier_and_shift(scale: float) -> tuple[int, int]:
    """scale = multiplier * 2^(shift - 31), as TensorFlow Lite's QuantizeMultiplier rounds it."""
    if scale == 0:
        return 0, 0
    fraction, shift = math.frexp(scale)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def packed_multiplier(scale: float) -> int:
    """multiplier of 16 bits | right shift << 16: what TensorFlow Lite does with sums of 64 bits.

    Raises:
        GraphError: the scale is too large for it.
    """
    multiplier, shift = multiplier_and_shift(scale)
    reduced = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    if not -31 <= shift < 8:
        raise GraphError(f"The C engine's int16 matmuls take scales below 128; this graph has one of {scale:g}.")
    return reduced | (15 - shift) << 16
