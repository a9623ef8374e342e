"""The `micro` profile in TFLite Micro's own interpreter: for checking what a microcontroller will compute.

The arena is far larger than needed, since pages that are not touched cost nothing, and what the graph took of
it is read from the interpreter's report. Finding the size by trying small ones is not safe: several kernels
write through the null pointer that a full arena gives them. On a microcontroller pointers are half as long, so
the arena there is a little smaller than what is measured here.
"""

from __future__ import annotations

import re
import struct
from importlib import import_module
from typing import Any

import numpy as np

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Arena
from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.engine.backends.stepwise import StepwiseBackend
from device_runtime.errors import BackendError, BackendMissingError

__all__ = ["TflmBackend", "open_interpreter", "taken_arena"]

_SPARE_ARENA = 64 << 20  # bytes beyond twice the model, which bounds what kernels keep for each row of weights
_LARGEST_ARENA = 2 << 30  # bytes; far more than any board has
_TOO_SMALL = re.compile("Failed to allocate|Failed to resize|missing: [0-9]+")
_ARENA = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_VARIABLES = re.compile(r"variable buffer data' used (\d+) bytes")


class TflmBackend(StepwiseBackend):
    """See `device_runtime.engine.backends.Backend`. It has one thread whatever is asked for."""

    arena: Arena | None  # what the graph takes of it, constants not counted; None if it was not reported

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle)
        self._interpreter = open_interpreter(bundle)
        details = self._interpreter.get_output_details(0)["quantization_parameters"]
        self._scale = float(details["scales"][0]) if len(details["scales"]) else 0.0
        self._zero_point = int(details["zero_points"][0]) if len(details["zero_points"]) else 0
        self.arena = taken_arena(self._interpreter)

    def _step(self, token: int, position: int) -> None:
        self._interpreter.set_input(np.array([token], np.int32), 0)
        self._interpreter.set_input(np.array([position], np.int32), 1)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise BackendError(f"TFLite Micro failed at position {position}: {error}") from None
        self._dequantize(self._interpreter.get_output(0), self._scale, self._zero_point)

    def close(self) -> None:
        """As in `Backend`."""
        self._interpreter = None


def open_interpreter(bundle: Bundle) -> Any:
    """TFLite Micro's interpreter with the graph of a bundle.

    Raises:
        BackendError: it refuses the graph.
        BackendMissingError: it is not installed.
    """
    try:
        runtime: Any = import_module("tflite_micro.python.tflite_micro.runtime")
    except ImportError:
        raise BackendMissingError(
            "This needs TFLite Micro's interpreter, which is not installed; run `pip install tflite-micro` "
            "(there are packages for x86_64 only)."
        ) from None
    return _open(runtime, bundle)


def taken_arena(interpreter: Any) -> Arena | None:
    """What the graph takes of the arena, constants not counted; None if it is not reported."""
    with captured_stderr(keep="bytes") as log:
        interpreter.print_allocations()
        return _read_report(log())


def _read_report(text: str) -> Arena | None:
    sizes = {kind: int(size) for kind, size in _ARENA.findall(text)}
    if sizes.keys() != {"total", "head", "tail"}:
        return None
    variables = _VARIABLES.search(text)
    kv_cache = int(variables.group(1)) if variables else 0
    return Arena(sizes["total"], sizes["head"], sizes["tail"], kv_cache, pointer_bytes=struct.calcsize("P"))


def _open(runtime: Any, bundle: Bundle) -> Any:
    model = bundle.model_path.read_bytes()
    size = _SPARE_ARENA + 2 * len(model)
    while True:
        with captured_stderr(keep="") as log:
            try:
                return runtime.Interpreter.from_bytes(model, arena_size=size)
            except RuntimeError as error:
                message, text = str(error), log().strip()
            except Exception as error:  # the wrapper reads the graph in Python first, and that fails in many ways
                raise BackendError(
                    f"TFLite Micro refused {bundle.model_path}: it cannot be parsed ({error}). Copy the bundle again."
                ) from None
        if text and not _TOO_SMALL.search(text):  # without a text, it may be the size
            raise BackendError(f"TFLite Micro refused {bundle.model_path}: {message}\n{text}")
        if size >= _LARGEST_ARENA:
            raise BackendError(f"TFLite Micro refused {bundle.model_path} with an arena of {size:,} bytes: {text}")
        size = min(4 * size, _LARGEST_ARENA)
