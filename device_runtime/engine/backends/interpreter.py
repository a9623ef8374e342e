"""The `micro` profile in the Interpreter of LiteRT, or of its predecessor tflite-runtime.

Default delegates stay off: the XNNPACK of tflite-runtime 2.14 crashes on a cache that is updated in place.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.engine.backends.stepwise import StepwiseBackend
from device_runtime.engine.states.snapshot import Snapshot
from device_runtime.errors import BackendError, BackendMissingError
from device_runtime.machine.kernels import LITERT_PACKAGE
from device_runtime.machine.machine import usable_cores

__all__ = ["InterpreterBackend", "LiteRtBackend", "TfliteRuntimeBackend"]

_KV_CACHE = re.compile(r"layers\.\d+\.head_\d+\.(keys|values)")  # as converters/profiles/micro.py names it
_LITERT = ("ai_edge_litert.interpreter", "LiteRT", LITERT_PACKAGE)


def _open(bundle: Bundle, threads: int | None, package: tuple[str, str, str]) -> Any:
    """An Interpreter over a bundle's graph, its tensors allocated.

    Args:
        package: module, name for people, and what pip installs.

    Raises:
        BackendMissingError: the package is not installed.
        BackendError: it refused the graph.
    """
    module, name, requirement = package
    with captured_stderr() as log:
        try:
            runtime: Any = import_module(module)
        except ImportError as error:
            if not _is_missing(error, module):
                raise BackendError(f"{name} is installed but cannot be loaded: {error}") from None
            raise BackendMissingError(
                f"This needs {name}, which is not installed; run `pip install '{requirement}'`."
            ) from None
        try:
            interpreter = runtime.Interpreter(
                model_path=str(bundle.model_path),
                num_threads=threads or usable_cores(),
                experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"{name} refused {bundle.model_path}: {error}\n{log()}".rstrip()) from None
    return interpreter


def _is_missing(error: ImportError, module: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])


class InterpreterBackend(StepwiseBackend):
    """See `device_runtime.engine.backends.Backend`."""

    package: ClassVar[tuple[str, str, str]]

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        super().__init__(bundle)
        self._interpreter = _open(bundle, threads, self.package)
        inputs = {d["name"]: d["index"] for d in self._interpreter.get_input_details()}
        outputs = self._interpreter.get_output_details()
        try:
            self._token, self._position = inputs["token"], inputs["position"]
            (output,) = outputs
        except (KeyError, ValueError):
            raise BackendError(
                f"{bundle.model_path} takes {', '.join(inputs)} and gives {len(outputs)} tensors; a micro graph takes "
                "token and position and gives its logits. Convert the checkpoint again."
            ) from None
        self._output, (self._scale, self._zero_point) = output["index"], output["quantization"]
        # Which tensors are the kv_cache: of keys, (context, head_dim), and of values, (head_dim, context)
        self._keys, self._values = _kv_cache(self._interpreter, self.context)
        graph = bundle.manifest.graph
        element_bytes = graph.kv_cache_element_bytes if self._keys and self._values else 0
        self.position_bytes = 2 * graph.layers * graph.kv_heads * graph.head_dim * element_bytes

    def _step(self, token: int, position: int) -> None:
        self._interpreter.set_tensor(self._token, np.array([token], np.int32))
        self._interpreter.set_tensor(self._position, np.array([position], np.int32))
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise BackendError(f"{self.package[1]} failed at position {position}: {error}") from None
        self._dequantize(self._interpreter.get_tensor(self._output), self._scale, self._zero_point)

    def snapshot(self, positions: int) -> Snapshot:
        """As in `Backend`."""
        keys = [self._interpreter.get_tensor(index)[:positions].copy() for index in self._keys]
        values = [self._interpreter.get_tensor(index)[:, :positions].copy() for index in self._values]
        return Snapshot(positions, (*keys, *values))

    def restore(self, state: Snapshot, positions: int) -> None:
        """As in `Backend`.

        Raises:
            BackendError: another graph has made the state.
        """
        tensors = [self._interpreter.get_tensor(index) for index in (*self._keys, *self._values)]
        keys = [((state.positions, tensor.shape[1]), tensor.dtype) for tensor in tensors[: len(self._keys)]]
        values = [((tensor.shape[0], state.positions), tensor.dtype) for tensor in tensors[len(self._keys) :]]
        state.require(self.context, [*keys, *values])
        for index, rows in zip((*self._keys, *self._values), state.arrays, strict=True):
            whole = self._interpreter.get_tensor(index)
            if index in self._keys:
                whole[:positions] = rows[:positions]
            else:
                whole[:, :positions] = rows[:, :positions]
            self._interpreter.set_tensor(index, whole)
        self.position = positions

    def close(self) -> None:
        """As in `Backend`."""
        self._interpreter = None


def _kv_cache(interpreter: Any, context: int) -> tuple[list[int], list[int]]:
    """The tensors of keys and those of values."""
    found: dict[str, list[int]] = {"keys": [], "values": []}
    for details in interpreter.get_tensor_details():
        if (name := _KV_CACHE.fullmatch(details["name"])) and context in details["shape"]:
            found[name[1]].append(int(details["index"]))
    return found["keys"], found["values"]


class LiteRtBackend(InterpreterBackend):
    """LiteRT: x86_64 and aarch64."""

    package = _LITERT


class TfliteRuntimeBackend(InterpreterBackend):
    """tflite-runtime 2.14, the last release: the one for 32-bit boards. It needs numpy 1."""

    package = ("tflite_runtime.interpreter", "tflite-runtime", "tflite-runtime==2.14.0")
