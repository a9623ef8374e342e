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
from converters.convert import PEAK_WINDOWS, Options, calibration_windows, heldout_windows, sorted_channels
from converters.measure.quality import Comparison, compare_logits, logits_by_rows, pooled
from converters.network.decoder import NetworkConfig, matmul_groups
from converters.ops.numpy import FloatArray, KvCache, NumpyOps, ReadTensor, keeping, with_head
from converters.ops.simulated import SimulatedOps
from converters.quantize.activations import GridChooser, down_ranges
from converters.quantize.grids import Choice, Grid, fit_grid
from converters.quantize.observers import ChannelPeaks, observe_windows
from converters.quantize.prefix import choose_prefix, float_prefix
from converters.quantize.rotation import Rotation
from converters.quantize.weights import InputProducts, quantize_rows
from device_runtime.engine.tokenizer import read_tokenizer

_BLOCK = 256  # rows whose logits are compared at once
_SMOOTHING = 0.75  # exponent of a channel's peak in its factor
_ATTENTION = (".keys", ".queries", ".scores", ".probabilities")


@dataclass(frozen=True)
class Reading:
    """A network, rounded in one way or another."""

    read: ReadTensor
    prefix: KvCache | None  # None: the prefix token is an ordinary first token
    grids: Mapping[str, Grid]


class MinMax:
    """An observer that gives every matmul's input and result an int8 grid from smallest to largest value."""

    def __init__(self, config: NetworkConfig, smoothed: bool) -> None:
        names = [name for group in matmul_groups(config) for name in group]
        self._inputs = {f"{group[0]}.in" for group in matmul_groups(config)}
        self._names = {*names, *self._inputs}
        self._smoothed = smoothed
        self.grids: dict[str, Grid] = {}

    def __call__(self, name: str, values: FloatArray) -> None:
        """Take in one activation of all calibration windows."""
        if name not in self._names:
            return
        # Inputs that were rotated are even already, and those of `down` have a grid for each range of channels.
        if self._smoothed and name.endswith(".down.in"):
            factors = range_factors(values)
            grid = fit_grid(values / factors, Choice(0.0, "min-max"))
            self.grids[name] = Grid(grid.scale, grid.zero_point, grid.dtype, factors)
        else:
            evening = _SMOOTHING if self._smoothed and name not in self._inputs else 0.0
            self.grids[name] = fit_grid(values, Choice(evening, "min-max"))


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
    calibration = calibration_windows(tokenizer, file, config, Options("micro"), config.max_context)
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
    read = with_head(config, checkpoint.read)
    prefix = float_prefix(config, read, prefix_tokens).cache
    yield "float32", Reading(read, None, {})

    note("calibrating without a prefix")
    first = np.tile(np.array(prefix_tokens), (len(calibration), 1))
    plain = MinMax(config, smoothed=False)
    observe_windows(config, read, np.concatenate([first, calibration], axis=1), KvCache(), plain)
    plain.grids["head"] = head_grid(config, read, calibration[:2], None)
    rounded = RoundedWeights(config, read, plain.grids).read
    yield "int8 weights and activations, min to max", Reading(rounded, None, plain.grids)

    note("calibrating after the prefix")
    behind = MinMax(config, smoothed=False)
    peaks = ChannelPeaks()
    observe_windows(config, read, calibration, prefix, behind)
    observe_windows(config, read, calibration[:PEAK_WINDOWS], prefix, peaks)
    behind.grids["head"] = head_grid(config, read, calibration[:2], prefix)
    yield (
        "+ first position in float (prefix)",
        Reading(RoundedWeights(config, read, behind.grids).read, prefix, behind.grids),
    )

    note("calibrating the rotated network")
    rotation = Rotation(config, sorted_channels(config, peaks))
    turned, turned_prefix = rotation.apply(read), rotation.apply_to_cache(prefix)
    smooth = MinMax(config, smoothed=True)
    observe_windows(config, turned, calibration, turned_prefix, smooth)
    smooth.grids["head"] = behind.grids["head"]
    nearest = RoundedWeights(config, turned, smooth.grids, ranges=True).read
    yield "+ rotation, a factor per channel (smoothing)", Reading(nearest, turned_prefix, smooth.grids)

    note("choosing grids and rounding weights")
    compensated = RoundedWeights(config, turned, {}, ranges=True, compensate=True)
    chooser = GridChooser(config, turned, calibration, turned_prefix, True, compensated.quantize_layer)
    observe_windows(config, turned, calibration, turned_prefix, chooser)
    chosen = chooser.result
    matmuls = {name: grid for name, grid in chosen.grids.items() if not name.endswith(_ATTENTION)}
    int8 = {**matmuls, **{name: grid for name, grid in chosen.int8_instead.items() if not name.endswith(_ATTENTION)}}
    nearest = RoundedWeights(config, turned, chosen.grids, ranges=True).read
    yield "+ ranges by error", Reading(nearest, turned_prefix, int8)
    yield "+ int16 for o, down and head", Reading(nearest, turned_prefix, matmuls)
    yield "+ error compensation (GPTQ)", Reading(compensated.read, turned_prefix, matmuls)
    yield "+ int8 kv_cache, int16 attention", Reading(compensated.read, turned_prefix, chosen.grids)


class RoundedWeights:
    """Weights as the int8 ones stand for, in float; the factors of a matmul's input are part of them."""

    def __init__(
        self, config: NetworkConfig, read: ReadTensor, grids: Mapping[str, Grid], *, ranges: bool = False,
        compensate: bool = False,
    ) -> None:  # fmt: skip
        self._read, self._grids, self._ranges, self._compensate = read, grids, ranges, compensate
        self._groups = matmul_groups(config)
        self._input_of = {name: f"{group[0]}.in" for group in self._groups for name in group}
        self._kept: dict[str, list[tuple[np.ndarray, FloatArray]]] = {}  # int8 values and scales of each range

    def quantize_layer(self, layer: int, grids: Mapping[str, Grid], activations: Mapping[str, FloatArray]) -> None:
        """As `GridChooser` calls it."""
        self._grids = grids
        for group in self._groups[4 * layer : 4 * layer + 4]:
            factors = self._factors(group[0])
            x = activations[f"{group[0]}.in"]
            products = InputProducts(x if factors is None else x / factors)
            for name in group:
                self._keep(name, products)
        print(f"\r{layer + 1} layers", end="", file=sys.stderr, flush=True)

    def read(self, name: str) -> FloatArray:
        """As `ReadTensor`."""
        owner, _, part = name.rpartition(".")
        if part != "weight" or owner.endswith("norm"):
            return self._read(name)
        if owner == "embed":
            rows = quantize_rows(self._read(name))
            return np.asarray(rows[0].values * rows[0].scale[:, None])
        if owner not in self._kept:
            self._keep(owner, None)
        weight = np.concatenate([values * scale[:, None] for values, scale in self._kept[owner]], axis=1)
        if not self._compensate:
            del self._kept[owner]
        factors = self._factors(owner)
        return weight if factors is None else weight / factors

    def _keep(self, name: str, products: InputProducts | None) -> None:
        weight, factors = self._read(f"{name}.weight"), self._factors(name)
        cuts = [start for start, _ in down_ranges(weight.shape[1])[1:]] if self._cut(name) else []
        rows = quantize_rows(weight if factors is None else weight * factors, cuts, products)
        self._kept[name] = [(r.values, r.scale) for r in rows]

    def _factors(self, name: str) -> FloatArray | None:
        grid = self._grids.get(self._input_of[name])
        return None if grid is None or self._cut(name) else grid.factors  # ranges have scales of their own instead

    def _cut(self, name: str) -> bool:
        return self._ranges and name.endswith(".down")


def range_factors(x: FloatArray) -> FloatArray:
    """The peak of each range of `down`'s columns, for each of its columns."""
    peaks = [
        (stop - start, max(float(np.abs(x[:, start:stop]).max()), 1e-6)) for start, stop in down_ranges(x.shape[1])
    ]
    return np.concatenate([np.full(count, peak, np.float32) for count, peak in peaks])


def head_grid(config: NetworkConfig, read: ReadTensor, windows: np.ndarray, prefix: KvCache | None) -> Grid:
    """From the smallest to the largest logit of some windows."""
    logits = logits_by_rows(config, NumpyOps(config, read, windows, prefix))(0, windows.size)
    return fit_grid(logits.reshape(-1, 1), Choice(0.0, "min-max"))


def compare(checkpoint: Checkpoint, prefix_tokens: list[int], windows: np.ndarray, reading: Reading) -> Comparison:
    """A reading beside the float network."""
    config = checkpoint.config
    read = keeping(with_head(config, checkpoint.read), "head.weight")
    prefix = float_prefix(config, read, prefix_tokens).cache
    reference = logits_by_rows(config, NumpyOps(config, read, windows, prefix))
    rounded_read = keeping(reading.read, "head.weight")
    if reading.prefix is None:
        first = np.tile(np.array(prefix_tokens), (len(windows), 1))
        ops = SimulatedOps(config, rounded_read, np.concatenate([first, windows], axis=1), None, reading.grids)
    else:
        ops = SimulatedOps(config, rounded_read, windows, reading.prefix, reading.grids)
    skipped = len(prefix_tokens) if reading.prefix is None else 0
    rounded = logits_by_rows(config, ops)
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
    """Report on stderr what takes so long."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
