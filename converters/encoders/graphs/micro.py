"""The graph of a sentence encoder in the `micro` profile: ranges from calibration, weights, and the one signature.

What costs nothing at run time is part of the weights: attention's scale is part of q; the keys' channels are divided by
factors that q is multiplied by, and lose their middle, which moves all scores of a query alike; the values' channels
are divided by factors that o is multiplied by, and lose their middle, which o adds again in its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.emit.tflite_write import Constant, GraphWriter
from converters.encoders.graphs.ops_micro import EncoderMicro, EncoderMicroConstants
from converters.encoders.network import EncoderConfig, linears, tensor_shapes
from converters.encoders.ops_numpy import reference_sentence
from converters.encoders.transformer import sentence
from converters.network.tensors import Linear, Role
from converters.network.weights import FloatArray, ReadTensor
from converters.ops.counting import CountingWriter, count_graph
from converters.ops.tflite_micro_parts import MicroMatmul
from converters.quantize.params import QuantParams, fit_int16
from converters.quantize.weights import Hessian, quantize_rows
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import ActivationPeak, Arena, GraphCounts
from device_runtime.engine.encoder.sentences import TflmSentences
from device_runtime.errors import BackendError, BackendMissingError

__all__ = ["calibrate_encoder", "count_micro_encoder", "measured_encoder_arena", "write_micro_encoder"]

_KEY_SHARE, _VALUE_SHARE = 0.75, 0.5  # of the difference between channels that the factors take away
_HEADROOM = 1.25  # beyond what calibration saw of keys and values; int16 has a bit of it, see `fit_int16`
_INT8, _INT16 = np.dtype(np.int8), np.dtype(np.int16)


@dataclass
class EncoderRanges:
    """What calibration texts show of the float network."""

    limits: dict[str, FloatArray] = field(default_factory=dict)  # activation -> (2, channels): smallest and largest
    inputs: dict[str, list[FloatArray]] = field(default_factory=dict)  # of matmuls: rows, to compensate rounding
    heads: dict[str, list[FloatArray]] = field(default_factory=dict)  # q and k: rows of each text, for their products


def calibrate_encoder(
    config: EncoderConfig, read: ReadTensor, texts: Sequence[Sequence[int]], *, keep_inputs: bool = True
) -> EncoderRanges:
    """Read texts in float.

    Args:
        texts: tokens, their frames included.
        keep_inputs: what matmuls read, so that rounding errors can be made up for.
    """
    found = EncoderRanges()
    inputs = {matmul.input for matmul in linears(config).values()}
    products = {name for name, matmul in linears(config).items() if matmul.role in (Role.Q, Role.K)}

    def observe(name: str, values: FloatArray) -> None:
        limits = np.stack([values.min(axis=0), values.max(axis=0)])
        if (known := found.limits.get(name)) is not None:
            limits = np.stack([np.minimum(known[0], limits[0]), np.maximum(known[1], limits[1])])
        found.limits[name] = limits
        if name in products:
            found.heads.setdefault(name, []).append(values)
        if keep_inputs and name in inputs:
            found.inputs.setdefault(name, []).append(values)

    for tokens in texts:
        reference_sentence(config, read, tokens, observe)
    return found


@dataclass(frozen=True)
class _Channels:
    """What a tensor's channels lose, and are divided by, before they are stored: (channels,) each."""

    middle: FloatArray
    factor: FloatArray

    @classmethod
    def of(cls, limits: FloatArray, share: float) -> _Channels:
        middle = limits.mean(axis=0)
        size = (limits[1] - limits[0]) / 2
        size = np.maximum(size, max(float(size.max()) * 1e-3, 1e-6)) ** np.float32(share)
        return cls(middle, np.asarray(size / np.exp(np.log(size).mean()), np.float32))

    def stored(self, values: FloatArray) -> FloatArray:
        return np.asarray((values - self.middle) / self.factor, np.float32)


class _Micro:
    """Parameters and weights."""

    def __init__(
        self,
        config: EncoderConfig,
        read: ReadTensor,
        context: int,
        ranges: EncoderRanges,
        keep: Callable[[npt.NDArray[Any]], Constant],
        progress: Callable[[float], None],
    ) -> None:
        self._config, self._read, self._context, self._ranges = config, read, context, ranges
        self._keep, self._progress = keep, progress
        self._keys: dict[str, _Channels] = {}  # by the layer's name
        self._values: dict[str, _Channels] = {}
        for i in range(config.encoder.layers):
            layer = f"encoder.layers.{i}"
            self._keys[layer] = _Channels.of(ranges.limits[f"{layer}.k"], _KEY_SHARE)
            self._values[layer] = _Channels.of(ranges.limits[f"{layer}.v"], _VALUE_SHARE)
        self._layer_of = {f"{layer}.{part}": layer for layer in self._keys for part in "qkvo"}

    def params(self) -> dict[str, QuantParams]:
        """Of every activation in integers."""
        found = {"probabilities": QuantParams(1 / 32767, 0, _INT16)}
        limits = self._ranges.limits
        for matmul in linears(self._config).values():
            found[matmul.input] = fit_int16(limits[matmul.input])
            found[matmul.name] = fit_int16(limits[matmul.name])
        a = self._config.encoder.attention
        for layer, keys in self._keys.items():
            values = self._values[layer]
            found[f"{layer}.q"] = fit_int16(limits[f"{layer}.q"] * keys.factor * np.float32(a.score_scale))
            for name, channels, of in (("k", keys, "keys"), ("v", values, "values")):
                stored = channels.stored(limits[f"{layer}.{name}"])
                found[f"{layer}.{name}"] = fit_int16(stored)
                peak = max(float(np.abs(stored).max()), 1e-6) * _HEADROOM
                found[f"{layer}.{of}"] = QuantParams(peak / 127, 0, _INT8)
            found[f"{layer}.o.in"] = fit_int16(values.stored(limits[f"{layer}.o.in"]))
            found[f"{layer}.scores"] = fit_int16(np.array([[self._largest_score(layer)]], np.float32))
        return found

    def _largest_score(self, layer: str) -> float:
        """Of queries with keys that have lost their middle."""
        a, most = self._config.encoder.attention, 1e-6
        middle = self._keys[layer].middle
        for q, k in zip(self._ranges.heads[f"{layer}.q"], self._ranges.heads[f"{layer}.k"], strict=True):
            queries, keys = (x.reshape(len(x), a.heads, a.head_dim).transpose(1, 0, 2) for x in (q, k - middle))
            most = max(most, float(np.abs(queries @ keys.transpose(0, 2, 1)).max()) * a.score_scale)
        return most

    def constants(self) -> EncoderMicroConstants:
        """Everything that the graph reads."""
        config = self._config
        matmuls: dict[str, MicroMatmul] = {}
        for number, (name, matmul) in enumerate(linears(config).items()):
            matmuls[name] = self._matmul(matmul)
            self._progress((number + 1) / len(linears(config)))
        (rows,) = quantize_rows(self._read("embed.weight"))
        positions = None
        if config.encoder.positions:
            (places,) = quantize_rows(self._read("encoder.positions.weight")[: self._context])
            positions = self._keep(places.values), places.scale
        norms = {name: self._read(name) for name, shape in tensor_shapes(config).items() if "norm." in name}
        return EncoderMicroConstants(matmuls, (self._keep(rows.values), self._keep(rows.scale)), positions, norms)

    def _matmul(self, matmul: Linear) -> MicroMatmul:
        weight = self._read(matmul.weight)
        bias = self._read(f"{matmul.name}.bias") if matmul.bias else np.zeros(matmul.rows, np.float32)
        rows = self._ranges.inputs.get(matmul.input)
        x = None if rows is None else np.concatenate(rows)
        if (layer := self._layer_of.get(matmul.name)) is not None:
            keys, values = self._keys[layer], self._values[layer]
            if matmul.role is Role.Q:
                factor = keys.factor * np.float32(self._config.encoder.attention.score_scale)
                weight, bias = weight * factor[:, None], bias * factor
            elif matmul.role is Role.K:
                weight, bias = weight / keys.factor[:, None], keys.stored(bias)
            elif matmul.role is Role.V:
                weight, bias = weight / values.factor[:, None], values.stored(bias)
            elif matmul.role is Role.O:
                weight, bias = weight * values.factor, bias + weight @ values.middle
                x = None if x is None else values.stored(x)
        (quantized,) = quantize_rows(weight, hessian=None if x is None else Hessian(x))
        largest = int(np.abs(quantized.values.astype(np.int32)).sum(axis=1).max())
        some = bias if np.any(bias) else None
        return MicroMatmul(self._keep(quantized.values), quantized.scale, some, largest)


def write_micro_encoder(
    path: Path,
    config: EncoderConfig,
    read: ReadTensor,
    context: int,
    ranges: EncoderRanges,
    progress: Callable[[float], None],
) -> GraphCounts:
    """Quantize and write; returns what the graph consists of."""
    with GraphWriter(path.parent, external=False) as writer:
        made = _Micro(config, read, context, ranges, writer.constant, progress)
        params, constants = made.params(), made.constants()
        _emit(writer, constants, params, config, context)
        writer.write(path, f"stonechat micro profile, texts of up to {context} tokens")
    return _count(constants, params, config, context)


def _emit(
    writer: GraphWriter,
    constants: EncoderMicroConstants,
    params: Mapping[str, QuantParams],
    config: EncoderConfig,
    length: int,
) -> None:
    positions = constants.positions
    if positions is not None and positions[0].shape[0] != length:  # counted for another length
        rows = replace(positions[0], shape=(length, config.width))
        constants = replace(constants, positions=(rows, np.resize(positions[1], length)))
    ops = EncoderMicro(writer.subgraph(f"encode_{length}"), constants, params, length)
    ops.finish(sentence(ops, config))


def _count(
    constants: EncoderMicroConstants, params: Mapping[str, QuantParams], config: EncoderConfig, context: int
) -> GraphCounts:
    """Activations are those of the longest texts: scores grow by the square."""
    half = -(-context // 2)
    counts = count_graph(lambda writer, length: _emit(writer, constants, params, config, length), half)
    peaks = tuple(
        (ActivationPeak(max(line.bytes + 2 * half * line.bytes_per_position for line in lines), 0),)
        for lines in counts.activations
    )
    return replace(counts, activations=peaks)


def count_micro_encoder(config: EncoderConfig, context: int) -> GraphCounts:
    """What a graph would consist of, before anything is read or quantized."""
    shaped = CountingWriter().placeholder
    shapes = tensor_shapes(config)
    random = np.random.default_rng(0)  # no two constants are alike
    matmuls = {
        name: MicroMatmul(
            shaped((m.rows, m.columns), np.int8), np.ones(m.rows, np.float32),
            random.standard_normal(m.rows).astype(np.float32), m.columns * 36,
        )
        for name, m in linears(config).items()
    }  # fmt: skip
    width = config.width
    embedding = shaped((config.vocabulary, width), np.int8), shaped((config.vocabulary,), np.float32)
    positions = None
    if config.encoder.positions:
        positions = shaped((context, width), np.int8), random.standard_normal(context).astype(np.float32)
    norms = {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items() if "norm." in name}
    names = {name for m in linears(config).values() for name in (m.input, m.name)}
    params = {name: QuantParams(1.0, 0, _INT16) for name in (*names, "probabilities")}
    for i in range(config.encoder.layers):
        layer = f"encoder.layers.{i}"
        params |= {f"{layer}.{name}": QuantParams(1.0, 0, _INT8) for name in ("keys", "values")}
        params[f"{layer}.scores"] = QuantParams(1.0, 0, _INT16)
    return _count(EncoderMicroConstants(matmuls, embedding, positions, norms), params, config, context)


def measured_encoder_arena(bundle: Bundle) -> Arena | None:
    """Run the graph in TFLite Micro's own interpreter; returns what it takes of the arena.

    None where that interpreter is not installed (there are packages for x86_64 only).

    Raises:
        BackendError: TFLite Micro refuses the graph, or gives something that is not a number.
    """
    try:
        graph = TflmSentences(bundle)
    except BackendMissingError:
        return None
    try:
        if not np.isfinite(graph.read([1] * min(8, bundle.manifest.context))).all():
            raise BackendError(f"In TFLite Micro {bundle.model_path} gives values that are not numbers.")
        return graph.arena
    finally:
        graph.close()
