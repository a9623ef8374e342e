"""Weights as int4 in blocks: weight ≈ values * scale + offset, one scale and one offset for each block of a row.

XNNPACK multiplies with `values * scale` and knows no offsets; a graph adds them with a small matmul of the sums of the
input's blocks. Offsets are worth it: of 4 bits, a symmetric grid uses what the larger of its two sides needs.

A checkpoint that was published in 4 bits has such a grid already. `own_grid` finds it again in the floats, whatever
format they came from, and nothing is rounded a second time. Other weights are rounded here, column by column, each
error made up for in the columns still to come (see `weights.py`).

The C engine multiplies integers only: there, the scales of a row are whole multiples of one step, and blocks are
symmetric (`quantize_steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from converters.network.weights import FloatArray
from converters.quantize.weights import Hessian

__all__ = [
    "BLOCK", "BlockRows", "StepRows", "own_grid", "packed_int4", "quantize_blocks", "quantize_steps", "rounded_scale",
    "unpacked_int4",
]  # fmt: skip

BLOCK = 32  # columns; what Q4_0, Q4_1 and Q4_K share
_LOW, _HIGH = -8, 7
_STEPS = 15
_SMALLEST = np.float32(2.0**-14)  # of a scale: LiteRT wants normal float16 numbers above zero
_LARGEST = np.float32(2.0**15)
_SHRUNK = (1.0, 0.94, 0.88, 0.82)  # ranges that are tried for a block, as shares of the whole
_GRID_ERROR = 2e-3  # of a step: what float16 scales and float32 sums leave of a grid
_SMALLEST_STEP = np.float32(2.0**-40)  # of a row of zeros
_MOST_STEPS = 255  # of a block's scale
_STEPS_HEADROOM = 1.1  # of a row's largest scale: errors of columns before a block make its weights larger
_BATCH = 64  # columns whose errors are spread among themselves before they reach the rest


@dataclass(frozen=True)
class BlockRows:
    """weight[:, b] ≈ values[:, b] * scale[:, b // block] + offset[:, b // block]"""

    values: npt.NDArray[np.int8]  # (rows, columns), in -8 … 7
    scale: FloatArray  # (rows, columns / block); each is a bfloat16 and a normal float16 as well
    offset: FloatArray | None  # as `scale`, any float32; None: symmetric

    @property
    def block(self) -> int:
        """Columns that share a scale."""
        return int(self.values.shape[1] // self.scale.shape[1])

    def floats(self) -> FloatArray:
        """What the integers stand for, float32 (rows, columns)."""
        blocks = self.values.reshape(*self.scale.shape, self.block) * self.scale[..., None]
        if self.offset is not None:
            blocks = blocks + self.offset[..., None]
        return np.asarray(blocks, np.float32).reshape(self.values.shape)

    def times(self, factor: FloatArray) -> BlockRows:
        """The same with each block multiplied: `factor` is above zero and broadcasts to (rows, columns / block)."""
        exact = self.scale * factor
        scale = rounded_scale(exact)
        offset = None if self.offset is None else self.offset * factor
        return _recentered(self.values, exact, scale, offset)


@dataclass(frozen=True)
class StepRows:
    """weight[:, b] ≈ values[:, b] * multipliers[:, b // BLOCK] * step: integers but for one number a row."""

    values: npt.NDArray[np.int8]  # (rows, columns), in -8 … 7
    multipliers: npt.NDArray[np.uint8]  # (rows, columns / BLOCK), from 1 on
    step: FloatArray  # (rows,)

    def floats(self) -> FloatArray:
        """What the integers stand for, float32 (rows, columns)."""
        whole = self.values * np.repeat(self.multipliers.astype(np.int16), BLOCK, axis=1)
        return np.asarray(whole * self.step[:, None], np.float32)


class RoundScales(Protocol):
    """Scales that a format has."""

    def __call__(self, scale: FloatArray, block: int) -> FloatArray:
        """Those near `scale`, (rows,), for this block of each row."""


def rounded_scale(scale: FloatArray) -> FloatArray:
    """The nearest bfloat16 that is a normal float16 too: the file has float16, and XNNPACK computes with bfloat16."""
    bits = np.clip(scale, _SMALLEST, _LARGEST).astype(np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.asarray(nearest.view(np.float32))


def packed_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two in a byte, the even column in the low half: (rows, columns / 2)."""
    halves = values.view(np.uint8) & np.uint8(15)
    return np.asarray(halves[:, ::2] | (halves[:, 1::2] << np.uint8(4)))


def unpacked_int4(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """The reverse of `packed_int4`."""
    out = np.empty((packed.shape[0], packed.shape[1] * 2), np.int8)
    out[:, ::2] = (packed << np.uint8(4)).view(np.int8) >> 4
    out[:, 1::2] = packed.view(np.int8) >> 4
    return out


def own_grid(weight: FloatArray, block: int = BLOCK) -> BlockRows | None:
    """The grid of 16 values or fewer on which every block of these weights lies already; None where there is none.

    Args:
        weight: (rows, columns), as a checkpoint's own blocks lie: neither rotated nor scaled by column.
    """
    rows, columns = weight.shape
    if columns % block:
        return None
    blocks = weight.reshape(-1, block)
    low = blocks.min(axis=1, keepdims=True)
    span = blocks.max(axis=1, keepdims=True) - low
    steps = np.zeros((len(blocks), 1), np.float32)  # between the smallest and the largest of a block
    left = np.flatnonzero(span[:, 0] > 0)
    for count in range(_STEPS, 0, -1):
        # Most blocks use the whole grid; of those that do not, the coarsest grid that holds them is found last.
        if len(left) == 0:
            break
        places = (blocks[left] - low[left]) * (np.float32(count) / span[left])
        fits = np.abs(places - np.rint(places)).max(axis=1) < _GRID_ERROR
        steps[left[fits], 0] = count
        left = left[~fits]
    if len(left):
        return None
    exact = np.where(steps > 0, span / np.maximum(steps, 1), 0).astype(np.float32)
    values = np.rint((blocks - low) / np.where(exact > 0, exact, 1)).astype(np.int8) + np.int8(_LOW)
    offset = low - np.float32(_LOW) * exact
    shape = (rows, columns // block)
    exact = exact.reshape(shape)
    return _recentered(values.reshape(rows, columns), exact, rounded_scale(exact), offset.reshape(shape))


def quantize_steps(weight: FloatArray, cuts: Sequence[int] = (), hessian: Hessian | None = None) -> list[StepRows]:
    """Round weights to symmetric int4 whose block scales are multiples of a step.

    Args:
        weight: (rows, columns), columns a multiple of BLOCK.
        cuts: columns, multiples of BLOCK, at which a row's step changes.
        hessian: of what the matmul reads; None rounds every weight to the nearest.

    Returns:
        One result for each range of columns.
    """
    bounds = [0, *(cut // BLOCK for cut in cuts), weight.shape[1] // BLOCK]
    peaks = np.abs(weight).reshape(len(weight), -1, BLOCK).max(axis=2)  # (rows, blocks)
    steps = np.empty_like(peaks)
    most = _STEPS * _MOST_STEPS / 2 / (1 if hessian is None else _STEPS_HEADROOM)
    for left, right in pairwise(bounds):
        steps[:, left:right] = peaks[:, left:right].max(axis=1, keepdims=True) / np.float32(most)
    steps = np.maximum(steps, _SMALLEST_STEP)

    def multiples(scale: FloatArray, block: int) -> FloatArray:
        return np.asarray(np.clip(np.rint(scale / steps[:, block]), 1, _MOST_STEPS) * steps[:, block])

    rows = quantize_blocks(weight, BLOCK, hessian, offsets=False, rounded=multiples)
    multipliers = np.rint(rows.scale / steps).astype(np.uint8)
    return [
        StepRows(
            np.ascontiguousarray(rows.values[:, left * BLOCK : right * BLOCK]),
            np.ascontiguousarray(multipliers[:, left:right]),
            steps[:, left].copy(),
        )
        for left, right in pairwise(bounds)
    ]


def quantize_blocks(
    weight: FloatArray,
    block: int = BLOCK,
    hessian: Hessian | None = None,
    offsets: bool = True,
    rounded: RoundScales = lambda scale, block: rounded_scale(scale),
) -> BlockRows:
    """Round weights to int4.

    Args:
        weight: (rows, columns).
        block: columns that share a scale; divides them.
        hessian: of what the matmul reads; None rounds every weight to the nearest.
        offsets: give each block an offset; else the grid is symmetric around zero.
        rounded: scales that there are, near those that fit best.
    """
    columns = weight.T.copy()  # (columns, rows)
    values = np.empty(columns.shape, np.int8)
    count = len(columns) // block
    scale = np.empty((count, columns.shape[1]), np.float32)
    offset = np.zeros_like(scale)
    inverse = None if hessian is None else hessian.inverse_cholesky()
    if inverse is None:
        for b in range(count):
            part = columns[b * block : (b + 1) * block]
            scale[b], offset[b] = _grid(part, offsets, partial(rounded, block=b))
            values[b * block : (b + 1) * block] = _rounded(part, scale[b], offset[b])
    else:
        _compensated(columns, block, inverse, offsets, rounded, values, scale, offset)
    return BlockRows(
        np.ascontiguousarray(values.T), np.ascontiguousarray(scale.T), offset.T.copy() if offsets else None
    )


def _compensated(
    columns: FloatArray,
    block: int,
    inverse: FloatArray,
    offsets: bool,
    rounded: RoundScales,
    values: npt.NDArray[np.int8],
    scale: FloatArray,
    offset: FloatArray,
) -> None:
    """Round one column after the other; a block's grid is fixed when the errors before it have reached it."""
    for start in range(0, len(columns), _BATCH):
        stop = min(start + _BATCH, len(columns))
        errors = np.empty((stop - start, columns.shape[1]), np.float32)
        for j in range(start, stop):
            b = j // block
            if j % block == 0:
                scale[b], offset[b] = _grid(columns[j : j + block], offsets, partial(rounded, block=b))
            values[j] = _rounded(columns[j], scale[b], offset[b])
            errors[j - start] = (columns[j] - (values[j] * scale[b] + offset[b])) / inverse[j, j]
            columns[j + 1 : stop] -= inverse[j, j + 1 : stop, None] * errors[j - start]
        columns[stop:] -= inverse[start:stop, stop:].T @ errors


def _rounded(columns: FloatArray, scale: FloatArray, offset: FloatArray) -> npt.NDArray[np.int8]:
    return np.asarray(np.clip(np.rint((columns - offset) / scale), _LOW, _HIGH), np.int8)


def _grid(
    part: FloatArray, offsets: bool, rounded: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Scale and offset of each row of a block, (block, rows): of some ranges, the one with the least squared error."""
    low, high = part.min(axis=0), part.max(axis=0)
    if not offsets:  # the side that is larger gets the eight steps
        peak = np.maximum(-low, high)
        low, high = -peak, peak
    best: tuple[FloatArray, FloatArray] | None = None
    least = np.full(part.shape[1], np.inf, np.float32)
    for share in _SHRUNK:
        exact = (high - low) * np.float32(share / _STEPS)
        scale = rounded(exact)
        middle = (high + low) / 2
        offset = np.asarray(middle + scale / 2 if offsets else np.zeros_like(scale))  # -8 … 7 has its middle at -1/2
        error = np.square(_rounded(part, scale, offset) * scale + offset - part).sum(axis=0)
        if best is None:
            best, least = (scale, offset), error
            continue
        better = error < least
        best = (np.where(better, scale, best[0]), np.where(better, offset, best[1]))
        least = np.minimum(least, error)
    assert best is not None
    return best


def _recentered(
    values: npt.NDArray[np.int8], exact: FloatArray, scale: FloatArray, offset: FloatArray | None
) -> BlockRows:
    """With rounded scales: the offsets take over what rounding has changed in the middle of each block."""
    if offset is None:
        return BlockRows(values, scale, None)
    middle = values.reshape(*scale.shape, -1).mean(axis=2, dtype=np.float32)
    return BlockRows(values, scale, np.asarray(offset + (exact - scale) * middle, np.float32))
