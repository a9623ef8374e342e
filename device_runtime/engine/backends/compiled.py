"""The `pi` profile in LiteRT's CompiledModel, with XNNPACK.

Each window of the cache has a pair of signatures (see converters/profiles/pi.py). The kv_cache lives in
LiteRT's own buffers, bound as input and as output of both, so it is updated in place and never passes
through Python; when a window is full its rows are copied once into the buffers of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import GraphShape
from device_runtime.engine.backends import Logits
from device_runtime.engine.backends.compiled_model import open_compiled
from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.engine.states.snapshot import Snapshot
from device_runtime.errors import BackendError
from device_runtime.machine.kernels import kernel_family
from device_runtime.machine.machine import cpu_features, program_arch

__all__ = ["CompiledBackend"]

# Below so many runs for one token, these are cheaper than one padded chunk of 64. With int8 weights runs are for a few
# tokens, and how many of them are as dear as a chunk depends on the processor (KernelFamily.chunk_runs).
_SHORTEST_CHUNK = 10


class CompiledBackend:
    """See `device_runtime.engine.backends.Backend`."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self._shape = bundle.manifest.graph
        self.context = bundle.manifest.context
        prefix = len(bundle.manifest.prefix_tokens)

        def allocate(model: Any) -> tuple[list[_Window], _Window]:
            signatures = model.get_signature_list()
            windows = [_Window(model, self._shape, size, signatures) for size in self._shape.windows]
            first = next(window for window in windows if window.size >= prefix)
            first.allocate()
            first.read_cache("k_0")  # LiteRT sets up a second environment at the first read
            return windows, first

        opened = open_compiled(bundle, threads, allocate)
        self._window: Any
        self._model, self._weights, (self._windows, self._window) = opened.model, opened.weights, opened.prepared
        self._prefix = prefix
        self.position, self.chunk, self.several = 0, max(1, self._shape.prefill), max(1, self._shape.several)
        self._shortest_chunk = _SHORTEST_CHUNK
        if self.several > 1 and (family := kernel_family(program_arch(), cpu_features())) is not None:
            self._shortest_chunk = self.several * family.chunk_runs
        self.position_bytes = 2 * self._shape.layers * self._shape.kv_heads * self._shape.head_dim * 4
        if prefix:
            self._write_prefix(*bundle.read_prefix())

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """As in `Backend`."""
        self._weights.require_sound()
        done, logits, chunk = 0, None, self.chunk
        while done < len(tokens):
            rest = tokens[done : done + chunk]
            # A padded chunk writes all of its rows: it must not reach past the context.
            if len(rest) < self._shortest_chunk or self.position + chunk > self.context:
                few = rest[: self.several] if self.position + self.several <= self.context else rest[:1]
                logits = self.decode(few[0]) if len(few) == 1 else self.decode_several(few)[-1]
                done += len(few)
                continue
            self._make_room(chunk)
            logits = self._window.prefill(rest, self.position)
            self.position += len(rest)
            done += len(rest)
        if logits is None:
            raise ValueError("prefill needs at least one token")
        return logits

    def decode(self, token: int) -> Logits:
        """As in `Backend`."""
        self._weights.require_sound()
        self._make_room(1)
        logits: Logits = self._window.decode(token, self.position)
        self.position += 1
        return logits

    def decode_several(self, tokens: Sequence[int]) -> Logits:
        """As in `Backend`. The rows after the last token are overwritten before they are ever seen."""
        self._weights.require_sound()
        self._make_room(self.several)
        logits: Logits = self._window.decode_several(tokens, self.position)
        self.position += len(tokens)
        return logits

    def rewind(self, position: int) -> None:
        """As in `Backend`. The cache keeps its window: what is after `position` is masked, then overwritten."""
        self.position = min(self.position, max(position, self._prefix))

    def snapshot(self, positions: int) -> Snapshot:
        """As in `Backend`; an array for each layer's keys and values, (kv_heads, positions, head_dim)."""
        return Snapshot(positions, tuple(self._window.read_cache(n)[:, :positions].copy() for n in self._window.names))

    def restore(self, state: Snapshot, positions: int) -> None:
        """As in `Backend`."""
        self.position = 0
        self._make_room(positions)
        for name, rows in zip(self._window.names, state.arrays, strict=True):
            self._window.write_cache(name, rows[:, :positions])
        self.position = positions

    def close(self) -> None:
        """As in `Backend`."""
        with captured_stderr():
            self._windows.clear()
            self._window = None
            self._model = None
        self._weights.close()

    def _make_room(self, tokens: int) -> None:
        """Move to the smallest window that holds these tokens too."""
        if self.position + tokens <= self._window.size:
            return
        larger = next((w for w in self._windows if self.position + tokens <= w.size), None)
        if larger is None:
            raise ValueError(f"{self.position + tokens} positions do not fit the context of {self.context}")
        larger.allocate(self._window, self.position)
        self._window = larger

    def _write_prefix(self, keys: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> None:
        for layer in range(self._shape.layers):
            for kind, rows in (("k", keys[layer]), ("v", values[layer])):
                self._window.write_cache(f"{kind}_{layer}", rows.swapaxes(0, 1))  # heads first
        self.position = keys.shape[1]


class _Window:
    """The signatures of one cache size and the buffers that all are bound to."""

    def __init__(self, model: Any, shape: GraphShape, size: int, signatures: dict[str, Any]) -> None:
        self.size = size
        self._model, self._shape = model, shape
        self._cache_shape = (shape.kv_heads, size, shape.head_dim)
        self.names = [f"{kind}_{layer}" for layer in range(shape.layers) for kind in "kv"]
        self._signatures = {kind: f"{kind}_{size}" for kind in ("decode", "several", "prefill")}
        self._signatures = {kind: name for kind, name in self._signatures.items() if name in signatures}
        self._order = {kind: signatures[name] for kind, name in self._signatures.items()}
        self._cache: dict[str, Any] = {}
        self._proven: set[str] = set()  # signatures that have run

    def allocate(self, smaller: _Window | None = None, positions: int = 0) -> None:
        """Create the buffers; the cache starts as zeros, because masked garbage could still be NaN.

        Args:
            smaller: gives up its cache for this one, layer by layer, so that there are never two whole ones.
            positions: of it that are taken over.
        """
        if self._cache:
            return
        if smaller is not None:
            smaller._runs.clear()  # which hold its buffers too
        self._logits = self._model.create_output_buffer_by_name(self._signatures["decode"], "logits")
        nothing = np.zeros((self._cache_shape[0], 0, self._cache_shape[2]), np.float32)
        for name in self.names:
            rows = nothing
            if smaller is not None:
                rows = smaller.read_cache(name)[:, :positions]
                del smaller._cache[name]
            self._cache[name] = self._model.create_input_buffer_by_name(self._signatures["decode"], name)
            self.write_cache(name, rows)
        self._runs: dict[str, tuple[int, dict[str, Any], list[Any], list[Any]]] = {}
        for kind, signature in self._signatures.items():
            inputs: dict[str, Any] = {name: self._cache.get(name) for name in self._order[kind]["inputs"]}
            for name in inputs:
                if inputs[name] is None:
                    inputs[name] = self._model.create_input_buffer_by_name(signature, name)
            logits = self._logits
            if kind == "several":
                self._rows = logits = self._model.create_output_buffer_by_name(signature, "logits")
            outputs = {name: self._cache.get(name, logits) for name in self._order[kind]["outputs"]}
            index = self._model.get_signature_index(signature)
            self._runs[kind] = (index, inputs, list(inputs.values()), list(outputs.values()))

    def decode(self, token: int, position: int) -> Logits:
        """One step."""
        return self._run("decode", [token], position)

    def decode_several(self, tokens: Sequence[int], position: int) -> Logits:
        """A few tokens; the logits after each, (tokens, vocabulary)."""
        padded = [*tokens, *[0] * (self._shape.several - len(tokens))]
        return self._run("several", padded, position).reshape(-1, self._shape.vocabulary)[: len(tokens)]

    def prefill(self, tokens: Sequence[int], position: int) -> Logits:
        """One chunk, padded with zeros; rows after the last token are overwritten before they are ever seen."""
        padded = [*tokens, *[0] * (self._shape.prefill - len(tokens))]
        self._runs["prefill"][1]["row"].write(np.array([len(tokens) - 1], np.int32))
        return self._run("prefill", padded, position)

    def _run(self, kind: str, tokens: list[int], position: int) -> Logits:
        index, named, inputs, outputs = self._runs[kind]
        named["tokens"].write(np.array(tokens, np.int32))
        named["position"].write(np.array([position], np.int32))
        buffer, size = self._logits, self._shape.vocabulary
        if kind == "several":
            buffer, size = self._rows, self._shape.several * size
        if kind not in self._proven:  # LiteRT 2.3 reports some failed runs only on stderr
            buffer.write(np.full(size, np.nan, np.float32))
        self._model.run_by_index(index, inputs, outputs)
        logits: Logits = buffer.read(size, np.float32)
        if kind not in self._proven and np.isnan(logits).all():
            raise BackendError(f"LiteRT did not complete {self._signatures[kind]}; its messages are on stderr.")
        self._proven.add(kind)
        return logits

    def read_cache(self, name: str) -> npt.NDArray[np.float32]:
        """(kv_heads, window, head_dim)."""
        flat: npt.NDArray[np.float32] = self._cache[name].read(int(np.prod(self._cache_shape)), np.float32)
        return flat.reshape(self._cache_shape)

    def write_cache(self, name: str, rows: npt.NDArray[np.float32]) -> None:
        """Write (kv_heads, positions, head_dim) to the first positions, zeros after them."""
        whole = np.zeros(self._cache_shape, np.float32)
        whole[:, : rows.shape[1]] = rows
        self._cache[name].write(whole.reshape(-1))
