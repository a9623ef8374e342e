"""The operations of one elementwise program, from the operators of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from converters.emit.c.calls import ELEMENT_BYTES, REGISTERS, Buffer, Index, Op, Place, Step, Type
from converters.emit.c.lowering.operators import refused, require_plain, some
from converters.emit.tflite_read import GraphTensor, Operator, SubgraphReader
from device_runtime.errors import GraphError

__all__ = ["BINARY", "UNARY", "ProgramBody", "Source", "joints", "shared_rows"]

BINARY: dict[str, Op] = {
    "ADD": "ADD", "SUB": "SUB", "MUL": "MUL", "DIV": "DIV", "MAXIMUM": "MAX", "MINIMUM": "MIN",
}  # fmt: skip
UNARY: dict[str, Op] = {
    "LOGISTIC": "LOGISTIC", "TANH": "TANH", "EXP": "EXP", "SQRT": "SQRT", "RSQRT": "RSQRT", "NEG": "NEG",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Elements that lie somewhere, one after the other."""

    buffer: Buffer | None
    type: Type
    offset: int  # bytes
    elements: int
    index: Index = Index.NONE
    index_stride: int = 0
    scale: float = 1.0
    zero_point: int = 0


class Tensors(Protocol):
    """What a program has to know of the graph around it."""

    graph: SubgraphReader
    made_by: Mapping[int, Operator]

    def source(self, t: GraphTensor) -> Source | None:
        """Where a tensor lies, if it lies anywhere."""

    def table(self, values: npt.NDArray[np.generic]) -> Source:
        """Where constant floats lie."""

    def computed_by(self, t: GraphTensor, root: int) -> Operator | None:
        """The operator that a program on the way to the tensor `root` computes for `t`; None if `t` lies somewhere."""


def shared_rows(tensors: Tensors, value: GraphTensor) -> int:
    """Rows that all operators on the way to `value` share: as many as the finest of them has."""
    rows = 1
    for op in _on_the_way(tensors, value, value.index):
        shapes = {t.shape for t in (*op.operands, *op.results) if t is not None and t.shape}
        if op.name != "RESHAPE" and len(shapes) > 1:
            result = op.results[0]
            rows = max(rows, result.size // result.shape[-1])
    return rows


def joints(tensors: Tensors, t: GraphTensor, rows: int, root: int, start: int = 0) -> Iterator[int]:
    """Columns at which a CONCATENATION on the way to `t` goes from one part to the next."""
    op = tensors.computed_by(t, root)
    if op is None:
        return
    if op.name == "CONCATENATION":
        for part in op.operands:
            yield start
            yield from joints(tensors, some(part), rows, root, start)
            start += some(part).size // rows
    elif op.name in BINARY or op.name in UNARY or op.name == "RESHAPE":
        for part in op.operands[: 1 if op.name == "RESHAPE" else 2]:
            if part is not None and not part.constant and part.size == t.size:
                yield from joints(tensors, part, rows, root, start)


def _on_the_way(tensors: Tensors, t: GraphTensor, root: int) -> Iterator[Operator]:
    """The operators that a program computes to get `t`, each as often as it is read."""
    op = tensors.computed_by(t, root)
    if op is None:
        return
    yield op
    for operand in op.operands[:1] if op.name in ("RESHAPE", "SLICE") else op.operands:
        if operand is not None and not operand.constant:
            yield from _on_the_way(tensors, operand, root)


class ProgramBody:
    """The operations of one program, over columns start … stop of each row."""

    def __init__(self, tensors: Tensors, rows: int, root: int) -> None:
        self._tensors, self._rows, self._root = tensors, rows, root
        self._steps: list[tuple[Op, tuple[int, ...], Place | None, float]] = []  # results are their own numbers
        self._known: dict[tuple[Any, ...], int] = {}

    def value(self, t: GraphTensor, start: int, stop: int) -> int:
        """The number of the operation that gives columns start … stop of a tensor."""
        key = (t.index, start, stop)
        if key not in self._known:
            self._known[key] = self._computed(t, start, stop)
        return self._known[key]

    def _computed(self, t: GraphTensor, start: int, stop: int) -> int:
        if t.constant and self._rows > 1 and stop - start < t.size // self._rows:
            # with nothing between two rows, the engine takes all of them where they lie
            cut = self._tensors.graph.values(t).reshape(self._rows, -1)[:, start:stop]
            return self._load(self._tensors.table(cut), stop - start, 0)
        source = self._tensors.source(t) if t.index != self._root else None
        if source is not None:
            return self._load(source, t.size // self._rows, start)
        op = self._tensors.made_by.get(t.index)
        if op is None:
            raise GraphError(f"{t.name} is read, and nothing makes it; the graph is damaged.")
        x = some(op.operands[0])
        if op.name == "RESHAPE":
            return self.value(x, start, stop)
        if op.name == "SLICE":
            begin = self._tensors.graph.values(some(op.operands[1]))
            if any(begin[:-1]) or x.shape[:-1] != t.shape[:-1] or x.size // x.shape[-1] != self._rows:
                raise refused(op, f"it cuts {list(t.shape)} out of {list(x.shape)}")
            return self.value(x, start + int(begin[-1]), stop + int(begin[-1]))
        if op.name == "CONCATENATION":
            if op.options.axis not in (-1, len(t.shape) - 1) or t.size // t.shape[-1] != self._rows:
                raise refused(op, f"it joins along axis {op.options.axis} of {list(t.shape)}")
            for part in op.operands:
                columns = some(part).size // self._rows
                if start < columns:
                    return self.value(some(part), start, stop)
                start, stop = start - columns, stop - columns
        if op.name in UNARY:
            return self._add(UNARY[op.name], (self.value(x, start, stop),))
        if op.name in BINARY:
            if op.name in ("ADD", "SUB", "MUL", "DIV"):
                require_plain(op)
            first, second = (self._operand(op, some(o), start, stop) for o in op.operands)
            return self._add(BINARY[op.name], (first, second))
        raise refused(op, "there is no call for it")

    def _operand(self, op: Operator, x: GraphTensor, start: int, stop: int) -> int:
        """One side of a binary operator, which may be broadcast."""
        result, rows = op.results[0], self._rows
        columns = result.size // rows
        if x.size == result.size:
            return self.value(x, start, stop)
        if x.constant and x.size == 1:
            return self._constant(float(self._tensors.graph.values(x).ravel()[0]))
        source = self._tensors.source(x)
        if source is None:
            raise refused(op, f"{x.name} of {list(x.shape)} is computed on the way to {list(result.shape)}")
        if x.size == 1 or (x.shape[-1] == 1 and x.size == rows and result.shape[-1] == columns):
            return self._load(source, 1 if x.size > 1 else 0, 0, one_per_row=True)
        if x.size == x.shape[-1] == result.shape[-1] == columns:
            return self._load(source, 0, start)
        raise refused(op, f"{list(x.shape)} is broadcast to {list(result.shape)} in {rows} rows")

    def _load(self, source: Source, row_elements: int, start: int, one_per_row: bool = False) -> int:
        size = ELEMENT_BYTES[source.type]
        stride = row_elements * size if self._rows > 1 else 0
        place = Place(
            source.buffer, source.type, source.offset + start * size, stride, source.index, source.index_stride,
            source.scale, source.zero_point, one_per_row,
        )  # fmt: skip
        return self._add("LOAD", (), place)

    def _constant(self, value: float) -> int:
        return self._add("CONST", (), value=value)

    def _add(self, op: Op, operands: tuple[int, ...], place: Place | None = None, value: float = 0.0) -> int:
        step = (op, operands, place, value)
        if step not in self._steps:
            self._steps.append(step)
        return self._steps.index(step)

    def finished(self, last: Op, value: int, to: Place) -> list[Step]:
        """With registers: one is free again after the last operation that reads it."""
        steps = [*self._steps, (last, (value,), to, 0.0)]
        last_use = {operand: i for i, (_, operands, _, _) in enumerate(steps) for operand in operands}
        free, register, result = list(range(REGISTERS)), dict[int, int](), list[Step]()
        for i, (op, operands, place, constant) in enumerate(steps):
            used = tuple(register[o] for o in operands)
            for o in set(operands):
                if last_use[o] == i:
                    free.append(register[o])
            if not free:
                raise GraphError(f"{to.buffer.name if to.buffer else '?'} needs more than {REGISTERS} registers.")
            free.sort()
            register[i] = free.pop(0) if i in last_use else 0
            result.append(Step(op, register[i], used, place, constant))
        return result
