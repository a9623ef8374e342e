"""The `pi` profile in LiteRT's CompiledModel, with XNNPACK.

The graph's inputs are made as long as a run needs them (see converters/ops/tflite_pi.py). The kv_cache lives in
LiteRT's own buffers, bound as input and as output, so it is updated in place and never passes through Python; when its
window is full, its rows are copied once into the buffers of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import DECODER, GraphShape
from device_runtime.bundle.prefix import read_prefix
from device_runtime.engine.backends import Logits
from device_runtime.engine.backends.compiled_model import GraphOpening
from device_runtime.engine.backends.litert import Bound, Buffer, CompiledModel
from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.engine.states.snapshot import Snapshot
from device_runtime.errors import BackendError
from device_runtime.machine.kernels import kernel_family
from device_runtime.machine.machine import cpu_features, program_arch
from device_runtime.machine.resident import release_mapped_file, trim_heap

__all__ = ["CompiledBackend"]

# A row of the embedding that is looked up brings 64 KiB of the file with it: after so many they are let go.
_RELEASE_TOKENS = 256
_MOST_RUNS = 128  # whose small buffers are kept


class CompiledBackend:
    """See `device_runtime.engine.backends.Backend`."""

    def __init__(self, bundle: Bundle, threads: int | None, opening: GraphOpening | None = None) -> None:
        """`opening` is that of this bundle's graph, where it has begun."""
        self._shape = bundle.manifest.graph
        self.context = bundle.manifest.context
        prefix = len(bundle.manifest.prefix_tokens)
        of_prefix = read_prefix(bundle) if prefix else None  # first: LiteRT writes to stderr where it is given up

        def allocate(model: CompiledModel) -> _Graph:
            graph = _Graph(model, self._shape)
            graph.allocate(next(window for window in self._shape.windows if window >= prefix))
            return graph

        opened = (opening or GraphOpening(bundle, threads)).finish(allocate)
        self._graph: Any
        self._weights, self._graph = opened.weights, opened.prepared
        self._path, self._looked_up = bundle.model_path, 0
        self._prefix = prefix
        self.position, self.chunk, self.several = 0, max(1, self._shape.prefill), max(1, self._shape.several)
        if self.several > 1 and (family := kernel_family(program_arch(), cpu_features())) is not None:
            self.several = family.rows
        elements = 2 * self._shape.layers * self._shape.kv_heads * self._shape.head_dim
        self.position_bytes = elements * np.dtype(self._shape.cache_type).itemsize
        if of_prefix is not None:
            self._write_prefix(*of_prefix)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """As in `Backend`."""
        if not tokens:
            raise ValueError("prefill needs at least one token")
        for start in range(0, len(tokens), self.chunk):
            part = tokens[start : start + self.chunk]
            logits = self._take_in(part, [len(part) - 1])
        return logits

    def decode(self, token: int) -> Logits:
        """As in `Backend`."""
        return self._take_in([token], [0])

    def decode_several(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> Logits:
        """As in `Backend`."""
        rows = range(len(tokens)) if rows is None else rows
        return self._take_in(tokens, rows).reshape(-1, self._shape.vocabulary)[: len(rows)]

    def look_ahead(self, tokens: Sequence[int], position: int) -> Logits:
        """As in `Backend`."""
        return self._run(tokens, position, [len(tokens) - 1], keep=False)

    def _take_in(self, tokens: Sequence[int], rows: Sequence[int]) -> Logits:
        logits = self._run(tokens, self.position, rows, keep=True)
        self.position += len(tokens)
        return logits

    def _run(self, tokens: Sequence[int], position: int, rows: Sequence[int], keep: bool) -> Logits:
        """One run; the logits after the tokens at `rows`, of which there are few sizes of buffers."""
        self._weights.require_sound()
        self._make_room(position + len(tokens))
        filled = [*rows, *[rows[-1]] * (-len(rows) % self.several)] if len(rows) > 1 else rows
        logits: Logits = self._graph.run(tokens, position, filled, keep)
        self._looked_up += len(tokens)
        if self._looked_up >= _RELEASE_TOKENS:
            release_mapped_file(self._path)
            self._looked_up = 0
        return logits

    def rewind(self, position: int) -> None:
        """As in `Backend`. The cache keeps its window: what is after `position` is masked, then overwritten."""
        self.position = min(self.position, max(position, self._prefix))

    def snapshot(self, positions: int) -> Snapshot:
        """As in `Backend`; an array for each layer's keys and values, (kv_heads, positions, head_dim)."""
        return Snapshot(positions, tuple(self._graph.read_cache(n)[:, :positions].copy() for n in self._graph.names))

    def restore(self, state: Snapshot, positions: int) -> None:
        """As in `Backend`.

        Raises:
            BackendError: another graph has made the state.
        """
        shape = self._shape.kv_heads, state.positions, self._shape.head_dim
        state.require(self.context, [(shape, self._shape.cache_type)] * len(self._graph.names))
        self.position = 0
        self._make_room(positions)
        for name, rows in zip(self._graph.names, state.arrays, strict=True):
            self._graph.write_cache(name, rows[:, :positions])
        self.position = positions

    def close(self) -> None:
        """As in `Backend`."""
        with captured_stderr():
            self._graph = None
        self._weights.close()

    def _make_room(self, needed: int) -> None:
        """Move to the smallest window that holds so many positions."""
        if needed <= self._graph.window:
            return
        larger = next((window for window in self._shape.windows if needed <= window), None)
        if larger is None:
            raise ValueError(f"{needed} positions do not fit the context of {self.context}")
        self._graph.allocate(larger, self.position)

    def _write_prefix(self, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        for layer in range(self._shape.layers):
            for kind, rows in (("k", keys[layer]), ("v", values[layer])):
                self._graph.write_cache(f"{kind}_{layer}", rows.swapaxes(0, 1))  # heads first
        self.position = keys.shape[1]


@dataclass(frozen=True)
class _Run:
    """The buffers of runs for so many tokens, and logits after so many of them; those which keep these tokens."""

    named: dict[str, Buffer]  # the inputs but for the kv_cache
    logits: Buffer
    bound: Bound


class _Graph:
    """The graph's signature and the buffers that it is bound to."""

    def __init__(self, model: CompiledModel, shape: GraphShape) -> None:
        self.window = 0  # positions that the cache has room for
        self.names = [f"{kind}_{layer}" for layer in range(shape.layers) for kind in "kv"]
        self._model, self._shape = model, shape
        if DECODER not in model.signatures:
            raise BackendError(
                f"The graph has no signature {DECODER!r}: another version of stonechat has made it; convert the "
                "checkpoint again."
            )
        self._signature = model.signatures[DECODER]
        self._cache: dict[str, Buffer] = {}
        self._runs: dict[tuple[int, int, bool], _Run] = {}
        self._logits: dict[int, Buffer] = {}  # one for so many rows of logits, which several runs have
        # Where runs whose tokens are not kept put the cache of every layer, if there are any.
        self._unkept: Buffer | None = None
        self._slots: Buffer  # the input that all runs have, written once for each window
        self._sizes: dict[str, int] = {}  # what `tokens`, `positions` and `rows` have now

    def allocate(self, window: int, positions: int = 0) -> None:
        """Create the buffers for a cache of this size, which starts as zeros, because masked floats could still be
        NaN; the first positions of the one before are taken over, layer by layer, so that there are never two."""
        self._runs.clear()  # which hold buffers too
        self._logits.clear()
        self._unkept = None
        before, self.window = self.window, window
        for name in self.names:
            self._resize(name, self._cache_shape(window))
        self._resize("slots", (window,))
        self._slots = self._model.input_buffer(self._signature, "slots")
        self._slots.write(np.arange(1, window + 1, dtype=np.float32))
        for name in self.names:
            rows = np.zeros((self._shape.kv_heads, 0, self._shape.head_dim), self._shape.cache_type)
            if name in self._cache:
                rows = self._read(self._cache.pop(name), before)[:, :positions]
            self._cache[name] = self._model.input_buffer(self._signature, name)
            self.write_cache(name, rows)
        trim_heap()  # of the buffers before

    def _cache_shape(self, window: int) -> tuple[int, ...]:
        return (1, self._shape.kv_heads, window, self._shape.head_dim)

    def _resize(self, name: str, shape: Sequence[int]) -> None:
        self._model.resize(self._signature, name, shape)

    def run(self, tokens: Sequence[int], position: int, rows: Sequence[int], keep: bool) -> Logits:
        """The logits after the tokens at `rows`, (rows * vocabulary,).

        Args:
            keep: whether the cache has the tokens afterwards.
        """
        count = len(tokens)
        for name, size in (("tokens", count), ("positions", count), ("rows", len(rows))):
            if self._sizes.get(name) != size:
                self._resize(name, (size,))
                self._sizes[name] = size
        key = count, len(rows), keep
        proven = key in self._runs
        if not proven:
            if len(self._runs) == _MOST_RUNS:
                self._runs.clear()
            self._runs[key] = self._bound(len(rows), keep)
        run = self._runs[key]
        run.named["tokens"].write(np.array(tokens, np.int32))
        run.named["positions"].write(np.arange(position, position + count, dtype=np.int32))
        run.named["rows"].write(np.array(rows, np.int32))
        size = len(rows) * self._shape.vocabulary
        if not proven:  # LiteRT 2.3 reports some failed runs only on stderr
            run.logits.write(np.full(size, np.nan, np.float32))
        run.bound.run()
        logits: Logits = np.empty(size, np.float32)
        run.logits.read(logits)
        if not proven and np.isnan(logits).all():
            raise BackendError("LiteRT did not complete a run; its messages are on stderr.")
        return logits

    def _bound(self, rows: int, keep: bool) -> _Run:
        """Buffers of the sizes that the inputs have now."""
        named = {name: self._model.input_buffer(self._signature, name) for name in ("tokens", "positions", "rows")}
        # Logits of a large vocabulary are 200 KB: with buffers of its own for each length, a run's would add up.
        if rows not in self._logits:
            self._logits[rows] = self._model.output_buffer(self._signature, "logits")
        named["slots"], logits = self._slots, self._logits[rows]
        inputs = [named.get(name) or self._cache[name] for name in self._signature.inputs]
        caches = self._cache
        if not keep:
            if self._unkept is None:
                self._unkept = self._model.output_buffer(self._signature, self.names[0])
            caches = dict.fromkeys(self.names, self._unkept)
        outputs = [caches.get(name, logits) for name in self._signature.outputs]
        return _Run(named, logits, self._model.bind(self._signature, inputs, outputs))

    def read_cache(self, name: str) -> npt.NDArray[Any]:
        """(kv_heads, window, head_dim)."""
        return self._read(self._cache[name], self.window)

    def _read(self, buffer: Buffer, window: int) -> npt.NDArray[Any]:
        rows = np.empty(self._cache_shape(window)[1:], self._shape.cache_type)
        buffer.read(rows)
        return rows

    def write_cache(self, name: str, rows: npt.NDArray[Any]) -> None:
        """Write (kv_heads, positions, head_dim) to the first positions, zeros after them."""
        whole = np.zeros(self._cache_shape(self.window), self._shape.cache_type)
        whole[0, :, : rows.shape[1]] = rows
        self._cache[name].write(whole)
