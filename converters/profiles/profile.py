"""A graph profile: what differs between graphs for Linux boards and for microcontrollers, as one object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from converters.network.config import Feature, NetworkConfig
from converters.network.tensors import tensors
from converters.network.weights import FloatArray
from converters.ops.numpy import KvCache
from converters.quantize.calibrate import ActivationParams
from converters.quantize.rotation import RotatedWeights
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Arena

__all__ = ["GraphJob", "Profile", "Proof", "unfolded_gains"]


@dataclass(frozen=True)
class GraphJob:
    """What a profile makes a graph of."""

    weights: RotatedWeights
    prefix: KvCache  # keys and values of the first positions, rotated like `weights`; empty for none
    windows: npt.NDArray[np.integer]  # (windows, length) tokens to calibrate on, each after the prefix
    context: int  # positions that the kv_cache holds, those of the prefix included
    fast: bool  # round weights to the nearest and search for nothing
    progress: Callable[[float], None] = lambda share: None


@dataclass(frozen=True)
class Proof:
    """What came of a run in the graph's runtime."""

    arena: Arena | None  # None where that runtime is not installed
    files: tuple[str, ...] = ()  # that were added to the bundle


class Profile(ABC):
    """See `pi` and `micro` in this folder; `PROFILES` in converters/profiles lists them."""

    name: ClassVar[Literal["pi", "micro"]]
    default_context: ClassVar[int]  # positions
    calibration_window: ClassVar[int]  # tokens that calibration reads at a time, at most
    calibration_tokens: ClassVar[int]  # in all; static ranges need many to have met the extremes
    weight_bits: ClassVar[int]
    kv_cache_element_bytes: ClassVar[int]
    supports: ClassVar[Collection[Feature]]  # what a rotated network may have

    @abstractmethod
    def windows(self, context: int) -> tuple[int, ...]:
        """Sizes of the kv_cache that have signatures of their own, ascending; the last is the context."""

    @abstractmethod
    def prefill_tokens(self, context: int) -> int:
        """Tokens that one prefill signature takes in; 0 where there is none."""

    @abstractmethod
    def write(self, path: Path, job: GraphJob) -> ActivationParams:
        """Calibrate, quantize and write the graph; returns how activations were quantized (empty where on the fly)."""

    def prove(self, bundle: Bundle, needs_image: bool) -> Proof | None:
        """Hold the graph against the rules of its runtime, and run it there; None where there is nothing to do.

        Args:
            needs_image: refuse a graph that the C engine has no calls for, instead of leaving its image out.

        Raises:
            GraphError: it breaks a rule.
            BackendError: the runtime refuses it.
        """
        return None


def unfolded_gains(weights: RotatedWeights) -> dict[str, FloatArray]:
    """Gains of the norms that the emitted graph still has, by tensor name."""
    config: NetworkConfig = weights.config
    return {tensor.name: weights(tensor.name) for tensor in tensors(config) if tensor.kind == "gain"}
