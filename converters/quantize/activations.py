"""Grids for every activation of the `micro` profile, chosen layer by layer while the float network reads a text.

For each tensor several grids are tried (how far its channels are evened out, whether they are centered, and how the
range is taken), and the one is kept that disturbs the block's result least: what reaches the residual sum, in
proportion to that sum, on windows that the fit has not seen. A grid that fits what calibration saw to the last bit
clips the next text.

What is int16: the inputs of `down`, whose largest values are a hundred times the others, and of the head, because int8
logits would tie; the rows that attention multiplies with the int8 kv_cache; and so what comes of them, the input of
`o`. Their range needs no choice. How they would do in int8 is kept beside them (`ActivationGrids.int8_instead`), so
that a report can say what int16 buys.

The few channels of `down`'s input that are a thousand times larger than the rest are too much even for int16. The
channels are sorted by size (see rotation.py), and the last 24th of them gets a grid of its own (`down_ranges`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from converters.network.decoder import NetworkConfig
from converters.ops.numpy import FloatArray, KvCache, NumpyOps, ReadTensor
from converters.quantize.grids import METHODS, Choice, Grid, fit_grid, int16_grid

__all__ = ["INT16_MATMULS", "ActivationGrids", "GridChooser", "down_ranges"]

INT16_MATMULS = ("o", "down", "head")
_EVENINGS = (0.0, 0.5, 0.75, 1.0)
_USUAL = Choice(0.75, "headroom")  # what is taken where nothing is tried
_USUAL_INPUT = Choice(0.0, "min-max")  # of a rotated input, whose channels are alike
_CHECKED_TOKENS = 1024  # on which grids are compared
_HEAD_ROWS = 256  # positions whose logits are computed, for the range of the logits
_Store = Callable[[FloatArray], FloatArray]  # values -> what is left of them when they were stored
LayerDone = Callable[[int, Mapping[str, Grid], Mapping[str, FloatArray]], None]


def down_ranges(ffn_width: int) -> list[tuple[int, int]]:
    """(start, stop) of the ranges of `down`'s columns, each of which has a grid of its own."""
    if ffn_width < 256:
        return [(0, ffn_width)]
    cut = ffn_width * 23 // 24 // 32 * 32
    return [(0, cut), (cut, ffn_width)]


def _same(values: FloatArray) -> FloatArray:
    return values


@dataclass
class ActivationGrids:
    """What a calibration run has chosen."""

    grids: dict[str, Grid] = field(default_factory=dict)
    int8_instead: dict[str, Grid] = field(default_factory=dict)  # for activations that are int16 in `grids`
    choices: dict[str, Choice] = field(default_factory=dict)


class GridChooser:
    """An observer (see `NumpyOps`) of one pass over all calibration windows.

    Args:
        read: tensors of the network that is being read, `head.weight` among them.
        windows: (windows, length) tokens that the pass reads, behind `prefix`.
        search: try several grids for each tensor; False takes the usual one.
        layer_done: called with a layer's number, the grids so far and the layer's activations by name, to quantize
            its weights while their inputs are at hand.
    """

    def __init__(
        self,
        config: NetworkConfig,
        read: ReadTensor,
        windows: npt.NDArray[np.integer],
        prefix: KvCache,
        search: bool,
        layer_done: LayerDone = lambda layer, grids, activations: None,
    ) -> None:
        self.result = ActivationGrids()
        self._config, self._read, self._prefix = config, read, prefix
        self._search, self._layer_done = search, layer_done
        checked = np.zeros(len(windows), bool)
        checked[:: max(1, len(windows) * windows.shape[1] // _CHECKED_TOKENS)] = True
        self._checked_windows = windows[checked]
        self._checked = np.repeat(checked, windows.shape[1])  # rows
        # With one window there is nothing else to fit on.
        self._fitted = ~self._checked if not checked.all() else self._checked
        self._seen: dict[str, FloatArray] = {}  # of the layer that is being read
        self._peaks: dict[str, float] = {}  # of activations that are too large to keep

    def __call__(self, name: str, values: FloatArray) -> None:
        """Take in one activation."""
        if name.endswith((".scores", ".probabilities")):
            low = float(np.min(values, where=np.isfinite(values), initial=0.0))
            self._peaks[name] = max(self._peaks.get(name, 0.0), float(values.max()), -low)
        elif name == "head.in":
            self._finish_head(values)
        else:
            self._seen[name] = values
            if name.endswith(".out"):
                self._finish_layer(int(name.split(".")[1]))

    # -- a layer -----------------------------------------------------------------------------------

    def _finish_layer(self, i: int) -> None:
        name, c = f"layers.{i}", self._config
        x = {kind.removeprefix(f"{name}."): values[self._checked] for kind, values in self._seen.items()}
        past = self._prefix.layers[i] if self._prefix.layers else None
        o, down = (self._read(f"{name}.{kind}.weight").T for kind in ("o", "down"))
        qkv = np.concatenate([self._read(f"{name}.{kind}.weight") for kind in ("q", "k", "v")]).T
        gate_up = np.concatenate([self._read(f"{name}.{kind}.weight") for kind in ("gate", "up")]).T

        def attention(q: _Store = _same, k: _Store = _same, keys: _Store = _same, v: _Store = _same) -> FloatArray:
            turned_q, turned_k = self._ops(KvCache([past] if past else [])).rope(q(x["q"]), k(x["k"]))
            stored_past = KvCache()
            if past:
                flat = [t.reshape(t.shape[1], -1) for t in past]
                shape = (1, -1, c.kv_heads, c.head_dim)
                stored_past.layers.append((keys(flat[0]).reshape(shape), v(flat[1]).reshape(shape)))
            return self._ops(stored_past).attend(turned_q, keys(turned_k), v(x["v"]), 0) @ o

        def feed_forward(gate: _Store = _same, up: _Store = _same) -> FloatArray:
            return self._ops(KvCache()).gated_silu(gate(x["gate"]), up(x["up"])) @ down

        self._choose(f"{name}.q.in", lambda store: store(x["q.in"]) @ qkv, None, rotated=True)
        self._choose(f"{name}.gate.in", lambda store: store(x["gate.in"]) @ gate_up, None, rotated=True)
        total = x["attention_out"]
        clean = attention() if self._search else None
        self._choose(f"{name}.q", lambda store: attention(q=store), total, clean)
        self._choose(f"{name}.k", lambda store: attention(k=store), total, clean)
        keys, values = (t.reshape(-1, c.kv_width) for t in past) if past else (None, None)
        self._choose(f"{name}.keys", lambda store: attention(keys=store), total, clean, keys)
        self._choose(f"{name}.v", lambda store: attention(v=store), total, clean, values)
        total = x["out"]
        clean = feed_forward() if self._search else None
        self._choose(f"{name}.gate", lambda store: feed_forward(gate=store), total, clean)
        self._choose(f"{name}.up", lambda store: feed_forward(up=store), total, clean)
        self._set_down(f"{name}.down", down)
        self._set_attention(name)
        self._set_int16(f"{name}.o", self._seen[f"{name}.o"])
        self._layer_done(i, self.result.grids, self._seen)
        self._seen.clear()

    def _ops(self, past: KvCache) -> NumpyOps:
        return NumpyOps(self._config, self._read, self._checked_windows, past)

    def _choose(
        self,
        name: str,
        result: Callable[[_Store], FloatArray],
        total: FloatArray | None,
        clean: FloatArray | None = None,
        past: FloatArray | None = None,
        *,
        rotated: bool = False,
    ) -> None:
        """Choose the grid of one activation.

        Args:
            result: what the block gives on the checked rows when this activation is stored in some way.
            total: the residual sum after the block; a token's error counts in proportion to it. None: all count alike.
            clean: the result when nothing is stored.
            past: (positions, channels) of the prefix, which shares the grid.
        """
        values = self._seen[name]
        kind = name.rpartition(".")[2]
        in_cache = kind in ("keys", "v")  # and so a matmul's weights, which have no zero point
        # A vector that is the same at all positions moves a query's scores all alike, and softmax does not see it.
        centering = {"keys": (True,), "v": (False,)}.get(kind, (False, True))

        def fit(rows: FloatArray, choice: Choice) -> Grid:
            joined = rows if past is None else np.concatenate([rows, past])
            return fit_grid(joined, choice, symmetric=in_cache)

        usual = _USUAL_INPUT if rotated else _USUAL
        choice = replace(usual, centered=centering[0])
        if self._search:
            clean = result(_same) if clean is None else clean
            weight = 1.0 if total is None else 1 / np.maximum(np.square(total).mean(axis=1, keepdims=True), 1e-12)
            fitted = values[self._fitted]

            def error(choice: Choice) -> float:
                difference = result(fit(fitted, choice).rounded) - clean
                return float((np.square(difference) * weight).mean(dtype=np.float64))

            evenings = (0.0,) if rotated else _EVENINGS
            tried = [Choice(evening, usual.method, centered) for centered in centering for evening in evenings]
            choice = min(tried, key=error)
            choice = min((replace(choice, method=method) for method in METHODS), key=error)
        self.result.choices[name] = choice
        self.result.grids[name] = fit(values, choice)

    def _set_int16(self, name: str, values: FloatArray, factors: FloatArray | None = None) -> None:
        stored = values if factors is None else values / factors
        self.result.grids[name] = int16_grid(stored, factors)
        int8 = fit_grid(stored, Choice(0.0, "mse"))
        self.result.int8_instead[name] = Grid(int8.scale, int8.zero_point, int8.dtype, factors)

    def _set_down(self, name: str, weight: FloatArray) -> None:
        """`down` as a sum over ranges of its columns, each with a result of its own; weight: (ffn_width, width)."""
        x, total = self._seen[f"{name}.in"], self._seen[name]
        ranges = down_ranges(x.shape[1])
        peaks = [max(float(x[:, slice(*r)].max()), -float(x[:, slice(*r)].min()), 1e-6) for r in ranges]
        factors = np.concatenate(
            [np.full(stop - start, peak) for (start, stop), peak in zip(ranges, peaks, strict=True)]
        )
        factors = factors.astype(np.float32)
        self._set_int16(f"{name}.in", x, factors if len(ranges) > 1 else None)
        parts = [x[:, slice(*r)] @ weight[slice(*r)] for r in ranges[1:]]
        parts.insert(0, total - sum(parts) if parts else total)
        for i, part in enumerate(parts):
            self.result.grids[f"{name}.{i}"] = int16_grid(part)
        self.result.int8_instead[name] = fit_grid(total, Choice(0.0, "mse"))

    def _set_attention(self, name: str) -> None:
        """What attention multiplies with the cache, and `o.in`, its result, divided by the values' factors."""
        c, grids = self._config, self.result.grids

        def of_query_heads(factors: FloatArray) -> FloatArray:
            return np.repeat(factors.reshape(c.kv_heads, -1), c.heads // c.kv_heads, axis=0).reshape(-1)

        on_keys, on_values = grids[f"{name}.keys"].factors, grids[f"{name}.v"].factors
        queries = self._seen[f"{name}.queries"]
        # Queries take over what keys were divided by, and attention's 1 / sqrt(head_dim).
        undone = np.full(c.q_width, np.sqrt(c.head_dim), np.float32)
        self._set_int16(f"{name}.queries", queries, undone if on_keys is None else undone / of_query_heads(on_keys))
        factors = None if on_values is None else of_query_heads(on_values)
        self._set_int16(f"{name}.o.in", self._seen[f"{name}.o.in"], factors)
        grids[f"{name}.centered_scores"] = int16_grid(self._centered_scores(name))
        peak = self._peaks.pop(f"{name}.scores")
        self.result.int8_instead[f"{name}.scores"] = fit_grid(np.array([[-peak], [peak]], np.float32), _USUAL_INPUT)
        self._peaks.pop(f"{name}.probabilities")
        grids[f"{name}.probabilities"] = Grid(1 / 32767, 0, np.dtype(np.int16))
        self.result.int8_instead[f"{name}.probabilities"] = Grid(1 / 255, -128, np.dtype(np.int8))

    def _centered_scores(self, name: str) -> FloatArray:
        """What the queries give with keys that have lost their centers, for some of both."""
        c = self._config
        queries, keys = self._seen[f"{name}.queries"], self._seen[f"{name}.keys"]
        centers = self.result.grids[f"{name}.keys"].centers
        keys = keys[:: -(-len(keys) // 2048)]
        queries = queries[:: -(-len(queries) // 512)]
        centered = (keys if centers is None else keys - centers).reshape(-1, c.kv_heads, c.head_dim)
        grouped = queries.reshape(len(queries), c.kv_heads, -1, c.head_dim).transpose(1, 2, 0, 3)
        scores = grouped.reshape(c.kv_heads, -1, c.head_dim) @ centered.transpose(1, 2, 0)
        return np.asarray(scores * np.float32(c.head_dim**-0.5)).reshape(-1, 1)

    # -- the head ----------------------------------------------------------------------------------

    def _finish_head(self, values: FloatArray) -> None:
        self._set_int16("head.in", values)
        head, x = self._read("head.weight"), values[self._checked]
        peak = max(float(np.abs(x[i : i + _HEAD_ROWS] @ head.T).max()) for i in range(0, len(x), _HEAD_ROWS))
        self._set_int16("head", np.array([[-peak], [peak]], np.float32))
