"""Ops that emit the `micro` profile: int8 matmuls with static ranges, float32 between them.

One reading emits the signature `decode`: one token in, its logits out. The same file runs in TFLite Micro,
tflite-runtime 2.14 and LiteRT, so only operators, types and operator versions that all three have are used.

    the matmuls       int8 FULLY_CONNECTED, weights per channel, activations per tensor
    the head          the same weights with int16 in and out: int8 logits would tie. Its sums are 32 bits wide in
                      LiteRT and in 2.14 unless there is an int64 bias, so it gets one where they could overflow
    attention         int8 BATCH_MATMUL over an int8 kv_cache; the softmax between the two is float32
    kv_cache          variable tensors, both operand and result of DYNAMIC_UPDATE_SLICE: in place. Keys are
                      (kv_heads, context, head_dim), values (kv_heads, head_dim, context), so that both products
                      have adj_y=true: TFLite Micro keeps a second copy of the right side otherwise
    the prefix        constants that every step writes to the start of the cache before its own row: a variable
                      tensor cannot have initial values, and no runtime has a way in that the others have too

Values are tensors; one that is not float32 is dequantized when a float32 operator reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.flatbuffer import Constant, Quantization, Subgraph, Tensor
from converters.network import NetworkConfig
from converters.ops_numpy import FloatArray, KvCache
from converters.ops_tflite import Op, TfliteOps
from converters.quantize.ranges import Ranges

__all__ = ["MicroConstants", "MicroMatmul", "MicroOps"]

_FULLY_CONNECTED_VERSION = 9  # the highest that tflite-runtime 2.14 registers; its kernel does per-channel weights
_INT16_MATMULS = ("head",)


@dataclass(frozen=True)
class MicroMatmul:
    """One matmul. Attention's 1 / sqrt(head_dim) is already in the scale and the bias of `q`."""

    weight: Constant  # int8 (out, in)
    scale: FloatArray  # (out,)
    bias: FloatArray | None  # (out,); it is quantized when the input's scale is known
    largest_sum: int  # max over rows of the sum of |weight|


@dataclass(frozen=True)
class MicroConstants:
    """What the graph is made of."""

    matmuls: Mapping[str, MicroMatmul]
    embedding: Constant  # int8 (vocabulary, width)
    embedding_scale: Constant  # float32 (vocabulary,)
    embedding_factor: Constant | None  # float32 (width,): undoes the smoothing of a head that shares the rows
    gains: Mapping[str, Constant]  # norm gains by canonical name
    cos: Constant  # float32 (context, head_dim)
    sin: Constant  # float32 (context, head_dim); see `rope_tables`
    prefix: KvCache  # one sequence, in float


class MicroOps(TfliteOps):
    """`Ops` over the signature `decode`."""

    def __init__(
        self, graph: Subgraph, constants: MicroConstants, config: NetworkConfig, ranges: Ranges, context: int
    ) -> None:
        super().__init__(graph, config)
        self._constants, self._ranges, self._context = constants, ranges, context
        self._token = graph.input("token", (1,), np.int32)
        self._position = graph.input("position", (1,), np.int32)
        self._epsilon = self._float("epsilon", [config.norm_epsilon])
        shape = (1, 1, config.head_dim)
        self._cos = self._reshape(self._gather(constants.cos, self._position, "cos"), shape)
        self._sin = self._reshape(self._gather(constants.sin, self._position, "sin"), shape)
        self._mask = self._reshape(self._window_mask(self._position, context, newest=1), (1, 1, context))
        zero = self._ints([0])
        self._key_start = self._concat([zero, self._position, zero], "key_start")
        self._value_start = self._concat([zero, zero, self._position], "value_start")

    # -- between float32 and integers --------------------------------------------------------------

    def _quantize(self, x: Tensor, name: str, quantization: Quantization, dtype: npt.DTypeLike = np.int8) -> Tensor:
        version = 1 if np.dtype(dtype) == np.int8 else 2
        return self._op(Op.QUANTIZE, [x], name, x.shape, schema.QuantizeOptionsT(), version, dtype, quantization)

    def _real(self, x: Tensor) -> Tensor:
        """float32, whatever x is, and without its channels' factors."""
        if x.dtype == np.float32:
            return x
        real = self._op(Op.DEQUANTIZE, [x], f"{x.name}.real", x.shape, schema.DequantizeOptionsT(), 2)
        factors = self._ranges.factors.get(x.name)
        if factors is None:
            return real
        return self._binary(Op.MUL, real, self._float(f"{x.name}.factors", factors), f"{x.name}.whole")

    def _scaled_down(self, quantization: Quantization) -> Quantization:
        """The grid of values that were divided by sqrt(head_dim)."""
        scale = quantization.scale * np.float32(self._config.head_dim**-0.5)
        return Quantization(scale, quantization.zero_point)

    def _result_quantization(self, name: str, dtype: npt.DTypeLike) -> Quantization:
        if name.endswith(".v"):  # goes into the cache as it is
            return self._ranges.quantization(f"{name.removesuffix('v')}values")
        quantization = self._ranges.quantization(name, dtype)
        return self._scaled_down(quantization) if name.endswith(".q") else quantization

    # -- Ops ---------------------------------------------------------------------------------------

    def embed(self) -> Tensor:
        """int8 rows times their scales."""
        c = self._constants
        return self._embed_rows(self._token, c.embedding, c.embedding_scale, c.embedding_factor)

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        """As in `Ops`, float32."""
        return self._norm(x, name, self._constants.gains[name])

    def linear(self, x: Tensor, *names: str) -> tuple[Tensor, ...]:
        """One FULLY_CONNECTED for each name, because each result has a range of its own."""
        dtype = np.int16 if names[0] in _INT16_MATMULS else np.int8
        if x.dtype == np.float32:
            name = f"{names[0]}.in"
            x = self._quantize(x, name, self._ranges.quantization(name, dtype), dtype)
        return tuple(self._fully_connected(x, name) for name in names)

    def _fully_connected(self, x: Tensor, name: str) -> Tensor:
        m = self._constants.matmuls[name]
        scale = m.scale / self._ranges.factors.get(name, np.float32(1))  # the result comes out divided, see `_real`
        weight = self._graph.constant(f"{name}.weight", m.weight, Quantization.per_channel(scale))
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        (out,) = self._graph.operator(
            Op.FULLY_CONNECTED,
            [x, weight, self._bias(x, name, m, scale)],
            [(name, (1, m.weight.shape[0]), x.dtype, self._result_quantization(name, x.dtype))],
            options,
            _FULLY_CONNECTED_VERSION,
        )
        return out

    def _bias(self, x: Tensor, name: str, m: MicroMatmul, scale: FloatArray) -> Tensor | None:
        """The bias on the grid of the sums: int32, or int64 where 32 bits may not hold a sum of int16 products."""
        assert x.quantization is not None
        wide = x.dtype == np.int16 and m.largest_sum * 32768 >= 2**31
        if m.bias is None and not wide:
            return None
        step = x.quantization.scale[0]
        # Factors divide the bias and its grid alike, so they do not change the stored numbers.
        bias = np.zeros(len(scale)) if m.bias is None else np.rint(m.bias / (m.scale * step).astype(np.float64))
        limits = np.iinfo(np.int64 if wide else np.int32)
        values = np.clip(bias, limits.min / 2, limits.max / 2).astype(limits.dtype)
        return self._graph.constant(f"{name}.bias", values, Quantization.per_channel(scale * step))

    def rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """In float32, from a table's row."""
        return self._rotate(q), self._rotate(k)

    def _rotate(self, x: Tensor) -> Tensor:
        dim = self._config.head_dim
        heads = self._reshape(self._real(x), (1, x.shape[1] // dim, dim))
        return self._reshape(self._turned(heads, self._cos, self._sin, f"{x.name}.rope"), x.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Query heads that share a key head are rows of one product. The result is int8, on the grid of `o.in`."""
        c, name = self._config, f"layers.{layer}"
        group = c.heads // c.kv_heads
        on_keys, on_values = (self._ranges.quantization(f"{name}.{kind}") for kind in ("keys", "values"))
        on_queries = self._scaled_down(self._ranges.quantization(f"{name}.queries"))
        queries = self._quantize(self._reshape(q, (c.kv_heads, group, c.head_dim)), f"{name}.queries", on_queries)
        new_keys = self._quantize(self._reshape(k, (c.kv_heads, 1, c.head_dim)), f"{name}.new_keys", on_keys)
        new_values = self._reshape(v, (c.kv_heads, c.head_dim, 1))
        keys = self._graph.variable(f"{name}.keys", (c.kv_heads, self._context, c.head_dim), np.int8, on_keys)
        values = self._graph.variable(f"{name}.values", (c.kv_heads, c.head_dim, self._context), np.int8, on_values)
        if self._constants.prefix.positions:
            old_keys, old_values = self._constants.prefix.layers[layer]  # (1, positions, kv_heads, head_dim)
            self._write_prefix(keys, old_keys[0].transpose(1, 0, 2), on_keys)
            self._write_prefix(values, old_values[0].transpose(1, 2, 0), on_values)
        self._update(keys, new_keys, self._key_start)
        self._update(values, new_values, self._value_start)

        on_scores = self._ranges.quantization(f"{name}.scores")
        scores = self._batch_matmul(queries, keys, True, f"{name}.scores", on_scores)  # (kv_heads, group, context)
        masked = self._binary(Op.ADD, self._real(scores), self._mask, f"{name}.scores_masked")
        shares = self._softmax(masked, f"{name}.softmax")
        probabilities = f"{name}.probabilities"
        shares = self._quantize(shares, probabilities, self._ranges.quantization(probabilities))
        on_mixed = self._ranges.quantization(f"{name}.o.in")
        mixed = self._batch_matmul(shares, values, True, f"{name}.o.in", on_mixed)  # (kv_heads, group, head_dim)
        return self._reshape(mixed, (1, c.q_width))

    def _write_prefix(self, cache: Tensor, rows: FloatArray, quantization: Quantization) -> None:
        stored = np.clip(np.rint(rows / quantization.scale[0]), -127, 127).astype(np.int8)
        constant = self._graph.constant(f"{cache.name}.prefix", stored, quantization)
        self._update(cache, constant, self._ints([0, 0, 0]))

    def _update(self, cache: Tensor, rows: Tensor, start: Tensor) -> None:
        options = schema.DynamicUpdateSliceOptionsT()
        self._graph.operator(Op.DYNAMIC_UPDATE_SLICE, [cache, rows, start], [cache], options)

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """As in `Ops`, float32."""
        return self._silu_product(self._real(gate), self._real(up))

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """The residual sum, float32."""
        return self._binary(Op.ADD, self._real(x), self._real(y), name)

    def select_rows(self, x: Tensor) -> Tensor:
        """There is one."""
        return x

    def finish(self, logits: Tensor) -> None:
        """Declare the output."""
        self._graph.output("logits", logits)
