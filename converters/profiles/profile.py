"""A graph profile: what differs between graphs for Linux boards and for microcontrollers, as one object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from converters.emit.tflite_write import Constant
from converters.network.config import Block, Feature, NetworkConfig, Rope
from converters.network.tensors import tensors
from converters.network.weights import FloatArray
from converters.ops.numpy import KvCache
from converters.quantize.cache_ranges import CacheRange
from converters.quantize.calibrate import ActivationParams
from converters.quantize.own_grid import GridWeights
from converters.quantize.rotation import RotatedWeights
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Arena, EngineMemory, GraphCounts

__all__ = [
    "GraphJob",
    "Profile",
    "Proof",
    "Written",
    "counted_network",
    "counted_positions",
    "shaped_gains",
    "shaped_ropes",
    "unfolded_gains",
]


@dataclass(frozen=True)
class GraphJob:
    """What a profile makes a graph of."""

    weights: RotatedWeights | GridWeights
    prefix: KvCache  # keys and values of the first positions, rotated like `weights`; empty for none
    windows: npt.NDArray[np.integer]  # (windows, length) tokens to calibrate on, each after the prefix
    context: int  # positions that the kv_cache holds, those of the prefix included
    fast: bool  # round weights to the nearest and search for nothing
    cache_ranges: tuple[CacheRange, ...] = ()  # of each layer, where the profile stores its kv_cache in int8 by them
    progress: Callable[[float], None] = lambda share: None


@dataclass(frozen=True)
class Proof:
    """What came of a run in the graph's runtime."""

    arena: Arena | None  # None where that runtime is not installed
    files: tuple[str, ...] = ()  # that were added to the bundle
    engine: EngineMemory | None = None  # of the model image, if there is one


@dataclass(frozen=True)
class Written:
    """What is known of a graph that was written."""

    counts: GraphCounts
    prefix: KvCache  # as the graph stores it
    activations: ActivationParams = field(default_factory=ActivationParams)  # empty where quantized on the fly


class Profile(ABC):
    """See `pi` and `micro` in this folder; `PROFILES` in converters/profiles lists them."""

    name: ClassVar[Literal["pi", "micro"]]
    default_context: ClassVar[int]  # positions
    calibration_window: ClassVar[int]  # tokens that calibration reads at a time, at most
    calibration_tokens: ClassVar[int]  # in all; static ranges need many to have met the extremes
    turns_head: ClassVar[bool] = False  # a head whose residual stream keeps its basis reads one without large channels
    weight_bits: int  # of the matmuls of the layers
    backends: tuple[str, ...] = ()  # that run the graph, where not all of the profile's do
    kv_cache_element_bytes: ClassVar[int]
    supports: ClassVar[Collection[Feature]]  # what a rotated network may have

    @abstractmethod
    def windows(self, context: int) -> tuple[int, ...]:
        """Sizes of the kv_cache that have signatures of their own, ascending; the last is the context."""

    @abstractmethod
    def prefill_tokens(self, context: int) -> int:
        """Tokens that one prefill signature takes in; 0 where there is none."""

    def several_tokens(self, context: int) -> int:
        """Tokens of the signature that gives logits for each of a few; 0 where there is none."""
        return 0

    @abstractmethod
    def write(self, path: Path, job: GraphJob) -> Written:
        """Calibrate, quantize and write the graph."""

    @abstractmethod
    def estimate(self, config: NetworkConfig, context: int, *, fast: bool = False) -> GraphCounts:
        """What a graph of a rotated network will consist of, before anything is read or quantized."""

    def prove(self, bundle: Bundle, needs_image: bool, schemas: Sequence[Mapping[str, Any]] = ()) -> Proof | None:
        """Hold the graph against the rules of its runtime, and run it there; None where there is nothing to do.

        Args:
            needs_image: refuse a graph that the C engine has no calls for, instead of leaving its image out.
            schemas: that answers of a microcontroller are to be held to.

        Raises:
            GraphError: it breaks a rule.
            SchemaError: a microcontroller cannot hold answers to one of the schemas.
            BackendError: the runtime refuses it.
        """
        return None


def counted_network(config: NetworkConfig, context: int) -> NetworkConfig:
    """The network without the sliding windows that this context never fills: graphs of it have no mask for them, and a
    larger graph that it is compared with must have none either."""

    def block(b: Block) -> Block:
        window = b.attention.window
        return b if window is None or window <= context else replace(b, attention=replace(b.attention, window=None))

    return replace(config, blocks=tuple(map(block, config.blocks)))


def counted_positions(config: NetworkConfig, context: int) -> int:
    """A window to count in: no shorter than any sliding window, so that those are there."""
    windows = [
        b.attention.window for b in config.blocks if b.attention.window is not None and b.attention.window <= context
    ]
    return 2 * max([context, *windows])


def shaped_ropes(
    config: NetworkConfig, positions: int, shaped: Callable[[tuple[int, ...], npt.DTypeLike], Constant]
) -> dict[Rope, tuple[Constant, Constant]]:
    """cos and sin of which only the shapes are known."""
    ropes = {}
    for rope in config.ropes:
        shape = (positions, 2 * len(rope.frequencies))
        ropes[rope] = (shaped(shape, np.float32), shaped(shape, np.float32))
    return ropes


def shaped_gains(config: NetworkConfig) -> dict[str, FloatArray]:
    """Gains of which only the shapes are known, no two alike: equal constants would become one."""
    gains = [tensor for tensor in tensors(config) if tensor.kind == "gain"]
    return {tensor.name: np.full(tensor.shape, i + 2, np.float32) for i, tensor in enumerate(gains)}


def unfolded_gains(weights: RotatedWeights | GridWeights) -> dict[str, FloatArray]:
    """Gains of the norms that the emitted graph still has, by tensor name."""
    config: NetworkConfig = weights.config
    return {tensor.name: weights(tensor.name) for tensor in tensors(config) if tensor.kind == "gain"}
