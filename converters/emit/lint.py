"""TFLite Micro's rules, as data, a check of a graph against them, and a run in the real interpreter.

TFLite Micro reports a breach on the board's serial port, if at all: some kernels compute something else instead, and
some write through a null pointer. Here each breach has the tensor's name and what to do about it. The rules are those
of the reference kernels (tensorflow/lite/micro/kernels in the tflite-micro tree of August 2026), for the operators
that a decoder may need.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Arena
from device_runtime.engine.backends.tflm import TflmBackend
from device_runtime.errors import BackendError, BackendMissingError, ConfigurationError, GraphError

__all__ = ["RULES", "Rule", "Violation", "check_graph", "measured_arena", "require_clean"]


@dataclass(frozen=True)
class Rule:
    """What TFLite Micro asks of one operator."""

    # Types of the operands > type of the result, one string for each combination that has a kernel. A type with `?`
    # may be left out, one with `*` comes up to `most_operands` times.
    types: tuple[str, ...]
    ranks: tuple[int, int] = (0, 6)  # fewest and most dimensions of any operand and of the result
    constants: tuple[int, ...] = ()  # operands that have to be constants
    most_operands: int = 10
    same_grid: bool = False  # moves elements about: operands of the result's type have the result's scale
    result_grid: tuple[tuple[str, float, int], ...] = ()  # (type, scale or 0 for any, zero_point) of the result


_FLOAT = ("float32 > float32",)
_ARITHMETIC = ("float32 float32 > float32", "int8 int8 > int8", "int16 int16 > int16", "int32 int32 > int32")
_REDUCED = ("float32 int32 > float32", "int8 int32 > int8", "int16 int32 > int16")
RULES: dict[str, Rule] = {
    "ADD": Rule(_ARITHMETIC),
    "BATCH_MATMUL": Rule(_ARITHMETIC[:3], ranks=(2, 5)),
    "CAST": Rule(("int8 > float32", "int16 > float32", "int32 > float32", "float32 > int32", "int32 > int8",
                  "int8 > int32", "bool > float32")),
    "CONCATENATION": Rule(("float32* > float32", "int8* > int8", "int16* > int16", "int32* > int32"), same_grid=True),
    "COS": Rule(_FLOAT),
    "DEQUANTIZE": Rule(("int8 > float32", "int16 > float32")),
    "DIV": Rule(_ARITHMETIC[:1]),
    "DYNAMIC_UPDATE_SLICE": Rule(
        ("float32 float32 int32 > float32", "int8 int8 int32 > int8", "int16 int16 int32 > int16"),
        ranks=(1, 6),
        same_grid=True,
    ),
    "EXP": Rule(_FLOAT),
    "FULLY_CONNECTED": Rule(
        ("float32 float32 float32? > float32", "int8 int8 int32? > int8", "int16 int8 int64? > int16",
         "int16 int8 int32? > int16"),
    ),
    "GATHER": Rule(("float32 int32 > float32", "int8 int32 > int8"), same_grid=True),
    "LOGISTIC": Rule(
        ("float32 > float32", "int8 > int8", "int16 > int16"),
        result_grid=(("int8", 1 / 256, -128), ("int16", 1 / 32768, 0)),
    ),
    "MAXIMUM": Rule(_ARITHMETIC, ranks=(0, 5)),
    "MEAN": Rule(_REDUCED, ranks=(0, 4), constants=(1,)),
    "MINIMUM": Rule(_ARITHMETIC, ranks=(0, 5)),
    "MUL": Rule(_ARITHMETIC),
    "QUANTIZE": Rule(("float32 > int8", "float32 > int16", "int8 > int8", "int8 > int16", "int16 > int8",
                      "int16 > int16")),
    "RESHAPE": Rule(
        ("float32 int32? > float32", "int8 int32? > int8", "int16 int32? > int16", "int32 int32? > int32"),
        constants=(1,),
        same_grid=True,
    ),
    "RSQRT": Rule(("float32 > float32", "int8 > int8")),
    "SIN": Rule(_FLOAT),
    "SLICE": Rule(
        ("float32 int32 int32 > float32", "int8 int32 int32 > int8", "int16 int32 int32 > int16",
         "int32 int32 int32 > int32"),
        ranks=(1, 5),
        same_grid=True,
    ),
    "SOFTMAX": Rule(
        ("float32 > float32", "int8 > int8", "int8 > int16", "int16 > int16"),
        ranks=(1, 4),
        result_grid=(("int8", 1 / 256, -128),),
    ),
    "SQRT": Rule(_FLOAT),
    "SUB": Rule(_ARITHMETIC),
    "SUM": Rule(_REDUCED, ranks=(0, 4), constants=(1,)),
    "TANH": Rule(("float32 > float32", "int8 > int8", "int16 > int16")),
    "TRANSPOSE": Rule(
        ("float32 int32 > float32", "int8 int32 > int8", "int16 int32 > int16"),
        ranks=(1, 5),
        constants=(1,),
        same_grid=True,
    ),
}  # fmt: skip
_INSTEAD = {
    "EMBEDDING_LOOKUP": "it ignores the scales of rows; GATHER the rows and their scales and multiply",
    "GELU": "TFLite Micro has no kernel for it; build it from TANH or LOGISTIC",
    "POW": "TFLite Micro has no kernel for it; multiply",
    "SCATTER_ND": "TFLite Micro has no kernel for it; use DYNAMIC_UPDATE_SLICE",
    "TILE": "TFLite Micro has no kernel for it; broadcast in ADD or MUL",
}
_TYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
_OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
_LARGEST_BYTES = 2**31  # of a FlatBuffer


@dataclass(frozen=True)
class Violation:
    """One breach of one rule."""

    tensor: str  # its name in the graph
    operator: str  # what it is an operand or the result of; "" for a rule that concerns the tensor alone
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.operator}, {self.tensor}" if self.operator else self.tensor
        return f"{where}: {self.problem}; {self.remedy}"


def require_clean(path: Path) -> None:
    """Raise a `GraphError` that lists what TFLite Micro would not run, if there is anything."""
    if violations := check_graph(path):
        shown = "".join(f"\n  {violation}" for violation in violations[:10])
        more = f"\n  and {len(violations) - 10} more" if len(violations) > 10 else ""
        raise GraphError(f"TFLite Micro cannot run {path}:{shown}{more}")


def measured_arena(bundle: Bundle) -> Arena | None:
    """Run a `micro` graph for two steps in TFLite Micro's own interpreter; returns what it takes of the arena.

    None where that interpreter is not installed (there are packages for x86_64 only).

    Raises:
        BackendError: TFLite Micro refuses the graph, or gives something that is not a number.
    """
    try:
        backend = TflmBackend(bundle)
    except BackendMissingError:
        return None
    try:
        for token in (0, 1):
            if not np.isfinite(backend.decode(token)).all():
                raise BackendError(f"In TFLite Micro {bundle.model_path} gives logits that are not numbers.")
        return backend.arena
    finally:
        backend.close()


def check_graph(path: Path) -> list[Violation]:
    """Every breach of TFLite Micro's rules in a .tflite file, in the order of its operators.

    Raises:
        ConfigurationError: there is no such file.
        GraphError: it is not a TFLite graph, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:  # an empty file cannot be mapped
        raise GraphError(f"{path} is empty; write the graph again.") from None
    if data[4:8] != b"TFL3":
        raise GraphError(f"{path} is not a TFLite graph: bytes 4 to 8 are {data[4:8]!r}, expected b'TFL3'.")
    try:
        model = schema.Model.GetRootAs(data, 0)
        if len(data) >= _LARGEST_BYTES or model.SubgraphsLength() == 0:
            problem = f"{len(data):,} bytes, {model.SubgraphsLength()} subgraphs"
            return [Violation(path.name, "", problem, "TFLite Micro reads one subgraph in less than 2 GiB")]
        checks = (_SubgraphCheck(model, i, len(data)) for i in range(_bounded(model.SubgraphsLength(), len(data))))
        return [violation for check in checks for violation in check.violations()]
    except _DAMAGE as error:
        raise GraphError(f"{path} is damaged: {type(error).__name__}: {error}. Write it again.") from None


# What the generated accessors raise when an offset leads outside of the file, or to something else.
_DAMAGE = (struct.error, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)


def _bounded(length: int, file_bytes: int) -> int:
    """A vector's length, if the file can hold it: its elements are offsets of four bytes."""
    if length > file_bytes // 4:
        raise ValueError(f"a vector of {length:,} elements in a file of {file_bytes:,} bytes")
    return length


@dataclass(frozen=True)
class _Tensor:
    index: int
    name: str
    type: str
    shape: tuple[int, ...]
    dynamic: bool  # its shape is known only at run time
    sparse: bool
    variable: bool
    constant: bool
    external: bool  # a constant that does not stand inside the FlatBuffer
    scale: npt.NDArray[np.float32]  # empty for a tensor that is not quantized
    zero_point: npt.NDArray[np.int64]
    axis: int

    @property
    def grid(self) -> tuple[float, int] | None:
        """Scale and zero point, if there is one for all elements."""
        if self.scale.size != 1:
            return None
        return float(self.scale[0]), int(self.zero_point[0]) if self.zero_point.size else 0


class _SubgraphCheck:
    def __init__(self, model: Any, index: int, file_bytes: int) -> None:
        self._model, self._graph, self._file_bytes = model, model.Subgraphs(index), file_bytes

    @functools.cache  # noqa: B019  # lives as long as the check
    def _tensor(self, index: int) -> _Tensor:
        if not 0 <= index < self._graph.TensorsLength():
            raise IndexError(f"there is no tensor {index}")
        t = self._graph.Tensors(index)
        shape = tuple(int(n) for n in _array(t.ShapeAsNumpy(), t.ShapeLength(), np.int32))
        signature = _array(t.ShapeSignatureAsNumpy(), t.ShapeSignatureLength(), np.int32)
        buffer = self._model.Buffers(t.Buffer())
        scale, zero_point, axis = _quantization(t.Quantization())
        return _Tensor(
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
        )

    def violations(self) -> Iterator[Violation]:
        graph = self._graph
        for i in range(_bounded(graph.TensorsLength(), self._file_bytes)):
            yield from _check_tensor(self._tensor(i))
        known = {int(i) for i in _array(graph.InputsAsNumpy(), graph.InputsLength(), np.int32)}
        for i in range(_bounded(graph.OperatorsLength(), self._file_bytes)):
            op = graph.Operators(i)
            operands = [
                None if index == -1 else self._tensor(int(index))
                for index in _array(op.InputsAsNumpy(), op.InputsLength(), np.int32)
            ]
            results = [self._tensor(int(index)) for index in _array(op.OutputsAsNumpy(), op.OutputsLength(), np.int32)]
            name = self._name(op)
            for t in operands:
                if t is not None and not (t.constant or t.variable or t.index in known):
                    yield Violation(t.name, name, "it is read before anything writes it", "put its operator first")
            known.update(t.index for t in results)
            yield from _check_operator(name, operands, results)

    def _name(self, op: Any) -> str:
        code = self._model.OperatorCodes(op.OpcodeIndex())
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        return str(_OPERATORS.get(builtin, f"operator {builtin}"))


def _array(values: Any, length: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A vector of the FlatBuffer; the accessors give 0 for one that is not there."""
    return np.asarray(values) if length else np.empty(0, dtype)


def _quantization(q: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
    """Scales, zero points and axis of quantization parameters, which may be None."""
    if q is None:
        return np.empty(0, np.float32), np.empty(0, np.int64), 0
    scale = _array(q.ScaleAsNumpy(), q.ScaleLength(), np.float32)
    return scale, _array(q.ZeroPointAsNumpy(), q.ZeroPointLength(), np.int64), int(q.QuantizedDimension())


def _check_tensor(t: _Tensor) -> Iterator[Violation]:
    if t.dynamic:
        yield Violation(t.name, "", f"its shape {list(t.shape)} changes at run time", "give it a fixed shape")
    if t.sparse:
        yield Violation(t.name, "", "it is sparse", "store it densely")
    if t.external:
        yield Violation(
            t.name, "", "its data stands behind the FlatBuffer", "write the graph with its constants inside"
        )
    if t.type == "int16" and np.any(t.zero_point != 0):
        yield Violation(t.name, "", f"int16 with zero_point {t.zero_point[0]}", "give it zero_point 0")
    if not np.all(np.isfinite(t.scale)) or np.any(t.scale <= 0):
        yield Violation(t.name, "", "a scale is zero, negative or not finite", "calibrate it again")


def _check_operator(name: str, operands: list[_Tensor | None], results: list[_Tensor]) -> Iterator[Violation]:
    where = results[0].name if results else "no result"
    rule = RULES.get(name)
    if rule is None:
        remedy = _INSTEAD.get(name, f"use one of {', '.join(RULES)}")
        yield Violation(where, name, "no rule of converters/emit/lint.py allows this operator", remedy)
        return
    types = [t.type if t is not None else "none" for t in operands]
    found = f"{' '.join(types)} > {' '.join(t.type for t in results)}"
    if len(types) > rule.most_operands:
        yield Violation(where, name, f"{len(types)} operands", f"give it at most {rule.most_operands} at a time")
    elif not any(_fits(pattern, types, [t.type for t in results]) for pattern in rule.types):
        yield Violation(where, name, f"no kernel for {found}", f"there are kernels for {', '.join(rule.types)}")
    fewest, most = rule.ranks
    for t in (*(t for t in operands if t is not None), *results):
        if not fewest <= len(t.shape) <= most:
            yield Violation(t.name, name, f"{len(t.shape)} dimensions", f"reshape it to {fewest} to {most} dimensions")
    for place in rule.constants:
        operand = operands[place] if place < len(operands) else None
        if operand is not None and not operand.constant:
            yield Violation(operand.name, name, f"operand {place} is computed", "make it a constant of the graph")
    for result in results:
        for type_name, scale, zero_point in rule.result_grid:
            grid = result.grid
            if result.type == type_name and (grid is None or abs(grid[0] / scale - 1) > 1e-3 or grid[1] != zero_point):
                remedy = f"this kernel gives scale 1/{1 / scale:.0f} and zero_point {zero_point} whatever is asked for"
                yield Violation(result.name, name, f"grid {grid}", remedy)
        if rule.same_grid:
            for operand in operands:
                if operand is not None and operand.type == result.type and operand.grid != result.grid:
                    problem = f"grid {operand.grid}, but {result.name} has {result.grid}"
                    yield Violation(operand.name, name, problem, "this operator copies integers: give both one grid")
        if result.variable:
            first = operands[0]
            if name != "DYNAMIC_UPDATE_SLICE" or first is None or first.index != result.index:
                remedy = "write it with a DYNAMIC_UPDATE_SLICE whose operand 0 it is too"
                yield Violation(result.name, name, "a variable tensor is not updated in place", remedy)
    yield from _CHECKS.get(name, _nothing)(name, operands, results)


def _fits(pattern: str, operands: list[str], results: list[str]) -> bool:
    before, _, after = pattern.partition(" > ")
    if results != after.split():
        return False
    wanted = before.split()
    if wanted[0].endswith("*"):
        return bool(operands) and set(operands) == {wanted[0][:-1]}
    if len(operands) > len(wanted):
        return False
    padded = operands + ["none"] * (len(wanted) - len(operands))
    return all(
        have == want.rstrip("?") or (have == "none" and want.endswith("?"))
        for have, want in zip(padded, wanted, strict=True)
    )


def _nothing(name: str, operands: list[_Tensor | None], results: list[_Tensor]) -> Iterator[Violation]:
    yield from ()


def _check_fully_connected(name: str, operands: list[_Tensor | None], results: list[_Tensor]) -> Iterator[Violation]:
    x, weight = operands[0], operands[1] if len(operands) > 1 else None
    if x is None or weight is None or x.type == "float32":
        return
    for t in (x, *results):
        if t.grid is None:
            yield Violation(t.name, name, f"{t.scale.size} scales", "activations have one scale per tensor")
    if np.any(weight.zero_point != 0):
        yield Violation(weight.name, name, "weights with a zero_point", "kernels take zero_point 0 for weights")
    if weight.scale.size == 0:
        yield Violation(weight.name, name, "weights without scales", "give one for each row, or one for all")
    elif weight.scale.size > 1 and (weight.axis != 0 or weight.scale.size != weight.shape[0]):
        problem = f"{weight.scale.size} scales along axis {weight.axis} of shape {list(weight.shape)}"
        yield Violation(weight.name, name, problem, "give one scale for each row, along axis 0")
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        problem = f"shape {list(weight.shape)} for an input of {list(x.shape)}"
        yield Violation(weight.name, name, problem, "weights are (results, inputs)")


def _check_quantize(name: str, operands: list[_Tensor | None], results: list[_Tensor]) -> Iterator[Violation]:
    for t in (*(t for t in operands if t is not None), *results):
        if t.type != "float32" and t.grid is None:
            yield Violation(t.name, name, f"{t.scale.size} scales", "quantize with one scale per tensor")


_CHECKS = {
    "DEQUANTIZE": _check_quantize,
    "FULLY_CONNECTED": _check_fully_connected,
    "QUANTIZE": _check_quantize,
}
