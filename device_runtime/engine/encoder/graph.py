"""A graph of signatures that LiteRT runs by name: one run, or many over buffers that stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.compiled_model import open_compiled
from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.errors import BackendError

__all__ = ["SignatureGraph", "read_floats", "signature_for"]


class SignatureGraph:
    """The graph of a bundle in LiteRT's CompiledModel. Not thread-safe."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        """Open it.

        Raises:
            BackendError: LiteRT refuses the graph.
            BackendMissingError: LiteRT is not installed.
        """
        opened = open_compiled(bundle, threads, _signatures)
        self._model, self._weights = opened.model, opened.weights
        self._signatures: Mapping[str, Any] = opened.prepared
        self._bound: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {}

    def bind(self, signature: str, shared: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The buffers of a signature's inputs and outputs, by name; made at the first call.

        Args:
            shared: buffers of other signatures that this one reads or writes in place, by name.
        """
        if signature not in self._bound:
            if signature not in self._signatures:
                raise BackendError(f"The graph has no signature {signature}; convert the checkpoint again.")
            names, given = self._signatures[signature], shared or {}
            inputs = {
                name: given.get(name) or self._model.create_input_buffer_by_name(signature, name)
                for name in names["inputs"]
            }
            outputs = {
                name: given.get(name) or inputs.get(name) or self._model.create_output_buffer_by_name(signature, name)
                for name in names["outputs"]
            }
            self._bound[signature] = (self._model.get_signature_index(signature), inputs, outputs)
        _, inputs, outputs = self._bound[signature]
        return inputs, outputs

    def run(self, signature: str, values: Mapping[str, Sequence[int]]) -> None:
        """Write these inputs, and run."""
        self._weights.require_sound()
        index, inputs, outputs = self._bound[signature]
        for name, value in values.items():
            inputs[name].write(np.array(value, np.int32))
        self._model.run_by_index(index, list(inputs.values()), list(outputs.values()))

    def close(self) -> None:
        """Give back memory."""
        with captured_stderr():
            self._bound.clear()
            self._model = None
        self._weights.close()


def _signatures(model: Any) -> Mapping[str, Any]:
    signatures: Mapping[str, Any] = model.get_signature_list()
    buffer = model.create_input_buffer_by_name(next(iter(signatures)), "length")
    buffer.write(np.zeros(1, np.int32))
    buffer.read(1, np.int32)  # LiteRT sets up a second environment at the first read
    return signatures


def signature_for(tokens: int, windows: Sequence[int]) -> int:
    """The smallest window that holds so many tokens."""
    return next(window for window in windows if window >= tokens)


def read_floats(buffer: Any, count: int) -> npt.NDArray[np.float32]:
    """The first `count` values of an output."""
    values: npt.NDArray[np.float32] = buffer.read(count, np.float32)
    return values
