"""Tensors, operators, buffers and signatures -> the bytes of a .tflite file.

Follows schema.fbs version 3 of TensorFlow Lite, through the object API that the `ai-edge-litert`
package generates from it. Constants are spooled to disk as they are made, so that a model is never
whole in memory: with `external=True` the file is a small FlatBuffer followed by the raw constants
(`Buffer.offset` and `Buffer.size` of the schema), which LiteRT maps and which may pass 2 GiB; with
`external=False` the constants are inside the FlatBuffer, as TFLite Micro and tflite-runtime need them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

__all__ = ["BlockQuantization", "Constant", "GraphWriter", "Quantization", "Subgraph", "Tensor"]

ALIGNMENT = 64  # bytes; XNNPACK and SIMD kernels load whole vectors
INNER_ALIGNMENT = 16  # bytes, of constants inside the FlatBuffer: `force_align` of Buffer.data in schema.fbs
_UNSET_OFFSET = 1 << 62  # a placeholder for an offset until the FlatBuffer's length is known
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
_OPERATOR_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}


@dataclass(frozen=True)
class Quantization:
    """real = (stored - zero_point) * scale, per tensor or along `axis`."""

    scale: npt.NDArray[np.float32]  # (1,), or one per slice of `axis`
    zero_point: npt.NDArray[np.int64]  # as `scale`
    axis: int = 0

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int = 0) -> Quantization:
        """One scale and one zero point for the whole tensor."""
        return cls(np.array([scale], np.float32), np.array([zero_point], np.int64))

    @classmethod
    def per_channel(cls, scale: npt.NDArray[np.float32], axis: int = 0) -> Quantization:
        """Symmetric: one scale per slice of `axis`, zero points 0."""
        return cls(scale.astype(np.float32, copy=False), np.zeros(scale.size, np.int64), axis)


@dataclass(frozen=True)
class BlockQuantization:
    """real = stored * scale, with one scale for each block of a row (BlockwiseQuantization of the schema)."""

    # (rows, columns / block), above zero; LiteRT wants normal float16 numbers
    scale: Constant | npt.NDArray[np.float32]
    block: int  # columns
    # (rows,): what each scale of a row is a whole multiple of, 1 to 255; None: nothing. TensorFlow Lite ignores it, the
    # C engine multiplies with the whole numbers.
    step: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Constant:
    """Constant bytes that any number of tensors, in any subgraph, may share."""

    buffer: int  # index into the model's buffers
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    int4: bool = False  # two int8 values of -8 … 7 in a byte, the even column in the low half


@dataclass(frozen=True)
class Tensor:
    """A tensor of one subgraph."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    quantization: Quantization | None = None


class _SharedQuantization(schema.QuantizationParametersT):  # type: ignore[misc]  # generated, untyped
    """Packed once however many tensors name it: every signature has the same scales, a tenth of a small model."""

    _packed: tuple[Any, Any] = (None, None)

    def Pack(self, builder: Any) -> Any:  # the name that the generated code has
        if self._packed[0] is not builder:
            self._packed = (builder, super().Pack(builder))
        return self._packed[1]


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # generated, untyped
    """The generated code forgets the schema's alignment, and TFLite Micro reads a constant where it lies."""

    def Pack(self, builder: Any) -> Any:  # the name that the generated code has
        if self.data is not None:
            builder.Prep(INNER_ALIGNMENT, self.data.size)
        return super().Pack(builder)


@dataclass
class _Spooled:
    offset: int  # bytes from the start of the spool
    size: int  # bytes


class Subgraph:
    """One function of the model. Operators are added in the order in which they run."""

    def __init__(self, writer: GraphWriter, name: str) -> None:
        self._writer = writer
        self._name = name
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._constants: dict[tuple[int, tuple[int, ...], bool], Tensor] = {}
        self.inputs: dict[str, Tensor] = {}  # by the name they have in the signature
        self.outputs: dict[str, Tensor] = {}

    @property
    def tensors(self) -> list[Any]:
        """The schema's objects (`TensorT`), by index."""
        return self._tensors

    @property
    def operators(self) -> list[Any]:
        """The schema's objects (`OperatorT`), in the order in which they run."""
        return self._operators

    @property
    def coded_operators(self) -> list[tuple[int, Any]]:
        """Each with its `schema.BuiltinOperator`."""
        codes = list(self._writer.operator_codes)
        return [(codes[operator.opcodeIndex][0], operator) for operator in self._operators]

    def _tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        quantization: Quantization | None = None,
        buffer: int = 0,
        variable: bool = False,
    ) -> Tensor:
        t = schema.TensorT()
        dtype = np.dtype(dtype)
        t.name, t.shape, t.type = name.encode(), np.array(shape, np.int32), _TYPES[dtype]
        t.buffer, t.isVariable = buffer, variable
        if quantization is not None:
            t.quantization = self._writer.quantization(quantization)
        self._tensors.append(t)
        return Tensor(len(self._tensors) - 1, name, tuple(shape), dtype, quantization)

    def input(
        self,
        name: str,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        quantization: Quantization | None = None,
        *,
        resizable: int | None = None,
    ) -> Tensor:
        """Declare an input; `name` is its name in the signature, `resizable` an axis of which a run may have more or
        less than `shape` says."""
        made = self.inputs[name] = self._tensor(name, shape, dtype, quantization)
        if resizable is not None:
            sizes = [-1 if axis == resizable else size for axis, size in enumerate(shape)]
            self._tensors[made.index].shapeSignature = np.array(sizes, np.int32)
        return made

    def output(self, name: str, tensor: Tensor) -> None:
        """Declare an output; `name` is its name in the signature."""
        self.outputs[name] = tensor

    def variable(
        self, name: str, shape: Sequence[int], dtype: npt.DTypeLike, quantization: Quantization | None = None
    ) -> Tensor:
        """A tensor that keeps its content from one invocation to the next."""
        return self._tensor(name, shape, dtype, quantization, variable=True)

    def constant(
        self,
        name: str,
        value: npt.NDArray[Any] | Constant,
        quantization: Quantization | BlockQuantization | None = None,
        shape: Sequence[int] | None = None,
    ) -> Tensor:
        """A constant tensor; equal constants of one subgraph become one tensor."""
        constant = value if isinstance(value, Constant) else self._writer.constant(value)
        shape = tuple(shape) if shape is not None else constant.shape
        key = (constant.buffer, shape, quantization is not None)
        if key not in self._constants:
            plain = quantization if isinstance(quantization, Quantization) else None
            made = self._tensor(name, shape, constant.dtype, plain, constant.buffer)
            if constant.int4:
                self._tensors[made.index].type = schema.TensorType.INT4
            if isinstance(quantization, BlockQuantization):
                self._tensors[made.index].quantization = self._block_quantization(name, quantization)
            self._constants[key] = made
        return self._constants[key]

    def _block_quantization(self, name: str, quantization: BlockQuantization) -> Any:
        """The schema's object, which names a tensor of this very subgraph."""
        details = schema.BlockwiseQuantizationT()
        details.scales = self.constant(f"{name}.scale", quantization.scale).index
        details.zeroPoints, details.blockSize = -1, quantization.block
        whole = schema.QuantizationParametersT()
        whole.details, whole.detailsType = details, schema.QuantizationDetails.BlockwiseQuantization
        if quantization.step is not None:
            whole.scale, whole.zeroPoint = quantization.step, np.zeros(quantization.step.size, np.int64)
        return whole

    def operator(
        self,
        code: int,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[tuple[str, Sequence[int], npt.DTypeLike, Quantization | None]] | Sequence[Tensor],
        options: Any = None,
        version: int = 1,
    ) -> tuple[Tensor, ...]:
        """Add an operator.

        Args:
            code: a `schema.BuiltinOperator`.
            inputs: its operands; None for an optional one that is left out.
            outputs: what to create, as (name, shape, dtype, quantization), or existing tensors to write to.
            options: an object of the schema's options class for this operator, e.g. `SoftmaxOptionsT`.
            version: the operator's version; LiteRT ignores it, other tools check it.
        """
        made = tuple(out if isinstance(out, Tensor) else self._tensor(*out) for out in outputs)
        op = schema.OperatorT()
        op.opcodeIndex = self._writer.operator_code(code, version)
        op.inputs = np.array([-1 if t is None else t.index for t in inputs], np.int32)
        op.outputs = np.array([t.index for t in made], np.int32)
        if options is not None:
            union = type(options).__name__.removesuffix("T")
            if hasattr(schema.BuiltinOptions, union):
                op.builtinOptions, op.builtinOptionsType = options, getattr(schema.BuiltinOptions, union)
            else:
                op.builtinOptions2, op.builtinOptions2Type = options, getattr(schema.BuiltinOptions2, union)
        self._operators.append(op)
        return made

    def _pack(self) -> Any:
        s = schema.SubGraphT()
        s.name, s.tensors, s.operators = self._name.encode(), self._tensors, self._operators
        s.inputs = np.array([t.index for t in self.inputs.values()], np.int32)
        s.outputs = np.array([t.index for t in self.outputs.values()], np.int32)
        return s


@dataclass
class GraphWriter:
    """Collects subgraphs and constants and writes the file. Use as a context manager: it owns a spool file."""

    folder: Path  # where the spool lies; on the same file system as the output
    external: bool  # constants after the FlatBuffer (LiteRT only) instead of inside it
    _buffers: list[_Spooled] = field(default_factory=list)
    _codes: dict[tuple[int, int], int] = field(default_factory=dict)
    _subgraphs: list[Subgraph] = field(default_factory=list)
    _small: dict[tuple[bytes, str], int] = field(default_factory=dict)
    _quantizations: dict[int, tuple[Quantization, _SharedQuantization]] = field(default_factory=dict)

    def __enter__(self) -> GraphWriter:
        self._spool = tempfile.TemporaryFile(dir=self.folder, prefix=".constants-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    def constant(self, value: npt.NDArray[Any]) -> Constant:
        """Spool constant bytes. Small equal values share a buffer."""
        value = np.ascontiguousarray(value)
        key = (value.tobytes(), value.dtype.str) if value.nbytes <= 4096 else None
        if key is None or key not in self._small:
            start = -(-self._spool.seek(0, os.SEEK_END) // ALIGNMENT) * ALIGNMENT
            self._spool.seek(start)
            self._spool.write(value.reshape(-1).view(np.uint8).data)
            self._buffers.append(_Spooled(start, value.nbytes))
            if key is not None:
                self._small[key] = len(self._buffers)
        buffer = len(self._buffers) if key is None else self._small[key]  # buffer 0 means "no constant"
        return Constant(buffer, value.shape, value.dtype)

    def int4_constant(self, packed: npt.NDArray[np.uint8]) -> Constant:
        """Spool (rows, columns / 2) bytes that hold two columns each."""
        rows, halves = packed.shape
        return Constant(self.constant(packed).buffer, (rows, 2 * halves), np.dtype(np.int8), int4=True)

    def quantization(self, q: Quantization) -> _SharedQuantization:
        """The schema's object for quantization parameters; the same array of scales gives the same object."""
        if id(q.scale) not in self._quantizations:
            shared = _SharedQuantization()
            shared.scale, shared.zeroPoint, shared.quantizedDimension = q.scale, q.zero_point, q.axis
            self._quantizations[id(q.scale)] = (q, shared)  # `q` keeps the array, and so its id, alive
        return self._quantizations[id(q.scale)][1]

    def subgraph(self, name: str) -> Subgraph:
        """Add a subgraph; it also becomes a signature of this name."""
        self._subgraphs.append(Subgraph(self, name))
        return self._subgraphs[-1]

    def operator_code(self, code: int, version: int) -> int:
        """Index of an operator code in the model's table."""
        return self._codes.setdefault((code, version), len(self._codes))

    @property
    def operator_codes(self) -> Sequence[tuple[int, int]]:
        """(`schema.BuiltinOperator`, version), by index."""
        return list(self._codes)

    def write(self, path: Path, description: str) -> None:
        """Write the model."""
        self._spool.flush()
        flat = self._pack(description, 0)
        with open(path, "wb") as file:
            if self.external:
                # An offset takes eight bytes whatever its value, so the second packing is as long as the first.
                base = -(-len(flat) // ALIGNMENT) * ALIGNMENT
                flat = self._pack(description, base)
                file.write(flat.ljust(base, b"\0"))
                self._spool.seek(0)
                shutil.copyfileobj(self._spool, file, 1 << 20)
                file.write(bytes(ALIGNMENT))  # kernels may read a vector past the last constant
            else:
                file.write(flat)

    def _pack(self, description: str, base: int) -> bytes:
        model = schema.ModelT()
        model.version, model.description = 3, description.encode()
        model.operatorCodes = [_operator_code(code, version) for code, version in self._codes]
        model.subgraphs = [s._pack() for s in self._subgraphs]
        model.buffers = [schema.BufferT()]
        for spooled in self._buffers:
            b = _AlignedBuffer()
            if self.external:
                b.offset, b.size = (base or _UNSET_OFFSET) + spooled.offset, spooled.size
            else:
                self._spool.seek(spooled.offset)
                b.data = np.frombuffer(self._spool.read(spooled.size), np.uint8)
            model.buffers.append(b)
        model.signatureDefs = [_signature(i, s) for i, s in enumerate(self._subgraphs)]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _operator_code(code: int, version: int) -> Any:
    c = schema.OperatorCodeT()
    c.builtinCode, c.version = code, version
    c.deprecatedBuiltinCode = min(code, 127)  # what readers before schema 3a look at
    return c


def _signature(index: int, subgraph: Subgraph) -> Any:
    s = schema.SignatureDefT()
    s.signatureKey, s.subgraphIndex = subgraph._name.encode(), index
    s.inputs = [_tensor_map(name, t) for name, t in subgraph.inputs.items()]
    s.outputs = [_tensor_map(name, t) for name, t in subgraph.outputs.items()]
    return s


def _tensor_map(name: str, tensor: Tensor) -> Any:
    m = schema.TensorMapT()
    m.name, m.tensorIndex = name.encode(), tensor.index
    return m
