"""A graph of signatures that LiteRT runs by name: one run, or many over buffers that stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.compiled_model import GraphOpening
from device_runtime.engine.backends.litert import Bound, Buffer, CompiledModel
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
        opened = GraphOpening(bundle, threads).finish(_with_buffers)
        self._model: CompiledModel | None = opened.model
        self._weights = opened.weights
        self._bound: dict[str, tuple[Bound, dict[str, Buffer], dict[str, Buffer]]] = {}

    def bind(
        self, signature: str, shared: Mapping[str, Buffer] | None = None
    ) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        """The buffers of a signature's inputs and outputs, by name; made at the first call.

        Args:
            shared: buffers of other signatures that this one reads or writes in place, by name.
        """
        if signature not in self._bound:
            model, given = self._model, shared or {}
            assert model is not None, "the graph is closed"
            if signature not in model.signatures:
                raise BackendError(f"The graph has no signature {signature}; convert the checkpoint again.")
            names = model.signatures[signature]
            inputs = {name: given.get(name) or model.input_buffer(names, name) for name in names.inputs}
            outputs = {
                name: given.get(name) or inputs.get(name) or model.output_buffer(names, name) for name in names.outputs
            }
            bound = model.bind(names, list(inputs.values()), list(outputs.values()))
            self._bound[signature] = (bound, inputs, outputs)
        _, inputs, outputs = self._bound[signature]
        return inputs, outputs

    def run(self, signature: str, values: Mapping[str, Sequence[int]]) -> None:
        """Write these inputs, and run."""
        self._weights.require_sound()
        bound, inputs, _ = self._bound[signature]
        for name, value in values.items():
            inputs[name].write(np.array(value, np.int32))
        bound.run()

    def close(self) -> None:
        """Give back memory."""
        with captured_stderr():
            self._bound.clear()
            self._model = None
        self._weights.close()


def _with_buffers(model: CompiledModel) -> None:
    """LiteRT finds some faults when a buffer is made."""
    signature = next(iter(model.signatures.values()))
    model.input_buffer(signature, "length")


def signature_for(tokens: int, windows: Sequence[int]) -> int:
    """The smallest window that holds so many tokens."""
    return next(window for window in windows if window >= tokens)


def read_floats(buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
    """The first `count` values of an output."""
    values: npt.NDArray[np.float32] = np.empty(count, np.float32)
    buffer.read(values)
    return values
