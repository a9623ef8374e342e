"""What each step of the `micro` profile's quantization is worth, added one after the other.

    python benchmarks/ablation.py CHECKPOINT [--windows 2] [--window 256]

Everything is computed in numpy: weights are rounded and taken back to float, and activations go through their grids
(converters/ops/simulated.py). So a step can be left out that the emitted graph always has. The last row is what the
graph computes, but for the rounding inside of its kernels; `stonechat eval` measures the graph itself. The texts are
those of every report, in windows after one prefix token; calibration never saw them. Takes about ten minutes on two
cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, calibrate, sorted_channels
from converters.measure.quality import Comparison, compare_logits, logits_by_rows, pooled
from converters.network.config import NetworkConfig
from converters.network.tensors import Activation, Linear, Role, activations, groups, linears, tensors
from converters.network.weights import CanonicalWeights, FloatArray, ReadTensor, Weights, keeping
from converters.ops.numpy import KvCache, NumpyOps
from converters.ops.simulated import SimulatedOps
from converters.profiles import PROFILES
from converters.quantize.calibrate import Calibrator
from converters.quantize.observers import ChannelPeaks, observe_windows
from converters.quantize.params import Choice, QuantParams, down_ranges, fit_int8
from converters.quantize.prefix import choose_prefix, prefix_cache
from converters.quantize.rotation import RotatedWeights
from converters.quantize.weights import Hessian, quantize_rows
from converters.texts.windows import heldout_windows
from device_runtime.engine.tokenizer import read_tokenizer

_BLOCK = 256  # rows whose logits are compared at once
_ALPHA = 0.75  # smoothing: exponent of a channel's peak in its scale
_PEAK_WINDOWS = 4


@dataclass(frozen=True)
class Reading:
    """A network, rounded in one way or another."""

    config: NetworkConfig
    read: ReadTensor
    prefix: KvCache | None  # None: the prefix token is an ordinary first token
    params: Mapping[str, QuantParams]


class MinMax:
    """An observer that makes every matmul's input and result int8, from smallest to largest value."""

    def __init__(self, config: NetworkConfig, smoothed: bool) -> None:
        self._activations, self._smoothed = activations(config), smoothed
        self.params: dict[str, QuantParams] = {}

    def __call__(self, name: str, values: FloatArray) -> None:
        """Take in one activation of all calibration windows."""
        activation = self._activations[name]
        if activation.kind not in ("input", "result"):
            return
        # Inputs that were rotated are smooth already, and those of `down` have a scale for each range of channels.
        if self._smoothed and activation.kind == "input" and activation.role is Role.DOWN:
            scales = range_scales(values)
            fitted = fit_int8(values / scales, Choice(0.0, "min-max"))
            self.params[name] = QuantParams(fitted.scale, fitted.zero_point, fitted.dtype, scales)
        else:
            alpha = _ALPHA if self._smoothed and activation.kind == "result" else 0.0
            self.params[name] = fit_int8(values, Choice(alpha, "min-max"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what each step of quantization is worth")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=2, help="of each kind of text")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    config, file = checkpoint.config, checkpoint.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.file_name
        path.write_bytes(file.content)
        tokenizer = read_tokenizer(path)
    prefix_tokens = choose_prefix(file, tokenizer)
    calibration = calibrate(config, PROFILES["micro"], tokenizer, file, config.max_context, Options("micro"))
    kinds = heldout_windows(tokenizer, file.chat_template, file.special_tokens, args.window, args.windows)
    windows = np.concatenate(list(kinds.values()))
    print(f"{(windows.shape[1] - 1) * len(windows)} tokens, after {calibration.size} of calibration", flush=True)
    print(f"{'':52} perplexity   ratio   KL, nats  same top-1")
    for name, reading in readings(checkpoint, prefix_tokens, calibration):
        c = compare(checkpoint, prefix_tokens, windows, reading)
        print(
            f"{name:52} {c.graph_perplexity:10.2f}  {c.ratio:7.4f}  {c.kl_divergence:8.5f}  {c.top1_agreement:9.1%}",
            flush=True,
        )


def readings(
    checkpoint: Checkpoint, prefix_tokens: list[int], calibration: np.ndarray
) -> Iterator[tuple[str, Reading]]:
    """(what has been added, the network so far), one after the other."""
    config = checkpoint.config
    read = CanonicalWeights(config, checkpoint.read)
    prefix = prefix_cache(read, prefix_tokens)
    yield "float32", Reading(config, read, None, {})

    note("calibrating without a prefix")
    first = np.tile(np.array(prefix_tokens), (len(calibration), 1))
    plain = MinMax(config, smoothed=False)
    observe_windows(config, read, np.concatenate([first, calibration], axis=1), KvCache(), plain)
    plain.params["head"] = head_params(config, read, calibration[:2], None)
    rounded = RoundedWeights(read, plain.params)
    yield "int8 weights and activations, min to max", Reading(config, rounded, None, plain.params)

    note("calibrating after the prefix")
    after = MinMax(config, smoothed=False)
    peaks = ChannelPeaks(config)
    observe_windows(config, read, calibration, prefix, after)
    observe_windows(config, read, calibration[:_PEAK_WINDOWS], prefix, peaks)
    after.params["head"] = head_params(config, read, calibration[:2], prefix)
    rounded = RoundedWeights(read, after.params)
    yield "+ first position in float (prefix)", Reading(config, rounded, prefix, after.params)

    note("calibrating the rotated network")
    rotated = RotatedWeights(read, sorted_channels(config, peaks))
    config, prefix = rotated.config, rotated.rotate_cache(prefix)
    smooth = MinMax(config, smoothed=True)
    observe_windows(config, rotated, calibration, prefix, smooth)
    smooth.params["head"] = after.params["head"]
    nearest = RoundedWeights(rotated, smooth.params, ranges=True)
    yield "+ rotation, a scale per channel (smoothing)", Reading(config, nearest, prefix, smooth.params)

    note("choosing ranges and rounding weights")
    compensated = RoundedWeights(rotated, {}, ranges=True, compensate=True)
    calibrator = Calibrator(config, rotated, calibration, prefix, True, compensated.quantize_layer)
    observe_windows(config, rotated, calibration, prefix, calibrator)
    chosen = calibrator.result
    known = activations(config)
    matmuls = {name: p for name, p in chosen.params.items() if name in known and of_matmul(known[name])}
    int8 = {**matmuls, **{name: p for name, p in chosen.int8_instead.items() if of_matmul(known[name])}}
    nearest = RoundedWeights(rotated, chosen.params, ranges=True)
    yield "+ ranges by error", Reading(config, nearest, prefix, int8)
    yield "+ int16 for o, down and head", Reading(config, nearest, prefix, matmuls)
    yield "+ error compensation (GPTQ)", Reading(config, compensated, prefix, matmuls)
    yield "+ int8 kv_cache, int16 attention", Reading(config, compensated, prefix, chosen.params)


def of_matmul(activation: Activation) -> bool:
    """A matmul's input or result, none of attention's."""
    return activation.kind in ("input", "result")


class RoundedWeights:
    """Weights as their int8 values are in float; the channel scales of a matmul's input are part of them."""

    def __init__(
        self, weights: Weights, params: Mapping[str, QuantParams], *, ranges: bool = False, compensate: bool = False
    ) -> None:
        self._weights, self._params, self._ranges, self._compensate = weights, params, ranges, compensate
        self._groups = groups(weights.config)
        self._matmuls = {matmul.weight: matmul for matmul in linears(weights.config)}
        self._embedding = {t.name for t in tensors(weights.config) if t.kind == "embedding"}
        self._kept: dict[str, list[tuple[np.ndarray, FloatArray]]] = {}  # int8 values and scales of each range

    def quantize_layer(
        self, layer: int, params: Mapping[str, QuantParams], activations: Mapping[str, FloatArray]
    ) -> None:
        """As `Calibrator` calls it."""
        self._params = params
        for group in self._groups:
            if group[0].layer != layer:
                continue
            scales = self._scales(group[0])
            x = activations[group[0].input]
            hessian = Hessian(x if scales is None else x / scales)
            for matmul in group:
                self._keep(matmul, hessian)
        print(f"\r{layer + 1} layers", end="", file=sys.stderr, flush=True)

    def __call__(self, name: str) -> FloatArray:
        """As `ReadTensor`."""
        if name in self._embedding:
            rows = quantize_rows(self._weights(name))
            return np.asarray(rows[0].values * rows[0].scale[:, None])
        matmul = self._matmuls.get(name)
        if matmul is None:
            return self._weights(name)
        if name not in self._kept:
            self._keep(matmul, None)
        weight: FloatArray = np.concatenate([values * scale[:, None] for values, scale in self._kept[name]], axis=1)
        if not self._compensate:
            del self._kept[name]
        scales = self._scales(matmul)
        return weight if scales is None else weight / scales

    def _keep(self, matmul: Linear, hessian: Hessian | None) -> None:
        weight, scales = self._weights(matmul.weight), self._scales(matmul)
        cuts = [start for start, _ in down_ranges(matmul.columns)[1:]] if self._cut(matmul) else []
        rows = quantize_rows(weight if scales is None else weight * scales, cuts, hessian)
        self._kept[matmul.weight] = [(r.values, r.scale) for r in rows]

    def _scales(self, matmul: Linear) -> FloatArray | None:
        params = self._params.get(matmul.input)
        return None if params is None or self._cut(matmul) else params.scales  # ranges have scales of their own instead

    def _cut(self, matmul: Linear) -> bool:
        return self._ranges and matmul.role is Role.DOWN


def range_scales(x: FloatArray) -> FloatArray:
    """The peak of each range of `down`'s columns, for each of its columns."""
    peaks = [
        (stop - start, max(float(np.abs(x[:, start:stop]).max()), 1e-6)) for start, stop in down_ranges(x.shape[1])
    ]
    return np.concatenate([np.full(count, peak, np.float32) for count, peak in peaks])


def head_params(config: NetworkConfig, read: ReadTensor, windows: np.ndarray, prefix: KvCache | None) -> QuantParams:
    """From the smallest to the largest logit of some windows."""
    logits = logits_by_rows(config, NumpyOps(config, read, windows, prefix))(0, windows.size)
    return fit_int8(logits.reshape(-1, 1), Choice(0.0, "min-max"))


def compare(checkpoint: Checkpoint, prefix_tokens: list[int], windows: np.ndarray, reading: Reading) -> Comparison:
    """A reading beside the float network."""
    config = checkpoint.config
    canonical = CanonicalWeights(config, checkpoint.read)
    read = keeping(canonical, "head.weight")
    prefix = prefix_cache(canonical, prefix_tokens)
    reference = logits_by_rows(config, NumpyOps(config, read, windows, prefix))
    rounded_read = keeping(reading.read, "head.weight")
    if reading.prefix is None:
        first = np.tile(np.array(prefix_tokens), (len(windows), 1))
        ops = SimulatedOps(reading.config, rounded_read, np.concatenate([first, windows], axis=1), None, reading.params)
    else:
        ops = SimulatedOps(reading.config, rounded_read, windows, reading.prefix, reading.params)
    skipped = len(prefix_tokens) if reading.prefix is None else 0
    rounded = logits_by_rows(reading.config, ops)
    parts, length = [], windows.shape[1]
    for number, window in enumerate(windows):
        for start in range(0, length - 1, _BLOCK):
            stop = min(start + _BLOCK, length - 1)
            at = number * (length + skipped) + skipped
            graph = rounded(at + start, at + stop)
            parts.append(
                compare_logits(
                    reference(number * length + start, number * length + stop), graph, window[start + 1 : stop + 1]
                )
            )
    return pooled(parts)


def note(text: str) -> None:
    """Print on stderr what takes so long."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
