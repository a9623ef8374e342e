"""The parts of a network that compute row by row, as the `micro` profile emits them: what decoders and encoders share.

Integer matmuls with static ranges, float32 between them. See tflite_micro.py for what each runtime takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import BlockQuantization, Constant, Quantization, Subgraph, Tensor
from converters.network.weights import FloatArray
from converters.ops.tflite import Op, TfliteOps
from converters.quantize.blocks import BLOCK
from converters.quantize.params import ParamsByName, QuantParams

__all__ = ["MicroMatmul", "MicroParts", "per_tensor"]

_FULLY_CONNECTED_VERSION = 9  # the highest that tflite-runtime 2.14 registers; its kernel does per-channel weights
_BLOCKS_VERSION = 12
_MOST_CONCATENATED = 10  # operands of one CONCATENATION in TFLite Micro


@dataclass(frozen=True)
class MicroMatmul:
    """One matmul."""

    weight: Constant  # int8 or int4 (out, in); its columns are multiplied by the channel scales of the input
    scale: FloatArray  # (out,); of int4 the step of the blocks' scales
    # (out,), with what the channel offsets of the input add and those of the result take away; it is quantized when
    # the input's scale is known
    bias: FloatArray | None
    largest_sum: int  # max over rows of the sum of |weight|; 0 where the only runtime has 64 bits
    multipliers: npt.NDArray[np.uint8] | None = None  # of int4: (out, blocks), each block's scale in steps


class MicroParts(TfliteOps):
    """Everything of `Ops` that knows neither positions nor a kv_cache, over one signature.

    Args:
        params: of each activation that is stored in integers, by its name.
    """

    def __init__(self, graph: Subgraph, norms: Mapping[str, FloatArray], params: ParamsByName) -> None:
        super().__init__(graph, norms)
        self._params = params

    # -- between float32 and integers --------------------------------------------------------------

    def _stored(self, x: Tensor, name: str) -> Tensor:
        """float32 -> integers, with the parameters of `name`."""
        p = self._params[name]
        if p.offsets is not None:
            x = self._binary(Op.SUB, x, self._float(f"{name}.centers", p.offsets), f"{name}.centered")
        if p.scales is not None:
            x = self._binary(Op.MUL, x, self._float(f"{name}.inverse", 1 / p.scales), f"{name}.even")
        version = 1 if p.dtype == np.int8 else 2
        return self._op(Op.QUANTIZE, [x], name, x.shape, schema.QuantizeOptionsT(), version, p.dtype, per_tensor(p))

    def _real(self, x: Tensor, name: str) -> Tensor:
        """Integers with the parameters of `name` -> float32."""
        p = self._params[name]
        real = self._op(Op.DEQUANTIZE, [x], f"{name}.real", x.shape, schema.DequantizeOptionsT(), 2)
        if p.scales is not None:
            real = self._binary(Op.MUL, real, self._float(f"{name}.factors", p.scales), f"{name}.whole")
        if p.offsets is not None:
            real = self._binary(Op.ADD, real, self._float(f"{name}.centers", p.offsets), f"{name}.moved")
        return real

    def _fully_connected(self, x: Tensor, name: str, m: MicroMatmul) -> Tensor:
        p = self._params[name]
        scale = m.scale if p.scales is None else m.scale / p.scales  # the result comes out divided
        quantization: Quantization | BlockQuantization = Quantization.per_channel(scale)
        version = _FULLY_CONNECTED_VERSION
        if m.multipliers is not None:
            of_blocks = (m.multipliers * scale[:, None]).astype(np.float32)
            quantization, version = BlockQuantization(of_blocks, BLOCK, scale), _BLOCKS_VERSION
        weight = self._graph.constant(f"{name}.weight", m.weight, quantization)
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        (out,) = self._graph.operator(
            Op.FULLY_CONNECTED,
            [x, weight, self._bias(x, name, m, scale)],
            [(name, (x.shape[0], m.weight.shape[0]), p.dtype, per_tensor(p))],
            options,
            version,
        )
        return out

    def _bias(self, x: Tensor, name: str, m: MicroMatmul, scale: FloatArray) -> Tensor | None:
        """The bias in steps of the sums: int32, or int64 where 32 bits may not hold a sum of int16 products."""
        assert x.quantization is not None
        wide = x.dtype == np.int16 and m.largest_sum * 32768 >= 2**31
        if m.bias is None and not wide:
            return None
        step = x.quantization.scale[0]
        # Channel scales divide the bias and its step alike, so they do not change the stored numbers.
        bias = np.zeros(len(scale)) if m.bias is None else np.rint(m.bias / (m.scale * step).astype(np.float64))
        limits = np.iinfo(np.int64 if x.dtype == np.int16 else np.int32)
        values = np.clip(bias, limits.min / 2, limits.max / 2).astype(limits.dtype)
        return self._graph.constant(f"{name}.bias", values, Quantization.per_channel(scale * step))

    def _product(self, x: Tensor, cache: Tensor, name: str, p: QuantParams) -> Tensor:
        """int16 rows by the int8 cache: FULLY_CONNECTED with weights that change."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        shape, quantization = (x.shape[0], cache.shape[0]), per_tensor(p)
        return self._op(
            Op.FULLY_CONNECTED, [x, cache], name, shape, options, _FULLY_CONNECTED_VERSION, p.dtype, quantization
        )

    def _joined(self, parts: list[Tensor], name: str) -> Tensor:
        """Columns side by side, of any number of parts."""
        while len(parts) > 1:
            groups = [parts[i : i + _MOST_CONCATENATED] for i in range(0, len(parts), _MOST_CONCATENATED)]
            parts = [self._concat(group, name) if len(group) > 1 else group[0] for group in groups]
        return parts[0]


def per_tensor(params: QuantParams) -> Quantization:
    """For the tensor in the graph, whose values have lost their channel offsets and scales."""
    return Quantization.per_tensor(params.scale, params.zero_point)
