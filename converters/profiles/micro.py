"""The `micro` profile: one signature, `decode`, whose kv_cache lies inside the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.emit.c.bundle import write_bundle_image
from converters.emit.c.model import ModelImage
from converters.emit.lint import measured_arena, require_clean
from converters.emit.tflite_write import GraphWriter
from converters.network.config import NetworkConfig
from converters.network.decoder import decoder
from converters.network.tensors import Linear, Role, activations, groups, linears
from converters.network.weights import FloatArray
from converters.ops.counting import CountingWriter, count_graph
from converters.ops.numpy import KvCache
from converters.ops.tflite import rope_tables
from converters.ops.tflite_micro import MicroConstants, MicroOps
from converters.ops.tflite_micro_parts import MicroMatmul
from converters.profiles.profile import (
    GraphJob,
    Profile,
    Proof,
    Written,
    counted_network,
    counted_positions,
    shaped_gains,
    shaped_ropes,
    unfolded_gains,
)
from converters.quantize.blocks import BLOCK, StepRows, packed_int4, quantize_steps
from converters.quantize.calibrate import Calibrator
from converters.quantize.observers import observe_windows
from converters.quantize.params import QuantParams, down_ranges, fit_int16
from converters.quantize.rotation import rotates_residual
from converters.quantize.weights import Hessian, QuantizedRows, quantize_rows
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE, EngineMemory, GraphCounts
from device_runtime.errors import GraphError

__all__ = ["MicroProfile"]

_MOST_INT8_COLUMNS = 2048  # of int4 weights by int8 activations; leaves half of a sum's 30 bits for the bias


class MicroProfile(Profile):
    """int8 weights, static int8 and int16 activations, an int8 kv_cache; runs in TFLite Micro.

    Or int4 weights in blocks, but for the head: then only the C engine runs it, through the model image.
    """

    name = "micro"
    default_context = 256
    calibration_window = 512
    calibration_tokens = 12288
    kv_cache_element_bytes = 1
    supports = MicroOps.SUPPORTS

    def __init__(self, weight_bits: Literal[8, 4] = 8) -> None:
        self.weight_bits = weight_bits
        self.backends = ("native",) if weight_bits == 4 else ()

    def windows(self, context: int) -> tuple[int, ...]:
        """As in `Profile`."""
        return (context,)

    def prefill_tokens(self, context: int) -> int:
        """As in `Profile`."""
        return 0

    def write(self, path: Path, job: GraphJob) -> Written:
        """As in `Profile`."""
        config = job.weights.config
        with GraphWriter(path.parent, external=False) as writer:
            weights = _Weights(writer, job, self.weight_bits)
            calibrator = Calibrator(config, job.weights, job.windows, job.prefix, not job.fast, weights.quantize_layer)
            observe_windows(config, job.weights, job.windows, job.prefix, calibrator)
            result = calibrator.result
            constants = _constants(writer, job, weights, result.params)
            ops = MicroOps(writer.subgraph("decode"), constants, config, result.params, job.context)
            ops.finish(decoder(ops, config))
            writer.write(path, f"stonechat micro profile, context {job.context}")
        return Written(_count(constants, config, result.params, job.context), job.prefix, result)

    def estimate(self, config: NetworkConfig, context: int, *, fast: bool = False) -> GraphCounts:
        """As in `Profile`. A search is taken to center whatever it may: no graph has more operators."""
        params = _assumed_params(config, fast)
        return _count(_placeholders(config, context, params, self.weight_bits), config, params, context)

    def prove(self, bundle: Bundle, needs_image: bool, schemas: Sequence[Mapping[str, Any]] = ()) -> Proof:
        """TFLite Micro's rules, a run in its interpreter, and the image that the C engine runs.

        With int4 weights the image alone: it is what runs.
        """
        if self.weight_bits == 4:
            require_clean(bundle.model_path, blocks=True)
            return Proof(None, (IMAGE,), _engine_memory(write_bundle_image(bundle, schemas)))
        require_clean(bundle.model_path)
        arena = measured_arena(bundle)
        try:
            image = write_bundle_image(bundle, schemas)
        except GraphError:
            if needs_image:
                raise
            (bundle.path / IMAGE).unlink(missing_ok=True)
            return Proof(arena)
        return Proof(arena, (IMAGE,), _engine_memory(image))


def _engine_memory(image: ModelImage) -> EngineMemory:
    return EngineMemory(image.arena_bytes, image.kv_bytes)


class _Weights:
    """Quantizes the matmuls of a layer as soon as its activations are."""

    def __init__(self, writer: GraphWriter, job: GraphJob, weight_bits: int) -> None:
        self._int4 = weight_bits == 4
        self.matmuls: dict[str, MicroMatmul] = {}
        self._writer, self._job, self._read = writer, job, job.weights
        self._groups = groups(job.weights.config)
        self._done = 0

    def quantize_layer(
        self, layer: int, params: Mapping[str, QuantParams], activations: Mapping[str, FloatArray]
    ) -> None:
        """Quantize all matmuls of one layer, whose inputs are among `activations`."""
        for group in self._groups:
            if group[0].layer != layer:
                continue
            of_input, down = params[group[0].input], group[0].role is Role.DOWN
            scales = None if down else of_input.scales  # the ranges of `down` have scales of their own instead
            hessian = None
            if not self._job.fast:
                x = activations[group[0].input]
                x = x if of_input.offsets is None else x - of_input.offsets
                hessian = Hessian(x if scales is None else x / scales)
            blocks = self._int4 and _takes_blocks(group[0], of_input.dtype)
            quantize: Callable[..., Sequence[QuantizedRows | StepRows]] = quantize_steps if blocks else quantize_rows
            for matmul in group:
                weight = self._read(matmul.weight)
                if down:
                    cuts = [start for start, _ in down_ranges(weight.shape[1])[1:]]
                    for i, rows in enumerate(quantize(weight, cuts, hessian)):
                        self.add(f"{matmul.name}.{i}", rows, self._bias(matmul) if i == 0 else None)
                else:
                    (rows,) = quantize(weight if scales is None else weight * scales, hessian=hessian)
                    bias = self._bias(matmul, weight, of_input.offsets, params[matmul.name].offsets)
                    self.add(matmul.name, rows, bias)
            self._step()

    def _step(self) -> None:
        self._done += 1
        self._job.progress(self._done / len(self._groups))

    def _bias(
        self,
        matmul: Linear,
        weight: FloatArray | None = None,
        of_input: FloatArray | None = None,
        of_result: FloatArray | None = None,
    ) -> FloatArray | None:
        """The bias of a matmul, (out,), and what the channel offsets of its input and of its result make of it.

        The network's weight times the input's offsets is exact, while the rounded weight multiplies what is left.
        """
        bias = self._read(f"{matmul.name}.bias") if matmul.bias else None
        if of_input is not None and weight is not None:
            bias = weight @ of_input + (0 if bias is None else bias)
        if of_result is not None:
            bias = (0 if bias is None else bias) - of_result
        return bias

    def quantize_head(self) -> QuantizedRows:
        """The rows of a tied head are embeddings too, for which compensation would only add error."""
        head = linears(self._read.config)[-1]
        (rows,) = quantize_rows(self._read(head.weight))
        self.add(head.name, rows, self._bias(head))
        self._step()
        return rows

    def add(self, name: str, rows: QuantizedRows | StepRows, bias: FloatArray | None = None) -> MicroMatmul:
        """Spool the weights of one matmul."""
        if isinstance(rows, StepRows):
            packed = self._writer.int4_constant(packed_int4(rows.values))
            self.matmuls[name] = MicroMatmul(packed, rows.step, bias, 0, rows.multipliers)
            return self.matmuls[name]
        # In blocks of rows: |weight| in 32 bits is four times the weight.
        blocks = (rows.values[start : start + 4096] for start in range(0, len(rows.values), 4096))
        largest_sum = max(int(np.abs(block.astype(np.int32)).sum(axis=1).max()) for block in blocks)
        self.matmuls[name] = MicroMatmul(self._writer.constant(rows.values), rows.scale, bias, largest_sum)
        return self.matmuls[name]


def _takes_blocks(matmul: Linear, activations: np.dtype[Any]) -> bool:
    """Whether a matmul of a layer can have int4 weights: the C engine adds up int8 products in 32 bits."""
    most = _MOST_INT8_COLUMNS if activations == np.int8 else matmul.columns
    return matmul.role is not Role.HEAD and matmul.columns % BLOCK == 0 and matmul.columns <= most


def _constants(writer: GraphWriter, job: GraphJob, weights: _Weights, params: dict[str, QuantParams]) -> MicroConstants:
    config = job.weights.config
    head = weights.quantize_head()
    mapped: tuple[MicroMatmul, ...] = ()
    embedding_map = job.weights.embedding_map
    if embedding_map is not None:
        embedding, embedding_scale = weights.matmuls["head"].weight, writer.constant(head.scale)
        mapped = _embedding_map(weights, head, embedding_map, params)
    else:
        (rows,) = quantize_rows(job.weights("embed.weight"))
        embedding, embedding_scale = writer.constant(rows.values), writer.constant(rows.scale)
    positions = None
    if config.embedding.positions:
        (rows,) = quantize_rows(job.weights("positions.weight"))
        positions = (writer.constant(rows.values), writer.constant(rows.scale))
    ropes = {}
    for rope in config.ropes:
        cos, sin = (writer.constant(table) for table in rope_tables(rope, job.context))
        ropes[rope] = (cos, sin)
    return MicroConstants(
        weights.matmuls, embedding, embedding_scale, mapped, positions, ropes, unfolded_gains(job.weights), job.prefix
    )


def _embedding_map(
    weights: _Weights, head: QuantizedRows, embedding_map: FloatArray, params: dict[str, QuantParams]
) -> tuple[MicroMatmul, ...]:
    """The map as two int16 matmuls, of which the second makes up for the rounding of the first.

    One alone leaves the embedding 25 dB above its error on SmolLM2, both leave the 42 dB that the int8 rows have.
    All inputs are known, so the ranges are exact.
    """
    rest = np.ascontiguousarray(embedding_map.T)
    matmuls, peaks = [], np.zeros((3, 2), np.float32)  # smallest and largest of the rows and of both results
    steps = []
    for name in ("embed.0", "embed.1"):
        (rows,) = quantize_rows(rest)
        rounded = rows.values * rows.scale[:, None]
        rest = rest - rounded
        steps.append(rounded.T)
        matmuls.append(weights.add(name, rows))
    for start in range(0, len(head.values), 4096):
        block = head.values[start : start + 4096] * head.scale[start : start + 4096, None]
        for i, values in enumerate((block, *(block @ step for step in steps))):
            peaks[i] = min(peaks[i, 0], values.min()), max(peaks[i, 1], values.max())
    for name, limits in zip(("embed.in", "embed.0", "embed.1"), peaks, strict=True):
        params[name] = fit_int16(limits)
    return tuple(matmuls)


# -- counting ----------------------------------------------------------------------------------------------------------


def _count(
    constants: MicroConstants, config: NetworkConfig, params: Mapping[str, QuantParams], context: int
) -> GraphCounts:
    config = counted_network(config, context)

    def emit(writer: GraphWriter, positions: int) -> None:
        ops = MicroOps(writer.subgraph("decode"), constants, config, params, positions)
        ops.finish(decoder(ops, config))

    return count_graph(emit, counted_positions(config, context))


def _assumed_params(config: NetworkConfig, fast: bool) -> dict[str, QuantParams]:
    """Parameters of every activation, with what a calibration may choose. No two arrays are alike: equal constants of a
    graph become one."""
    params: dict[str, QuantParams] = {}
    columns = {matmul.input: matmul.columns for matmul in linears(config)}
    rows = {matmul.name: matmul.rows for matmul in linears(config)}
    number = 1.0

    def channels(size: int) -> FloatArray:
        nonlocal number
        number += 1
        return np.full(size, number, np.float32)

    def add(name: str, dtype: type[np.signedinteger], scales: int = 0, offsets: int = 0) -> None:
        params[name] = QuantParams(
            1.0, 0, np.dtype(dtype), channels(scales) if scales else None, channels(offsets) if offsets else None
        )

    smooth_inputs = not rotates_residual(config)
    for name, activation in activations(config).items():
        role, of_layer = activation.role, activation.layer
        attention = None if of_layer is None else config.blocks[of_layer].attention
        if role in (Role.O, Role.DOWN, Role.HEAD):
            divided = role is Role.O or (role is Role.DOWN and len(down_ranges(columns.get(name, 0))) > 1)
            add(name, np.int16, columns[name] if activation.kind == "input" and divided else 0)
            if activation.kind == "result" and role is Role.DOWN and of_layer is not None:
                for i in range(len(down_ranges(config.blocks[of_layer].feed_forward.width))):
                    add(f"{name}.{i}", np.int16)
        elif activation.kind == "input":
            add(name, np.int8, columns[name] if smooth_inputs else 0, 0 if fast else columns[name])
        elif activation.kind == "result":
            add(name, np.int8, rows[name], 0 if fast or role is Role.V else rows[name])
        elif attention is not None and activation.kind == "keys":
            add(name, np.int8, attention.kv_width, attention.kv_width if attention.softcap is None else 0)
        elif attention is not None and activation.kind == "queries":
            add(name, np.int16, attention.q_width)
        elif activation.kind in ("scores", "probabilities"):
            add(name, np.int16)
            add(f"layers.{of_layer}.centered_scores", np.int16)
    for name in ("embed.in", "embed.0", "embed.1"):
        add(name, np.int16)
    return params


def _placeholders(
    config: NetworkConfig, context: int, params: Mapping[str, QuantParams], weight_bits: int
) -> MicroConstants:
    """Constants of which only the shapes are known."""
    shaped = CountingWriter().placeholder
    random = np.random.default_rng(0)  # no two constants are alike

    def matmul(rows: int, columns: int, bias: bool, blocks: bool = False) -> MicroMatmul:
        largest_sum = columns * 36  # a row's mean magnitude is about 30 of 127
        values = random.standard_normal(rows).astype(np.float32) if bias else None
        if blocks:
            weight = replace(shaped((rows, columns), np.int8), int4=True)
            multipliers = random.integers(1, 256, (rows, columns // BLOCK), np.uint8)
            return MicroMatmul(weight, np.ones(rows, np.float32), values, 0, multipliers)
        return MicroMatmul(shaped((rows, columns), np.int8), np.ones(rows, np.float32), values, largest_sum)

    matmuls: dict[str, MicroMatmul] = {}
    for m in linears(config):
        blocks = weight_bits == 4 and _takes_blocks(m, params[m.input].dtype)
        if m.role is Role.DOWN:
            for i, (start, stop) in enumerate(down_ranges(m.columns)):
                matmuls[f"{m.name}.{i}"] = matmul(m.rows, stop - start, m.bias and i == 0, blocks)
        else:
            moved = params[m.input].offsets is not None or params[m.name].offsets is not None
            matmuls[m.name] = matmul(m.rows, m.columns, m.bias or moved, blocks)
    width, tied, count = config.width, config.head.tied, config.embedding.positions
    mapped = tuple(matmul(width, width, False) for _ in range(2)) if tied else ()
    table = matmuls["head"].weight if tied else shaped((config.vocabulary, width), np.int8)
    positions = (shaped((count, width), np.int8), shaped((count,), np.float32)) if count else None
    prefix = KvCache()
    for block in config.blocks:
        shape = (1, 1, block.attention.kv_heads, block.attention.head_dim)
        keys, values = (random.standard_normal(shape).astype(np.float32) * 50 for _ in range(2))
        prefix.layers.append((keys, values))
    scale = shaped((config.vocabulary,), np.float32)
    ropes = shaped_ropes(config, context, shaped)
    return MicroConstants(matmuls, table, scale, mapped, positions, ropes, shaped_gains(config), prefix)
