"""Read a .tflite file: its tensors, its operators and its constants, mapped and never copied.

Follows schema.fbs version 3 of TensorFlow Lite. The lint and the C engine's tables both read graphs with it. Everything
comes from offsets in the file, so a damaged file can lead anywhere inside the mapping: whatever that gives ends as one
`GraphError`.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.quantize.blocks import unpacked_int4
from device_runtime.errors import ConfigurationError, GraphError

__all__ = ["GraphTensor", "Operator", "SubgraphReader", "TfliteFile"]

_TYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
_OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
# What the generated accessors raise when an offset leads outside of the file, or to something else.
_DAMAGE = (struct.error, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class GraphTensor:
    """One tensor of a graph; two with the same `buffer` share their constant."""

    index: int
    name: str
    type: str  # `float32`, `int8`, …
    shape: tuple[int, ...]
    dynamic: bool  # its shape is known only at run time
    sparse: bool
    variable: bool
    constant: bool
    external: bool  # a constant that is not inside the FlatBuffer
    scale: npt.NDArray[np.float32]  # empty for a tensor that is not quantized
    zero_point: npt.NDArray[np.int64]
    axis: int
    buffer: int
    block_scales: int | None = None  # the tensor with a scale for each block of a row

    @property
    def grid(self) -> tuple[float, int] | None:
        """Scale and zero point, if there is one for all elements."""
        if self.scale.size != 1:
            return None
        return float(self.scale[0]), int(self.zero_point[0]) if self.zero_point.size else 0

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operator:
    """One operator; an operand that is left out is None."""

    name: str  # `FULLY_CONNECTED`, …
    operands: tuple[GraphTensor | None, ...]
    results: tuple[GraphTensor, ...]
    _table: Any = field(repr=False, compare=False)

    @property
    def options(self) -> Any:
        """The object of the generated schema (`SoftmaxOptionsT`, …), or None."""
        return schema.BuiltinOptionsCreator(self._table.BuiltinOptionsType(), self._table.BuiltinOptions())


class TfliteFile:
    """A .tflite file, mapped.

    Raises:
        ConfigurationError: there is no such file.
        GraphError: it is not a TFLite graph.
    """

    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
        except ValueError:  # an empty file cannot be mapped
            raise GraphError(f"{path} is empty; write the graph again.") from None
        if data[4:8] != b"TFL3":
            raise GraphError(f"{path} is not a TFLite graph: bytes 4 to 8 are {data[4:8]!r}, expected b'TFL3'.")
        self.path, self.size = path, len(data)
        self._data = data
        with self.damage_reported():
            self._model = schema.Model.GetRootAs(data, 0)
            self.subgraph_count = self._model.SubgraphsLength()

    @contextmanager
    def damage_reported(self) -> Iterator[None]:
        """What reading a damaged file raises becomes a GraphError."""
        try:
            yield
        except _DAMAGE as error:
            raise GraphError(f"{self.path} is damaged: {type(error).__name__}: {error}. Write it again.") from None

    def subgraphs(self) -> Iterator[SubgraphReader]:
        """All functions of the file."""
        for i in range(_bounded(self.subgraph_count, self.size)):
            yield SubgraphReader(self._model, i, self.size)


class SubgraphReader:
    """One function of a graph. A tensor is read when it is asked for, once."""

    def __init__(self, model: Any, index: int, file_bytes: int) -> None:
        self._model, self._graph, self._file_bytes = model, model.Subgraphs(index), file_bytes
        self.tensor_count = _bounded(self._graph.TensorsLength(), file_bytes)
        self.inputs = [int(i) for i in _array(self._graph.InputsAsNumpy(), self._graph.InputsLength(), np.int32)]
        self.outputs = [int(i) for i in _array(self._graph.OutputsAsNumpy(), self._graph.OutputsLength(), np.int32)]

    @functools.cache  # noqa: B019  # lives as long as the reader
    def tensor(self, index: int) -> GraphTensor:
        """The tensor of this index."""
        if not 0 <= index < self._graph.TensorsLength():
            raise IndexError(f"there is no tensor {index}")
        t = self._graph.Tensors(index)
        shape = tuple(int(n) for n in _array(t.ShapeAsNumpy(), t.ShapeLength(), np.int32))
        signature = _array(t.ShapeSignatureAsNumpy(), t.ShapeSignatureLength(), np.int32)
        buffer = self._model.Buffers(t.Buffer())
        scale, zero_point, axis = _quantization(t.Quantization())
        return GraphTensor(
            index=index,
            name=(t.Name() or b"").decode("utf-8", "replace") or f"tensor {index}",
            type=_TYPES.get(t.Type(), f"type {t.Type()}"),
            shape=shape,
            dynamic=any(n < 0 for n in (*shape, *signature.tolist())),
            sparse=t.Sparsity() is not None,
            variable=bool(t.IsVariable()),
            constant=t.Buffer() > 0 and (buffer.DataLength() > 0 or buffer.Offset() > 1),
            external=buffer.Offset() > 1,
            scale=scale,
            zero_point=zero_point,
            axis=axis,
            buffer=int(t.Buffer()),
            block_scales=_block_scales(t.Quantization()),
        )

    def operators(self) -> Iterator[Operator]:
        """All operators, in the order in which they run."""
        for i in range(_bounded(self._graph.OperatorsLength(), self._file_bytes)):
            op = self._graph.Operators(i)
            operands = _array(op.InputsAsNumpy(), op.InputsLength(), np.int32)
            results = _array(op.OutputsAsNumpy(), op.OutputsLength(), np.int32)
            yield Operator(
                self._name(op),
                tuple(None if index == -1 else self.tensor(int(index)) for index in operands),
                tuple(self.tensor(int(index)) for index in results),
                op,
            )

    def values(self, t: GraphTensor) -> npt.NDArray[Any]:
        """A constant's elements in its shape, without a copy; int4 as int8, with one.

        Raises:
            ValueError: its bytes are not those of its shape, or it is not inside the FlatBuffer.
        """
        if not t.constant or t.external:
            raise ValueError(f"{t.name} has no constant inside the FlatBuffer")
        data = self._model.Buffers(t.buffer).DataAsNumpy()
        if t.type == "int4":
            return unpacked_int4(np.asarray(data).reshape(t.shape[0], -1)).reshape(t.shape)
        return np.asarray(data).view(np.dtype(t.type)).reshape(t.shape)

    def _name(self, op: Any) -> str:
        code = self._model.OperatorCodes(op.OpcodeIndex())
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        return str(_OPERATORS.get(builtin, f"operator {builtin}"))


def _bounded(length: int, file_bytes: int) -> int:
    """A vector's length, if the file can hold it: its elements are offsets of four bytes."""
    if length > file_bytes // 4:
        raise ValueError(f"a vector of {length:,} elements in a file of {file_bytes:,} bytes")
    return length


def _array(values: Any, length: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A vector of the FlatBuffer; the accessors give 0 for one that is not there."""
    return np.asarray(values) if length else np.empty(0, dtype)


def _block_scales(q: Any) -> int | None:
    """The tensor that BlockwiseQuantization names."""
    if q is None or q.DetailsType() != schema.QuantizationDetails.BlockwiseQuantization:
        return None
    table, details = q.Details(), schema.BlockwiseQuantization()
    details.Init(table.Bytes, table.Pos)
    return int(details.Scales())


def _quantization(q: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
    """Scales, zero points and axis of quantization parameters, which may be None."""
    if q is None:
        return np.empty(0, np.float32), np.empty(0, np.int64), 0
    scale = _array(q.ScaleAsNumpy(), q.ScaleLength(), np.float32)
    return scale, _array(q.ZeroPointAsNumpy(), q.ZeroPointLength(), np.int64), int(q.QuantizedDimension())
