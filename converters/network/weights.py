"""A network's tensors on their way into a graph. Each view of a weight has a type of its own:

stored      `checkpoints.tensors.StoredTensor`: bytes in a file, by the format's name
canonical   `CanonicalWeights`: float32, by canonical name, as the checkpoint's network multiplies with them
rotated     `quantize.rotation.RotatedWeights`: float32, of the same network in another basis, norms folded in
quantized   `quantize.weights.QuantizedRows`: integers and their scales
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from converters.network.config import NetworkConfig
from converters.network.tensors import tensors

__all__ = ["CanonicalWeights", "FloatArray", "ReadTensor", "Weights", "keeping"]

FloatArray = npt.NDArray[np.float32]
ReadTensor = Callable[[str], FloatArray]  # canonical name -> float32 tensor


class Weights:
    """Tensors by canonical name, read when they are asked for.

    Those of the layer that was asked for last are kept: whatever goes through a network layer by layer reads each
    weight once, and no more than one layer is in memory. They are read-only.
    """

    def __init__(self, config: NetworkConfig, read: ReadTensor) -> None:
        self.config = config
        self._read = read
        self._layer_of = {tensor.name: tensor.layer for tensor in tensors(config)}
        self._kept: dict[str, FloatArray] = {}
        self._layer: int | None = None  # whose tensors are kept

    def __call__(self, name: str) -> FloatArray:
        """The tensor of this name."""
        layer = self._layer_of.get(name)
        if layer is None:
            return self._read(name)
        if layer != self._layer:
            self._kept.clear()
            self._layer = layer
        if name not in self._kept:
            self._kept[name] = self._read(name)
            self._kept[name].flags.writeable = False
        return self._kept[name]

    def release(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        self._layer = None


class CanonicalWeights(Weights):
    """The weights of a checkpoint; `head.weight` is there even if the head shares the embedding's rows.

    Args:
        read: `Checkpoint.read`.
    """

    def __init__(self, config: NetworkConfig, read: ReadTensor) -> None:
        tied = config.head.tied
        super().__init__(config, lambda name: read("embed.weight" if tied and name == "head.weight" else name))


def keeping(read: ReadTensor, name: str) -> ReadTensor:
    """`read`, which reads the tensor of this name only once."""
    kept: list[FloatArray] = []

    def reading(wanted: str) -> FloatArray:
        if wanted != name:
            return read(wanted)
        if not kept:
            kept.append(read(name))
        return kept[0]

    return reading
