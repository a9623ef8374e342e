"""From the operators of a `micro` graph to the calls of the C engine.

What lies between two matmuls becomes one program each: a tensor gets a buffer only if two programs, or a matmul, read
it. Attention is recognised as a whole. Whatever depends on the position alone (the mask, where the cache is written)
is computed here for every position and held against what the engine does, so it does not matter how a graph makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from converters.emit.c.calls import (
    ELEMENT_BYTES,
    NOTHING,
    Attention,
    BlockMatmul,
    Buffer,
    Call,
    Index,
    Matmul,
    Op,
    Place,
    Program,
    Scratch,
    Store,
)
from converters.emit.c.constants import Constants, multiplier_and_shift, packed_multiplier, padded
from converters.emit.c.lowering.attention import AttentionParts, find_attention
from converters.emit.c.lowering.blocks import read_blocks
from converters.emit.c.lowering.operators import (
    is_contiguous,
    product_scale,
    refused,
    require_plain,
    scale_of,
    some,
    tensor_scale,
)
from converters.emit.c.lowering.position import PositionValues
from converters.emit.c.lowering.programs import BINARY, UNARY, ProgramBody, Source, joints, shared_rows
from converters.emit.tflite_read import GraphTensor, Operator, SubgraphReader
from converters.quantize.blocks import BLOCK
from device_runtime.errors import GraphError

__all__ = ["Lowered", "PrefixRows", "lower"]

_REDUCTIONS: dict[str, Op] = {"MEAN": "MEAN", "SUM": "SUM"}
_MOVES = ("RESHAPE", "SLICE", "CONCATENATION")
_SOURCES = ("DEQUANTIZE", "GATHER", "CAST")
_EXP_IS_ZERO = 104.0  # exp(-104) is 0 in float32, denormals among them


@dataclass(frozen=True)
class PrefixRows:
    """Bytes that the kv_cache holds from the start."""

    offset: int  # of the first row, in the kv_cache
    stride: int  # bytes from row to row
    rows: npt.NDArray[np.int8]  # (rows, bytes)


@dataclass(frozen=True)
class Lowered:
    """A graph as calls."""

    calls: list[Call]
    logits: Buffer
    logits_grid: tuple[float, int]
    vocabulary: int
    context: int
    kv_bytes: int
    prefix: list[PrefixRows]
    prefix_positions: int
    buffers: dict[str, Buffer]  # by the tensor's name in the graph: where a test can compare


@dataclass(frozen=True)
class _Cache:
    """One variable tensor."""

    offset: int  # bytes in the kv_cache
    stride: int  # bytes from row to row
    position_axis: int


def lower(graph: SubgraphReader, constants: Constants) -> Lowered:
    """The calls that compute what the graph computes.

    Raises:
        GraphError: the graph has something that the engine has no call for; the message names the operator.
    """
    return _Lowering(graph, constants).run()


class _Lowering:
    def __init__(self, graph: SubgraphReader, constants: Constants) -> None:
        self.graph, self._constants = graph, constants
        self._operators = list(graph.operators())
        made_by: dict[int, Operator] = {}
        readers: dict[int, list[Operator]] = {}
        for op in self._operators:
            for t in op.results:
                if not t.variable:
                    made_by[t.index] = op
            for t in {t.index: t for t in op.operands if t is not None}.values():
                readers.setdefault(t.index, []).append(op)
        self.made_by: Mapping[int, Operator] = made_by
        self.readers: Mapping[int, list[Operator]] = readers
        self._token, self._position = self._inputs()
        self.by_position = PositionValues(graph, self._operators, self._position)
        self._calls: list[Call] = []
        self._buffers: dict[int, Buffer] = {}  # by the tensor that owns it
        self._inside: dict[int, tuple[GraphTensor, int]] = {}  # tensor -> tensor that it lies in, element offset
        self._caches: dict[int, _Cache] = {}
        self._kv_bytes = 0
        self._prefix: list[PrefixRows] = []
        self._prefix_positions = 0
        self._context = 0

    def run(self) -> Lowered:
        (output,) = (self.graph.tensor(i) for i in self.graph.outputs)
        attention = {op.results[0].index: find_attention(self, op) for op in self._operators if op.name == "SOFTMAX"}
        ends = {parts.mixed.results[0].index: parts for parts in attention.values()}
        skipped = {t for parts in attention.values() for t in parts.inner}
        for op in self._operators:
            if op.name == "DYNAMIC_UPDATE_SLICE":
                self._find_cache(op)
        if not self._context:
            raise GraphError("The graph has no kv_cache; convert the checkpoint again with --profile micro.")
        for op in self._operators:
            if op.name == "CONCATENATION" and op.results[0].type != "float32" and op.results[0] not in self.by_position:
                self._join(op)
        stored = self._stored_floats(output)
        for op in self._operators:
            result = op.results[0]
            if result in self.by_position or result.index in skipped:
                continue
            if result.index in ends:
                self._emit_attention(ends[result.index])
            elif op.name == "FULLY_CONNECTED":
                self._emit_matmul(op)
            elif op.name == "DYNAMIC_UPDATE_SLICE":
                self._emit_store(op)
            elif op.name == "QUANTIZE" or op.name in _REDUCTIONS or result.index in stored:
                self._emit_programs(op)
            elif not self._is_inlined(op):
                raise refused(op, "there is no call for it")
        logits, offset = self._int_place(output)
        if output.grid is None or offset or logits.type == "float32":
            raise GraphError(f"The logits ({output.name}) are {output.type}; the engine reads int8 or int16 ones.")
        return Lowered(
            calls=self._calls,
            logits=logits,
            logits_grid=output.grid,
            vocabulary=output.size,
            context=self._context,
            kv_bytes=self._kv_bytes,
            prefix=self._prefix,
            prefix_positions=self._prefix_positions,
            buffers={self.graph.tensor(i).name: buffer for i, buffer in self._buffers.items()},
        )

    # -- the graph ---------------------------------------------------------------------------------

    def _inputs(self) -> tuple[GraphTensor, GraphTensor]:
        inputs = {t.name: t for t in map(self.graph.tensor, self.graph.inputs)}
        if set(inputs) != {"token", "position"}:
            raise GraphError(
                f"The graph takes {', '.join(inputs)}; expected token and position. Convert the checkpoint again with "
                "--profile micro."
            )
        return inputs["token"], inputs["position"]

    # -- the kv_cache ------------------------------------------------------------------------------

    def _find_cache(self, op: Operator) -> None:
        cache, rows, start = (some(t) for t in op.operands[:3])
        if not cache.variable or len(cache.shape) != 2 or cache.type != "int8":
            raise refused(op, f"it writes into {cache.name}, {cache.type} {list(cache.shape)}")
        if rows.constant:
            return
        if start not in self.by_position:
            raise refused(op, "where it writes does not follow from the position")
        axis = next((i for i in (0, 1) if rows.shape[i] == 1 and rows.shape[1 - i] == cache.shape[1 - i]), None)
        context = max(self._context, cache.shape[axis or 0])
        positions = np.arange(context)
        expected = np.zeros((context, 2), np.int64)
        if axis is not None:
            expected[:, axis] = positions
        if axis is None or not np.array_equal(self.by_position.at(start, positions), expected):
            raise refused(op, "it writes anywhere else than at the position")
        if self._context not in (0, cache.shape[axis]):
            raise refused(op, f"a cache of {cache.shape[axis]} positions beside one of {self._context}")
        self._context = cache.shape[axis]
        if cache.index in self._caches:
            raise refused(op, f"{cache.name} is written twice")
        stride = cache.shape[1] if axis == 0 else padded(cache.shape[1])
        self._caches[cache.index] = _Cache(self._kv_bytes, stride, axis)
        self._kv_bytes += padded(cache.shape[0] * stride)

    def _emit_store(self, op: Operator) -> None:
        cache, rows, start = (some(t) for t in op.operands[:3])
        place = self._caches[cache.index]
        if rows.constant:
            values = self.graph.values(rows)
            if (
                not start.constant
                or self.graph.values(start).any()
                or values.shape[1 - place.position_axis] != (cache.shape[1 - place.position_axis])
            ):
                raise refused(op, "a constant is written anywhere else than at the cache's start")
            positions = values.shape[place.position_axis]
            if self._prefix_positions not in (0, positions):
                raise refused(op, f"a prefix of {positions} positions beside one of {self._prefix_positions}")
            self._prefix_positions = positions
            self._prefix.append(PrefixRows(place.offset, place.stride, values))
            return
        source, offset = self._int_place(rows)
        along = place.position_axis == 0  # a row of the cache; else a column
        self._calls.append(
            Store(
                source,
                offset,
                rows.size,
                place.offset,
                stride=1 if along else place.stride,
                position_stride=place.stride if along else 1,
            )
        )

    # -- attention ---------------------------------------------------------------------------------

    def _emit_attention(self, parts: AttentionParts) -> None:
        queries, keys = (some(t) for t in parts.scores.operands[:2])
        shares, values = (some(t) for t in parts.mixed.operands[:2])
        scores, mixed = parts.scores.results[0], parts.mixed.results[0]
        for op in (parts.scores, parts.mixed):
            require_plain(op)
            if len(op.operands) > 2 and op.operands[2] is not None:
                raise refused(op, "attention with a bias")
        for t in (queries, scores, shares, mixed):
            if t.type != "int16" or t.grid is None or t.grid[1]:
                raise GraphError(f"{t.name} is {t.type}; attention takes int16 with one scale.")
        key_cache, value_cache = self._caches.get(keys.index), self._caches.get(values.index)
        if key_cache is None or value_cache is None or key_cache.position_axis or not value_cache.position_axis:
            raise refused(parts.scores, "its operands are no kv_cache of keys (context, head_dim) and values")
        heads, head_dim = queries.shape[-2:]
        if keys.shape[1] != head_dim or values.shape[0] != head_dim or mixed.size != heads * head_dim:
            raise refused(parts.scores, f"queries {list(queries.shape)} for keys {list(keys.shape)}")
        source, source_offset = self._int_place(queries)
        out, out_offset = self._int_place(mixed)
        self._calls.append(
            Attention(
                queries=source,
                queries_offset=source_offset,
                heads=heads,
                head_dim=head_dim,
                keys=key_cache.offset,
                values=value_cache.offset,
                value_stride=value_cache.stride,
                scratch=Scratch("attention", "float32", value_cache.stride),
                score_scale=product_scale(parts.scores),
                score_step=scale_of(scores),
                share_step=scale_of(shares),
                mixed_scale=product_scale(parts.mixed),
                out=out,
                out_offset=out_offset,
                window=self._window(parts.mask, scale_of(scores)),
            )
        )

    def _window(self, mask: GraphTensor, score_step: float) -> int:
        """How many positions a query sees."""
        window, highest = self.by_position.mask(mask.index, self._context)
        if highest > -(2 * 32768 * score_step + _EXP_IS_ZERO):  # so far below any score that its share is 0
            raise GraphError(
                f"{mask.name} is {highest:g} where it hides a position; scores go up to {score_step * 32768:g}."
            )
        return window

    # -- buffers -----------------------------------------------------------------------------------

    def _join(self, op: Operator) -> None:
        """Parts of a joined integer tensor are made where they lie in it."""
        result, offset = op.results[0], 0
        if result.size != result.shape[-1]:
            raise refused(op, f"it joins columns of {list(result.shape)}")
        for t in op.operands:
            base, start = self._base(some(t))
            if start or base.size != some(t).size or base.grid != result.grid or base.index in self._inside:
                raise refused(op, f"{base.name} cannot be made inside of it")
            self._inside[base.index] = (result, offset)
            offset += base.size

    def _base(self, t: GraphTensor) -> tuple[GraphTensor, int]:
        """The tensor that `t` is a part of, following RESHAPE and SLICE, and the element at which it starts."""
        offset = 0
        while True:
            op = self.made_by.get(t.index)
            if op is None or op.name not in ("RESHAPE", "SLICE"):
                return t, offset
            source = some(op.operands[0])
            if op.name == "SLICE":
                begin = self.graph.values(some(op.operands[1]))
                if not is_contiguous(source.shape, t.shape):
                    return t, offset
                offset += int(np.ravel_multi_index(tuple(begin), source.shape))
            t = source

    def _int_place(self, t: GraphTensor) -> tuple[Buffer, int]:
        """The buffer in which a tensor lies, and the byte at which it starts."""
        base, offset = self._base(t)
        while base.index in self._inside:
            outer, start = self._inside[base.index]
            base, offset = outer, offset + start
        if base.index not in self._buffers:
            if base.constant or base.variable or base.type not in ("float32", "int8", "int16"):
                raise GraphError(f"{base.name} ({base.type}) is no activation; the engine has no call that reads it.")
            self._buffers[base.index] = Buffer(base.name, base.type, base.size)  # type: ignore[arg-type]
        return self._buffers[base.index], offset * ELEMENT_BYTES[base.type]

    # -- matmuls -----------------------------------------------------------------------------------

    def _emit_matmul(self, op: Operator) -> None:
        x, weight, bias = (*op.operands, None)[:3]
        x, weight, result = some(x), some(weight), op.results[0]
        require_plain(op)
        types = ("int8", "int16")
        if not weight.constant or weight.type not in ("int8", "int4") or x.type not in types or x.type != result.type:
            raise refused(op, f"{x.type} by {weight.type} to {result.type}, constant weights: {weight.constant}")
        if x.size != weight.shape[1] or x.grid is None or result.grid is None or np.any(weight.zero_point):
            raise refused(op, f"an input of {list(x.shape)} for weights {list(weight.shape)}")
        rows, columns = weight.shape
        source, source_offset = self._int_place(x)
        out, out_offset = self._int_place(result)
        values = self.graph.values(weight)
        blocks = read_blocks(self.graph, op, weight) if weight.type == "int4" else None
        scales = np.float64(scale_of(x)) * weight.scale.astype(np.float64) / np.float64(scale_of(result))
        if scales.size == 1:
            scales = np.full(rows, tensor_scale(x, weight, result))
        added = None if bias is None else self.graph.values(bias).astype(np.int64)
        shifts = NOTHING
        if x.type == "int8":
            total = (0 if added is None else added) - x.grid[1] * _row_sums(values, blocks)
            # kernels double a sum with its bias in 32 bits
            most = (1 << 30) - (padded(columns) << 14 if blocks is None else columns * (255 << 10))
            if np.abs(total).max() > most:
                raise refused(
                    op, f"a bias of {np.abs(total).max():,}; sums of {columns} products leave room for {most:,}"
                )
            pairs = [multiplier_and_shift(float(scale)) for scale in scales]
            table = self._constants.array(np.array([m for m, _ in pairs], np.int32))
            shifts = self._constants.array(np.array([s for _, s in pairs], np.int8))
            bias_at = self._constants.array(total.astype(np.int32)) if np.any(total) else NOTHING
        else:
            if x.grid[1] or result.grid[1] or (bias is not None and bias.type != "int64"):
                raise refused(op, "int16 with a zero point or with a bias that is not int64")
            table = self._constants.array(np.array([packed_multiplier(float(s)) for s in scales], np.uint32))
            bias_at = NOTHING if added is None else self._constants.array(added)
        if blocks is None:
            weights = self._constants.weights(weight.buffer, values)
            scratch = Scratch("widened", "int16", columns)
            self._calls.append(
                Matmul(
                    source, source_offset, weights, rows, padded(columns), out, out_offset, result.grid[1], table,
                    bias_at, shifts, scratch,
                )
            )  # fmt: skip
            return
        weights, multipliers = self._constants.block_weights(weight.buffer, values, blocks)
        scratch = Scratch("widened and summed", "int16", columns + 2 * columns // BLOCK)
        self._calls.append(
            BlockMatmul(
                source, source_offset, weights, rows, columns, out, out_offset, result.grid[1], table, bias_at, shifts,
                scratch, multipliers,
            )
        )  # fmt: skip

    # -- programs ----------------------------------------------------------------------------------

    def _is_inlined(self, op: Operator) -> bool:
        return op.name in (*BINARY, *UNARY, *_MOVES, *_SOURCES)

    def _stored_floats(self, output: GraphTensor) -> set[int]:
        """Float tensors that get a buffer: those that more than one program reads."""
        stored: set[int] = set()
        programs: dict[int, int] = {}  # tensor -> the one tensor whose program computes it on the way
        for op in reversed(self._operators):
            t = op.results[0]
            if op.name in _REDUCTIONS:
                stored.add(t.index)
            if not self._is_inlined(op) or t.type != "float32" or t in self.by_position:
                continue
            ends = set()
            for reader in self.readers.get(t.index, []):
                end = reader.results[0]
                ends.add(end.index if end.index in stored or end.type != "float32" else programs.get(end.index, -1))
            ends.discard(-1)
            if not ends:
                continue  # nothing reads it, or attention does
            (some, *more) = ends
            is_source = op.name in _SOURCES or (op.name == "RESHAPE" and self.source(t) is not None)
            if (more or self._is_per_row(t, some)) and not is_source:
                stored.add(t.index)
            programs[t.index] = some
        return stored

    def _is_per_row(self, t: GraphTensor, end: int) -> bool:
        """A value for each row, which a program over columns would compute again for each column."""
        return t.shape[-1:] == (1,) and self.graph.tensor(end).shape[-1:] != (1,)

    def _emit_programs(self, op: Operator) -> None:
        """One program, or one for each part of a row that a CONCATENATION puts together."""
        result = op.results[0]
        reduced = op.name in _REDUCTIONS
        if reduced:
            axes = self.graph.values(some(op.operands[1])).ravel().tolist()
            if axes not in ([-1], [len(some(op.operands[0]).shape) - 1]):
                raise refused(op, f"it reduces axes {axes}; the engine reduces the last")
        value = some(op.operands[0]) if reduced or op.name == "QUANTIZE" else result
        place, offset = self._int_place(result)
        rows = value.size // value.shape[-1] if reduced else shared_rows(self, value)
        columns = value.size // rows
        size = ELEMENT_BYTES[place.type]
        scale, zero_point = result.grid if op.name == "QUANTIZE" and result.grid else (1.0, 0)
        cuts = sorted({0, columns} | (set() if reduced else set(joints(self, value, rows, result.index))))
        for start, stop in pairwise(cuts):
            body = ProgramBody(self, rows, result.index)
            register = body.value(value, start, stop)
            stride = size if reduced else columns * size
            to = Place(
                place, place.type, offset + start * size, stride if rows > 1 else 0, scale=scale, zero_point=zero_point
            )
            last: Op = _REDUCTIONS[op.name] if reduced else "STORE"
            self._calls.append(Program(rows, stop - start, body.finished(last, register, to)))

    def computed_by(self, t: GraphTensor, root: int) -> Operator | None:
        """The operator that a program on the way to the tensor `root` computes for `t`; None if `t` lies somewhere."""
        op = self.made_by.get(t.index)
        if op is None or t in self.by_position or (t.index in self._buffers and t.index != root):
            return None
        return op if self._is_inlined(op) and op.name not in _SOURCES else None

    def source(self, t: GraphTensor) -> Source | None:
        """Where a program reads a tensor from, if it lies somewhere."""
        if t.constant:
            return self.table(self.graph.values(t))
        if t.index in self._buffers or t.index in self._inside:
            buffer, offset = self._int_place(t)
            return Source(buffer, buffer.type, offset, t.size)
        op = self.made_by.get(t.index)
        if op is None:
            return None
        x = some(op.operands[0])
        if op.name == "RESHAPE":
            return self.source(x)
        if op.name == "DEQUANTIZE":
            if x.grid is None:
                raise refused(op, "it has a scale for each channel")
            buffer, offset = self._int_place(x)
            return Source(buffer, buffer.type, offset, t.size, scale=x.grid[0], zero_point=x.grid[1])
        if op.name == "CAST":
            return self.source(x) if x.type in ("int8", "int16") else None
        if op.name == "GATHER":
            return self._gathered(op)
        if t in self.by_position:
            table = self.by_position.at(t, np.arange(self._context)).astype(np.float32).reshape(self._context, -1)
            return replace(self.table(table), elements=t.size, index=Index.POSITION, index_stride=4 * table.shape[1])
        return None

    def table(self, values: npt.NDArray[np.generic]) -> Source:
        """Where a program reads constant floats from."""
        return Source(None, "float32", self._constants.array(values.astype(np.float32, copy=False)), values.size)

    def _gathered(self, op: Operator) -> Source:
        table, rows = (some(t) for t in op.operands[:2])
        base, _ = self._base(rows)
        indexes = {self._token.index: Index.TOKEN, self._position.index: Index.POSITION}
        if not table.constant or base.index not in indexes or rows.size != 1 or table.type not in ("int8", "float32"):
            raise refused(op, "it gathers anything else than a row of a table by token or position")
        values = self.graph.values(table)
        width = table.size // table.shape[0]
        if table.type == "int8":
            offset, stride = self._constants.weights(table.buffer, values.reshape(-1, width)), padded(width)
        else:
            offset, stride = self._constants.array(values), 4 * width
        return Source(None, table.type, offset, width, indexes[base.index], stride)  # type: ignore[arg-type]


def _row_sums(values: npt.NDArray[np.int8], multipliers: npt.NDArray[np.integer] | None) -> npt.NDArray[np.int64]:
    """Sums of the rows of weights, of those in blocks with their multipliers."""
    if multipliers is not None:
        blocks = values.reshape(*multipliers.shape, BLOCK).sum(axis=2, dtype=np.int64)
        return np.asarray((blocks * multipliers).sum(axis=1))
    return np.concatenate([values[i : i + 4096].sum(axis=1, dtype=np.int64) for i in range(0, len(values), 4096)])
