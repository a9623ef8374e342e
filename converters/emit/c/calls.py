"""The calls of a model image and how they are written down.

device_runtime/micro/runtime/graph.h has the same layout in C; docs/explained/model-image.md describes it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = [
    "Attention",
    "BlockMatmul",
    "Buffer",
    "Call",
    "Index",
    "Matmul",
    "Op",
    "Place",
    "Program",
    "Scratch",
    "Step",
    "Store",
]

NOTHING = 0xFFFFFFFF  # an offset of something that is left out
Type = Literal["float32", "int8", "int16"]
ELEMENT_BYTES = {"float32": 4, "int8": 1, "int16": 2, "int32": 4}
_TYPES = {name: i for i, name in enumerate(get_args(Type))}


@dataclass(frozen=True, eq=False)
class Buffer:
    """One tensor in the arena; where it lies is decided by `plan`."""

    name: str
    type: Type
    elements: int

    @property
    def bytes(self) -> int:
        """Rounded up to 16 elements, which kernels read at a time."""
        return -(-self.elements // 16) * 16 * ELEMENT_BYTES[self.type]


class Scratch(Buffer):
    """Memory that one call needs while it runs."""


class Index(enum.IntEnum):
    """What a place moves with."""

    NONE = 0
    TOKEN = 1
    POSITION = 2


@dataclass(frozen=True)
class Place:
    """Elements that a program reads or writes: row r, column c is at offset + r * row_stride + c elements."""

    buffer: Buffer | None  # None: in the constants
    type: Type
    offset: int  # bytes, into the buffer or the constants
    row_stride: int = 0  # bytes
    index: Index = Index.NONE
    index_stride: int = 0  # bytes for each token or position
    scale: float = 1.0  # of integers
    zero_point: int = 0
    one_per_row: bool = False  # one value for all columns of a row


Op = Literal[
    "LOAD", "CONST", "ADD", "SUB", "MUL", "DIV", "MAX", "MIN", "LOGISTIC", "TANH", "EXP", "SQRT", "RSQRT", "NEG",
    "STORE", "MEAN", "SUM",
]  # fmt: skip
_CODES = {name: i for i, name in enumerate(get_args(Op), start=1)}
REGISTERS = 8


@dataclass(frozen=True)
class Step:
    """One operation of a program, on registers."""

    op: Op
    result: int = 0
    operands: tuple[int, ...] = ()
    place: Place | None = None  # of LOAD, STORE, MEAN, SUM
    value: float = 0.0  # of CONST


Offset = Callable[[Buffer], int]  # bytes from the start of the arena


class Call:
    """Something that the engine does with the arena."""

    kind: int

    def reads(self) -> Iterator[Buffer]:
        """Buffers that have to be alive."""
        yield from ()

    def writes(self) -> Iterator[Buffer]:
        """Buffers that it fills, scratch among them."""
        yield from ()

    def words(self, at: Offset) -> list[int]:
        """Everything after the first word, which has the kind and the length."""
        raise NotImplementedError

    def encoded(self, at: Offset) -> bytes:
        """As it lies in the image."""
        words = self.words(at)
        return struct.pack(f"<{len(words) + 1}I", self.kind | (len(words) + 1) << 16, *words)


@dataclass(frozen=True)
class Program(Call):
    """The same few operations for each column of each row."""

    rows: int
    columns: int
    steps: Sequence[Step]
    kind = 1

    def reads(self) -> Iterator[Buffer]:
        for step in self.steps:
            if step.op == "LOAD" and step.place is not None and step.place.buffer is not None:
                yield step.place.buffer

    def writes(self) -> Iterator[Buffer]:
        last = self.steps[-1].place
        if last is not None and last.buffer is not None:
            yield last.buffer

    def words(self, at: Offset) -> list[int]:
        words = [self.rows, self.columns, len(self.steps)]
        for step in self.steps:
            a, b = (*step.operands, 0, 0)[:2]
            # an operation with one operand has it twice, so that the second is a register with a value too
            b = a if len(step.operands) < 2 else b
            words.append(_CODES[step.op] | step.result << 8 | a << 16 | b << 24)
            if step.op == "CONST":
                words.append(_float(step.value))
            elif step.place is not None:
                p = step.place
                space = 0 if p.buffer is not None else 1
                words += [
                    space | _TYPES[p.type] << 8 | p.index << 16 | p.one_per_row << 24,
                    p.offset + (at(p.buffer) if p.buffer is not None else 0),
                    p.row_stride,
                    p.index_stride,
                    _float(p.scale),
                    _signed(p.zero_point),
                ]
        return words


@dataclass(frozen=True)
class Matmul(Call):
    """Rows of int8 weights by one vector. Offsets are into the constants."""

    x: Buffer
    x_offset: int  # bytes
    weights: int
    rows: int
    columns: int  # a multiple of 16
    out: Buffer
    out_offset: int  # bytes
    zero_point: int
    scales: int
    bias: int  # or NOTHING
    shifts: int  # or NOTHING
    scratch: Scratch  # for kernels that widen activations or put them in order

    @property
    def kind(self) -> int:  # type: ignore[override]
        """One for each type of activations."""
        return 2 if self.x.type == "int8" else 3

    def reads(self) -> Iterator[Buffer]:
        yield self.x

    def writes(self) -> Iterator[Buffer]:
        yield self.out
        yield self.scratch

    def words(self, at: Offset) -> list[int]:
        return [
            at(self.x) + self.x_offset,
            self.weights,
            self.rows,
            self.columns,
            at(self.out) + self.out_offset,
            _signed(self.zero_point),
            self.scales,
            self.bias,
            self.shifts,
            at(self.scratch),
        ]


@dataclass(frozen=True)
class BlockMatmul(Matmul):
    """The same with int4 weights in blocks of columns, each of which has a multiplier."""

    multipliers: int  # into the constants

    @property
    def kind(self) -> int:  # type: ignore[override]
        """One for each type of activations."""
        return 6 if self.x.type == "int8" else 7

    def words(self, at: Offset) -> list[int]:
        return [*super().words(at), self.multipliers]


@dataclass(frozen=True)
class Store(Call):
    """Bytes from the arena into the kv_cache."""

    source: Buffer
    source_offset: int  # bytes
    count: int
    to: int  # bytes from the start of the kv_cache
    stride: int
    position_stride: int
    kind = 4

    def reads(self) -> Iterator[Buffer]:
        yield self.source

    def words(self, at: Offset) -> list[int]:
        return [at(self.source) + self.source_offset, self.count, self.to, self.stride, self.position_stride]


@dataclass(frozen=True)
class Attention(Call):
    """The query heads of one key head."""

    queries: Buffer
    queries_offset: int  # bytes
    heads: int
    head_dim: int
    keys: int  # bytes from the start of the kv_cache
    values: int
    value_stride: int
    scratch: Scratch
    score_scale: int  # multiplier | shift << 16
    score_step: float
    share_step: float
    mixed_scale: int
    out: Buffer
    out_offset: int  # bytes
    window: int  # positions that a query sees
    kind = 5

    def reads(self) -> Iterator[Buffer]:
        yield self.queries

    def writes(self) -> Iterator[Buffer]:
        yield self.out
        yield self.scratch

    def words(self, at: Offset) -> list[int]:
        return [
            at(self.queries) + self.queries_offset,
            self.heads,
            self.head_dim,
            self.keys,
            self.values,
            self.value_stride,
            at(self.scratch),
            self.score_scale,
            _float(self.score_step),
            _float(self.share_step),
            self.mixed_scale,
            at(self.out) + self.out_offset,
            self.window,
        ]


def _float(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _signed(value: int) -> int:
    return value & 0xFFFFFFFF
