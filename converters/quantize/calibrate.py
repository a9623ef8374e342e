"""Calibration of the `micro` profile: how each activation is quantized, chosen layer by layer while the network reads.

For each tensor several ways are tried (how far its channels are smoothed, whether they are centered, and how the range
is taken), and the one is kept that disturbs the block's result least: what reaches the residual sum, in proportion to
that sum, on windows that the fit has not seen. A range that fits what calibration saw to the last bit clips the next
text. The block is computed by the network's own functions (`network.decoder`), with one activation quantized.

int16 needs no choice. How those activations would do in int8 is kept beside them (`ActivationParams.int8_instead`), so
that a report can say what int16 buys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from converters.network.config import NetworkConfig
from converters.network.decoder import attention, feed_forward
from converters.network.tensors import Activation, Linear, Role, activations, by_role, linears
from converters.network.weights import FloatArray, ReadTensor
from converters.ops.numpy import KvCache, NumpyOps
from converters.quantize.params import METHODS, Choice, QuantParams, down_ranges, fit_int8, fit_int16
from converters.quantize.rotation import rotates_residual

__all__ = ["ActivationParams", "Calibrator", "LayerDone"]

_ALPHAS = (0.0, 0.5, 0.75, 1.0)
_USUAL = Choice(0.75, "headroom")  # what is taken where nothing is tried
_USUAL_ROTATED = Choice(0.0, "min-max")  # of an input in a rotated basis, whose channels are alike
_CHECKED_TOKENS = 1024  # on which choices are compared
_HEAD_ROWS = 256  # positions whose logits are computed, for the range of the logits
_Store = Callable[[FloatArray], FloatArray]  # values -> what is left of them when they were quantized
# (layer, parameters so far, the layer's activations by name)
LayerDone = Callable[[int, Mapping[str, QuantParams], Mapping[str, FloatArray]], None]


def _same(values: FloatArray) -> FloatArray:
    return values


@dataclass
class ActivationParams:
    """What a calibration run has chosen, by the name of the activation."""

    params: dict[str, QuantParams] = field(default_factory=dict)
    int8_instead: dict[str, QuantParams] = field(default_factory=dict)  # for activations that are int16 in `params`
    choices: dict[str, Choice] = field(default_factory=dict)


class _BlockAgain(NumpyOps):
    """A block on rows whose activations are known, with one of them quantized.

    The matmuls that read the block's input are not computed again.
    """

    def __init__(
        self,
        config: NetworkConfig,
        read: ReadTensor,
        windows: npt.NDArray[np.integer],
        past: KvCache,
        known: Mapping[str, FloatArray],
        name: str = "",
        store: _Store = _same,
    ) -> None:
        super().__init__(config, read, windows, past)
        self._known, self._name, self._store = known, name, store

    def linear(self, x: FloatArray, *matmuls: Linear) -> tuple[FloatArray, ...]:
        """As in `Ops`."""
        if x is not self._known[matmuls[0].input]:
            return super().linear(x, *matmuls)
        return tuple(self._named(matmul.name, self._known[matmul.name]) for matmul in matmuls)

    def _named(self, name: str, values: FloatArray) -> FloatArray:
        return self._store(values) if name == self._name else values

    def _join_past(self, layer: int, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        if not self._past.layers:
            return keys, values
        past = []
        for name, t in zip((f"layers.{layer}.keys", f"layers.{layer}.v"), self._past.layers[layer], strict=True):
            stored = self._named(name, t.reshape(t.shape[1], -1)).reshape(1, *t.shape[1:])
            past.append(np.broadcast_to(stored, (self._sequences, *t.shape[1:])))
        return np.concatenate([past[0], keys], axis=1), np.concatenate([past[1], values], axis=1)


class Calibrator:
    """An observer (see `NumpyOps`) of one pass over all calibration windows.

    Args:
        read: tensors of the network that is being read, `head.weight` among them.
        windows: (windows, length) tokens that the pass reads, after `prefix`.
        search: try several ways for each tensor; False takes the usual one.
        layer_done: called when a layer is finished, to quantize its weights while their inputs are at hand.
    """

    def __init__(
        self,
        config: NetworkConfig,
        read: ReadTensor,
        windows: npt.NDArray[np.integer],
        prefix: KvCache,
        search: bool,
        layer_done: LayerDone = lambda layer, params, activations: None,
    ) -> None:
        self.result = ActivationParams()
        self._config, self._read, self._prefix = config, read, prefix
        self._search, self._layer_done = search, layer_done
        self._activations = activations(config)
        self._rotated = rotates_residual(config)
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
        activation = self._activations[name]
        if activation.kind in ("scores", "probabilities"):
            low = float(np.min(values, where=np.isfinite(values), initial=0.0))
            self._peaks[name] = max(self._peaks.get(name, 0.0), float(values.max()), -low)
        elif activation.role is Role.HEAD:
            self._finish_head(values)
        else:
            self._seen[name] = values
            if activation.last:
                assert activation.layer is not None
                self._finish_layer(activation.layer)

    # -- a layer -------------------------------------------------------------------------------------------------------

    def _finish_layer(self, i: int) -> None:
        layer, matmuls = f"layers.{i}", by_role(self._config, i)
        known = {name: values[self._checked] for name, values in self._seen.items()}
        past = self._prefix.layers[i] if self._prefix.layers else None
        for group in self._inputs_of_norms(matmuls):
            self._choose(group[0].input, lambda name, store, g=group: self._products(known, g, store), None)  # type: ignore[misc]

        def mixed(name: str, store: _Store) -> FloatArray:
            return attention(self._again(known, name, store), self._config, i, known[matmuls[Role.Q].input])

        def fed(name: str, store: _Store) -> FloatArray:
            first = matmuls.get(Role.GATE, matmuls[Role.UP])
            return feed_forward(self._again(known, name, store), self._config, i, known[first.input])

        total = known[f"{layer}.attention_out"]
        clean = mixed("", _same) if self._search else None
        keys, values = (t.reshape(t.shape[1], -1) for t in past) if past else (None, None)
        for name, old in ((Role.Q, None), (Role.K, None), ("keys", keys), (Role.V, values)):
            self._choose(f"{layer}.{name}", mixed, total, clean, old)
        total = known[f"{layer}.out"]
        clean = fed("", _same) if self._search else None
        for role in (Role.GATE, Role.UP):
            if role in matmuls:
                self._choose(matmuls[role].name, fed, total, clean)
        self._set_down(matmuls[Role.DOWN])
        self._set_attention(i)
        self._set_int16(matmuls[Role.O].name, self._seen[matmuls[Role.O].name])
        self._layer_done(i, self.result.params, self._seen)
        self._seen.clear()

    def _inputs_of_norms(self, matmuls: Mapping[Role, Linear]) -> list[list[Linear]]:
        """The groups that read the residual stream."""
        wanted = ((Role.Q, Role.K, Role.V), (Role.GATE, Role.UP))
        return [[matmuls[role] for role in roles if role in matmuls] for roles in wanted]

    def _again(self, known: Mapping[str, FloatArray], name: str, store: _Store) -> _BlockAgain:
        return _BlockAgain(self._config, self._read, self._checked_windows, self._prefix, known, name, store)

    def _products(self, known: Mapping[str, FloatArray], group: list[Linear], store: _Store) -> FloatArray:
        ops = NumpyOps(self._config, self._read, self._checked_windows)
        return np.concatenate(ops.linear(store(known[group[0].input]), *group), axis=1)

    def _choose(
        self,
        name: str,
        result: Callable[[str, _Store], FloatArray],
        total: FloatArray | None,
        clean: FloatArray | None = None,
        past: FloatArray | None = None,
    ) -> None:
        """Choose how one activation is quantized.

        Args:
            result: what the block gives on the checked rows when the activation of this name is stored in some way.
            total: the residual sum after the block; a token's error counts in proportion to it. None: all count alike.
            clean: the result when nothing is quantized.
            past: (positions, channels) of the prefix, which shares the parameters.
        """
        values, activation = self._seen[name], self._activations[name]
        in_cache = _in_cache(activation)
        centering = self._centering(activation)

        def fit(rows: FloatArray, choice: Choice) -> QuantParams:
            joined = rows if past is None else np.concatenate([rows, past])
            return fit_int8(joined, choice, symmetric=in_cache)

        rotated = activation.kind == "input" and self._rotated
        usual = _USUAL_ROTATED if rotated else _USUAL
        choice = replace(usual, centered=centering[0])
        if self._search:
            clean = result(name, _same) if clean is None else clean
            weight = 1.0 if total is None else 1 / np.maximum(np.square(total).mean(axis=1, keepdims=True), 1e-12)
            fitted = values[self._fitted]

            def error(choice: Choice) -> float:
                difference = result(name, fit(fitted, choice).fake_quantize) - clean
                return float((np.square(difference) * weight).mean(dtype=np.float64))

            alphas = (0.0,) if rotated else _ALPHAS
            tried = [Choice(alpha, usual.method, centered) for centered in centering for alpha in alphas]
            choice = min(tried, key=error)
            choice = min((replace(choice, method=method) for method in METHODS), key=error)
        self.result.choices[name] = choice
        self.result.params[name] = fit(values, choice)

    def _centering(self, activation: Activation) -> tuple[bool, ...]:
        """Whether the middle of a channel may be taken away, the usual choice first."""
        if activation.kind == "keys":
            # A vector that is the same at all positions moves a query's scores all alike, and softmax does not see it;
            # a soft cap before it would.
            assert activation.layer is not None
            return (self._config.blocks[activation.layer].attention.softcap is None,)
        return (False,) if activation.role is Role.V else (False, True)

    def _set_int16(self, name: str, values: FloatArray, scales: FloatArray | None = None) -> None:
        divided = values if scales is None else values / scales
        self.result.params[name] = fit_int16(divided, scales)
        int8 = fit_int8(divided, Choice(0.0, "mse"))
        self.result.int8_instead[name] = QuantParams(int8.scale, int8.zero_point, int8.dtype, scales)

    def _set_down(self, down: Linear) -> None:
        """`down` as a sum over ranges of its columns, each with a result of its own."""
        weight = self._read(down.weight).T  # (ffn_width, width)
        x, total = self._seen[down.input], self._seen[down.name]
        ranges = down_ranges(x.shape[1])
        peaks = [max(float(x[:, slice(*r)].max()), -float(x[:, slice(*r)].min()), 1e-6) for r in ranges]
        scales = np.concatenate(
            [np.full(stop - start, peak) for (start, stop), peak in zip(ranges, peaks, strict=True)]
        )
        scales = scales.astype(np.float32)
        self._set_int16(down.input, x, scales if len(ranges) > 1 else None)
        parts = [x[:, slice(*r)] @ weight[slice(*r)] for r in ranges[1:]]
        parts.insert(0, total - sum(parts) if parts else total)
        for i, part in enumerate(parts):
            self.result.params[f"{down.name}.{i}"] = fit_int16(part)
        self.result.int8_instead[down.name] = fit_int8(total, Choice(0.0, "mse"))

    def _set_attention(self, i: int) -> None:
        """What attention multiplies with the cache, and `o.in`, its result, divided by the values' channel scales."""
        a, params, name = self._config.blocks[i].attention, self.result.params, f"layers.{i}"

        def of_query_heads(scales: FloatArray) -> FloatArray:
            return np.repeat(scales.reshape(a.kv_heads, -1), a.heads // a.kv_heads, axis=0).reshape(-1)

        on_keys, on_values = params[f"{name}.keys"].scales, params[f"{name}.v"].scales
        queries = self._seen[f"{name}.queries"]
        # Queries take over what keys were divided by, and attention's scale, usually 1 / sqrt(head_dim).
        undone = np.full(a.q_width, np.sqrt(a.head_dim) if a.scale is None else 1 / a.scale, np.float32)
        self._set_int16(f"{name}.queries", queries, undone if on_keys is None else undone / of_query_heads(on_keys))
        scales = None if on_values is None else of_query_heads(on_values)
        self._set_int16(f"{name}.o.in", self._seen[f"{name}.o.in"], scales)
        params[f"{name}.centered_scores"] = fit_int16(self._centered_scores(i))
        peak = self._peaks.pop(f"{name}.scores")
        self.result.int8_instead[f"{name}.scores"] = fit_int8(np.array([[-peak], [peak]], np.float32), _USUAL_ROTATED)
        self._peaks.pop(f"{name}.probabilities")
        params[f"{name}.probabilities"] = QuantParams(1 / 32767, 0, np.dtype(np.int16))
        self.result.int8_instead[f"{name}.probabilities"] = QuantParams(1 / 255, -128, np.dtype(np.int8))

    def _centered_scores(self, i: int) -> FloatArray:
        """What the queries give with keys that have lost their offsets, for some of both."""
        a, name = self._config.blocks[i].attention, f"layers.{i}"
        queries, keys = self._seen[f"{name}.queries"], self._seen[f"{name}.keys"]
        offsets = self.result.params[f"{name}.keys"].offsets
        keys = keys[:: -(-len(keys) // 2048)]
        queries = queries[:: -(-len(queries) // 512)]
        centered = (keys if offsets is None else keys - offsets).reshape(-1, a.kv_heads, a.head_dim)
        grouped = queries.reshape(len(queries), a.kv_heads, -1, a.head_dim).transpose(1, 2, 0, 3)
        scores = grouped.reshape(a.kv_heads, -1, a.head_dim) @ centered.transpose(1, 2, 0)
        return np.asarray(scores * np.float32(a.score_scale)).reshape(-1, 1)

    # -- the head ------------------------------------------------------------------------------------------------------

    def _finish_head(self, values: FloatArray) -> None:
        head = linears(self._config)[-1]
        self._set_int16(head.input, values)
        weight, x = self._read(head.weight), values[self._checked]
        bias = self._read(f"{head.name}.bias") if head.bias else np.float32(0)
        peak = max(float(np.abs(x[i : i + _HEAD_ROWS] @ weight.T + bias).max()) for i in range(0, len(x), _HEAD_ROWS))
        self._set_int16(head.name, np.array([[-peak], [peak]], np.float32))


def _in_cache(activation: Activation) -> bool:
    """Whether it is a matmul's weights, which have no zero point."""
    return activation.kind == "keys" or (activation.kind == "result" and activation.role is Role.V)
