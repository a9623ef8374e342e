"""Write the `micro` graph: one signature, `decode`, whose kv_cache lies inside the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converters.emit.tflite_write import GraphWriter
from converters.network.decoder import NetworkConfig, decoder, matmul_groups
from converters.ops.numpy import FloatArray, KvCache, ReadTensor
from converters.ops.tflite import rope_tables
from converters.ops.tflite_micro import MicroConstants, MicroMatmul, MicroOps
from converters.quantize.activations import ActivationGrids, GridChooser, down_ranges
from converters.quantize.grids import Grid, int16_grid
from converters.quantize.observers import observe_windows
from converters.quantize.weights import InputProducts, QuantizedRows, quantize_rows

__all__ = ["write_micro"]


def write_micro(
    path: Path,
    config: NetworkConfig,
    read: ReadTensor,
    embedding_map: FloatArray | None,
    prefix: KvCache,
    windows: npt.NDArray[np.integer],
    context: int,
    *,
    thorough: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> ActivationGrids:
    """Calibrate, quantize and write the graph.

    Args:
        read: rotated tensors by canonical name, with norm gains of 1; `head.weight` too, even if the head is tied.
        embedding_map: (width, width), which takes a row of a tied head to that token's embedding.
        prefix: keys and values of the first positions, rotated like `read`; empty for none.
        windows: (windows, length) tokens to calibrate on; each window starts right behind the prefix.
        context: positions that the kv_cache holds, those of the prefix included.
        thorough: search for the best grids, and make up for rounding errors; else the usual grids and rounding to
            the nearest.
        progress: called with the name of each matmul group that is done.

    Returns:
        The grids of all activations.
    """
    with GraphWriter(path.parent, external=False) as writer:
        weights = _Weights(writer, config, read, compensate=thorough, progress=progress)
        chooser = GridChooser(config, read, windows, prefix, thorough, weights.quantize_layer)
        observe_windows(config, read, windows, prefix, chooser)
        result = chooser.result
        constants = _constants(writer, config, read, embedding_map, prefix, context, weights, result.grids)
        ops = MicroOps(writer.subgraph("decode"), constants, config, result.grids, context)
        ops.finish(decoder(ops, config))
        writer.write(path, f"stonechat micro profile, context {context}")
    return result


class _Weights:
    """Quantizes the matmuls of a layer as soon as its grids are known."""

    def __init__(
        self,
        writer: GraphWriter,
        config: NetworkConfig,
        read: ReadTensor,
        compensate: bool,
        progress: Callable[[str], None],
    ) -> None:
        self.matmuls: dict[str, MicroMatmul] = {}
        self._writer, self._config, self._read = writer, config, read
        self._compensate, self._progress = compensate, progress
        self._groups = matmul_groups(config)

    def quantize_layer(self, layer: int, grids: Mapping[str, Grid], activations: Mapping[str, FloatArray]) -> None:
        """Quantize all matmuls of one layer, whose inputs are among `activations`."""
        for group in self._groups[4 * layer : 4 * layer + 4]:
            on_x = grids[f"{group[0]}.in"]
            down = group[0].endswith(".down")  # whose ranges have grids of their own instead of factors
            factors = None if down else on_x.factors
            products = None
            if self._compensate:
                x = activations[f"{group[0]}.in"]
                x = x if on_x.centers is None else x - on_x.centers
                products = InputProducts(x if factors is None else x / factors)
            for name in group:
                weight = self._read(f"{name}.weight")
                if down:
                    ranges = down_ranges(weight.shape[1])
                    cuts = [start for start, _ in ranges[1:]]
                    for i, rows in enumerate(quantize_rows(weight, cuts, products)):
                        self.add(f"{name}.{i}", rows, self._bias(name) if i == 0 else None)
                else:
                    (rows,) = quantize_rows(weight if factors is None else weight * factors, products=products)
                    self.add(name, rows, self._bias(name, weight, on_x.centers, grids[name].centers))
            self._progress(group[0])

    def _bias(
        self,
        name: str,
        weight: FloatArray | None = None,
        on_x: FloatArray | None = None,
        on_result: FloatArray | None = None,
    ) -> FloatArray | None:
        """The bias of a matmul of the network, (out,), and what the centers of its input and of its result make of it.

        The network's weight times the input's centers is exact, while the rounded weight multiplies what is left.
        """
        bias = self._read(f"{name}.bias") if self._config.has_bias(name) else None
        if on_x is not None and weight is not None:
            bias = weight @ on_x + (0 if bias is None else bias)
        if on_result is not None:
            bias = (0 if bias is None else bias) - on_result
        return bias

    def quantize_head(self) -> QuantizedRows:
        """The rows of a tied head are embeddings too, for which compensation would only add error."""
        (rows,) = quantize_rows(self._read("head.weight"))
        self.add("head", rows)
        self._progress("head")
        return rows

    def add(self, name: str, rows: QuantizedRows, bias: FloatArray | None = None) -> MicroMatmul:
        """Spool the weights of one matmul."""
        # In blocks of rows: |weight| in 32 bits is four times the weight.
        blocks = (rows.values[start : start + 4096] for start in range(0, len(rows.values), 4096))
        largest_sum = max(int(np.abs(block.astype(np.int32)).sum(axis=1).max()) for block in blocks)
        self.matmuls[name] = MicroMatmul(self._writer.constant(rows.values), rows.scale, bias, largest_sum)
        return self.matmuls[name]


def _constants(
    writer: GraphWriter,
    config: NetworkConfig,
    read: ReadTensor,
    embedding_map: FloatArray | None,
    prefix: KvCache,
    context: int,
    weights: _Weights,
    grids: dict[str, Grid],
) -> MicroConstants:
    head = weights.quantize_head()
    mapped: tuple[MicroMatmul, ...] = ()
    if config.tied_head:
        embedding, embedding_scale = weights.matmuls["head"].weight, writer.constant(head.scale)
        if embedding_map is not None:
            mapped = _embedding_map(weights, head, embedding_map, grids)
    else:
        (rows,) = quantize_rows(read("embed.weight"))
        embedding, embedding_scale = writer.constant(rows.values), writer.constant(rows.scale)
    cos, sin = (writer.constant(table) for table in rope_tables(config, context))
    return MicroConstants(weights.matmuls, embedding, embedding_scale, mapped, cos, sin, prefix)


def _embedding_map(
    weights: _Weights, head: QuantizedRows, embedding_map: FloatArray, grids: dict[str, Grid]
) -> tuple[MicroMatmul, ...]:
    """The map as two int16 matmuls, of which the second makes up for the rounding of the first.

    One alone leaves the embedding 25 dB above its error on SmolLM2, both leave the 42 dB that the int8 rows have.
    All inputs are known, so the grids are exact.
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
        grids[name] = int16_grid(limits)
    return tuple(matmuls)
