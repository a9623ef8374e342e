"""TFLite Micro's rules, as data, a check of a graph against them, and a run in the real interpreter.

TFLite Micro reports a breach on the board's serial port, if at all: some kernels compute something else instead, and
some write through a null pointer. Here each breach has the tensor's name and what to do about it. The rules are those
of the reference kernels (tensorflow/lite/micro/kernels in the tflite-micro tree of August 2026), for the operators
that a decoder may need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters.emit.tflite_read import GraphTensor, SubgraphReader, TfliteFile
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Arena
from device_runtime.engine.backends.tflm import TflmBackend
from device_runtime.errors import BackendError, BackendMissingError, GraphError

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


def require_clean(path: Path, *, blocks: bool = False) -> None:
    """Raise a `GraphError` that lists what TFLite Micro would not run, if there is anything.

    Args:
        blocks: as of `check_graph`.
    """
    if violations := check_graph(path, blocks=blocks):
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


def check_graph(path: Path, *, blocks: bool = False) -> list[Violation]:
    """Every breach of TFLite Micro's rules in a .tflite file, in the order of its operators.

    Args:
        blocks: allow int4 weights in blocks, which the C engine takes and TFLite Micro does not.

    Raises:
        ConfigurationError: there is no such file.
        GraphError: it is not a TFLite graph, or a damaged one.
    """
    file = TfliteFile(path)
    if file.size >= _LARGEST_BYTES or file.subgraph_count == 0:
        problem = f"{file.size:,} bytes, {file.subgraph_count} subgraphs"
        return [Violation(path.name, "", problem, "TFLite Micro reads one subgraph in less than 2 GiB")]
    with file.damage_reported():
        return [violation for graph in file.subgraphs() for violation in _violations(graph, blocks)]


def _violations(graph: SubgraphReader, blocks: bool) -> Iterator[Violation]:
    for i in range(graph.tensor_count):
        yield from _check_tensor(graph.tensor(i))
    known = set(graph.inputs)
    for op in graph.operators():
        for t in op.operands:
            if t is not None and not (t.constant or t.variable or t.index in known):
                yield Violation(t.name, op.name, "it is read before anything writes it", "put its operator first")
        known.update(t.index for t in op.results)
        operands = list(op.operands)
        if op.name == "FULLY_CONNECTED" and (weight := _weights_in_blocks(operands)) is not None:
            if not blocks:
                remedy = "only stonechat's C engine runs them; convert with --weights int8 for TFLite Micro"
                yield Violation(weight.name, op.name, "int4 weights with a scale for each block", remedy)
            operands[1] = replace(weight, type="int8")  # every other rule is the same
        yield from _check_operator(op.name, operands, list(op.results))


def _weights_in_blocks(operands: list[GraphTensor | None]) -> GraphTensor | None:
    weight = operands[1] if len(operands) > 1 else None
    return weight if weight is not None and weight.type == "int4" and weight.block_scales is not None else None


def _check_tensor(t: GraphTensor) -> Iterator[Violation]:
    if t.dynamic:
        yield Violation(t.name, "", f"its shape {list(t.shape)} changes at run time", "give it a fixed shape")
    if t.sparse:
        yield Violation(t.name, "", "it is sparse", "store it densely")
    if t.external:
        yield Violation(t.name, "", "its data is after the FlatBuffer", "write the graph with its constants inside")
    if t.type == "int16" and np.any(t.zero_point != 0):
        yield Violation(t.name, "", f"int16 with zero_point {t.zero_point[0]}", "give it zero_point 0")
    if not np.all(np.isfinite(t.scale)) or np.any(t.scale <= 0):
        yield Violation(t.name, "", "a scale is zero, negative or not finite", "calibrate it again")


def _check_operator(name: str, operands: list[GraphTensor | None], results: list[GraphTensor]) -> Iterator[Violation]:
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


def _nothing(name: str, operands: list[GraphTensor | None], results: list[GraphTensor]) -> Iterator[Violation]:
    yield from ()


def _check_fully_connected(
    name: str, operands: list[GraphTensor | None], results: list[GraphTensor]
) -> Iterator[Violation]:
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


def _check_quantize(name: str, operands: list[GraphTensor | None], results: list[GraphTensor]) -> Iterator[Violation]:
    for t in (*(t for t in operands if t is not None), *results):
        if t.type != "float32" and t.grid is None:
            yield Violation(t.name, name, f"{t.scale.size} scales", "quantize with one scale per tensor")


_CHECKS = {
    "DEQUANTIZE": _check_quantize,
    "FULLY_CONNECTED": _check_fully_connected,
    "QUANTIZE": _check_quantize,
}
