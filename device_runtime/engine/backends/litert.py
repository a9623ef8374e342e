"""LiteRT's CompiledModel through its C interface (litert/c/*.h of LiteRT 2.3).

LiteRT's own Python module does the same, but it needs numpy before anything else, a second library of 18 MB, and holds
Python's lock while a graph is opened or runs. Here a graph opens beside whatever else a start has to do, and while it
runs, other threads go on. Nothing here needs numpy: buffers are filled from, and read into, whatever has memory.

Calls that take their time release Python's lock (`ctypes.CDLL`); short ones keep it (`ctypes.PyDLL`), or a thread that
makes many of them would wait for it at each.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.errors import BackendError
from device_runtime.machine.kernels import LITERT, LITERT_PACKAGE

__all__ = ["Buffer", "CompiledModel", "LiteRt", "Signature"]

_LIBRARY = "libLiteRt.so"
_CPU = 1  # LiteRtHwAccelerators
_INT = 2  # LiteRtAnyType
_AUTO_REGISTER_ACCELERATORS = 24  # LiteRtEnvOptionTag
_READ, _WRITE = 0, 1  # LiteRtTensorBufferLockMode
_RANK = 8  # LITERT_TENSOR_MAX_RANK
_SLOW = ("LiteRtCreateModelFromFile", "LiteRtCreateCompiledModel", "LiteRtRunCompiledModel")


class _Integer(ctypes.Structure):
    """LiteRtAny that is an integer."""

    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_int64))


class _EnvironmentOption(ctypes.Structure):
    """LiteRtEnvOption."""

    _fields_ = (("tag", ctypes.c_int), ("value", _Integer))


class _Layout(ctypes.Structure):
    """LiteRtLayout."""

    _fields_ = (
        ("rank", ctypes.c_uint32, 7), ("has_strides", ctypes.c_uint32, 1),
        ("dimensions", ctypes.c_int32 * _RANK), ("strides", ctypes.c_uint32 * _RANK),
    )  # fmt: skip


class _TensorType(ctypes.Structure):
    """LiteRtRankedTensorType."""

    _fields_ = (("element_type", ctypes.c_int), ("layout", _Layout))


assert (ctypes.sizeof(_EnvironmentOption), ctypes.sizeof(_Layout), ctypes.sizeof(_TensorType)) == (24, 68, 72)


class LiteRt:
    """The library, loaded."""

    def __init__(self, package: Path, version: str) -> None:
        """Load it from the folder of the package `ai_edge_litert`.

        Raises:
            BackendError: it is another version, or cannot be loaded.
        """
        if version.split(".")[:2] != [str(number) for number in LITERT]:
            raise BackendError(
                f"LiteRT {version} is installed, whose interface this stonechat does not know; run "
                f"`pip install '{LITERT_PACKAGE}'`."
            )
        self.version = version
        path = str(package / _LIBRARY)
        try:
            self._slow, self._short = ctypes.CDLL(path), ctypes.PyDLL(path)
        except OSError as error:
            raise BackendError(f"LiteRT cannot be loaded ({error}); install ai-edge-litert again.") from None
        self._free = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        self._duplicate = ctypes.PyDLL(None).strdup
        self._duplicate.restype = ctypes.c_void_p

    def call(self, name: str, *arguments: Any) -> None:
        """A function that returns a LiteRtStatus.

        Raises:
            BackendError: it is not ok.
        """
        if status := getattr(self.library_of(name), name)(*arguments):
            raise BackendError(f"{name} failed with status {status}")

    def library_of(self, name: str) -> ctypes.CDLL:
        """The library, as a function of this name is called."""
        return self._slow if name in _SLOW else self._short

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """A handle, by a function that takes a pointer to it as its last argument."""
        handle = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle

    def destroy(self, kind: str, handle: ctypes.c_void_p) -> None:
        """Give back what `made` has made."""
        if handle:
            getattr(self._short, f"LiteRtDestroy{kind}")(handle)
            handle.value = None

    def cpu_options(self, threads: int, weight_cache: str) -> ctypes.c_void_p:
        """LiteRtOptions for the CPU."""
        options = self.made("LiteRtCreateOptions")
        try:
            self.call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
            # Lines that look like TOML: a value goes from the first quote to the last, and there are no escapes.
            text = f"num_threads = {threads}\n"
            if weight_cache and "\n" not in weight_cache:
                text += f'weight_cache_file_path = "{weight_cache}"\n'
            copy = ctypes.c_void_p(self._duplicate(os.fsencode(text)))
            opaque = self.made("LiteRtCreateOpaqueOptions", b"xnnpack", copy, self._free)
            self.call("LiteRtAddOpaqueOptions", options, opaque)
        except BackendError:
            self.destroy("Options", options)
            raise
        return options


@dataclass(frozen=True)
class Signature:
    """Names of a signature's inputs and outputs, in their order."""

    index: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_types: tuple[int, ...]  # LiteRtElementType
    output_types: tuple[int, ...]


class CompiledModel:
    """A graph that LiteRT has taken, with XNNPACK. It lives until nothing refers to it or to one of its buffers."""

    signatures: Mapping[str, Signature]

    def __init__(self, runtime: LiteRt, path: Path, threads: int, weight_cache: str) -> None:
        """Open a graph.

        Args:
            weight_cache: the file of packed weights, to be read or written; empty for none. One with a line break in
                its name cannot be said, and is not used.

        Raises:
            BackendError: LiteRT refuses it.
        """
        self._runtime = runtime
        self._environment, self._options = ctypes.c_void_p(), ctypes.c_void_p()
        self._model, self._compiled = ctypes.c_void_p(), ctypes.c_void_p()
        # It would look for GPU drivers beside its library and load what it finds. Its package for 64-bit ARM has one
        # that is built for ARMv8.1: on a Cortex-A53 or -A72 (Raspberry Pi Zero 2 W, 3, 4) that ends the process.
        only_cpu = _EnvironmentOption(_AUTO_REGISTER_ACCELERATORS, _Integer(_INT, _CPU))
        self._environment = runtime.made("LiteRtCreateEnvironment", 1, ctypes.byref(only_cpu))
        self._model = runtime.made("LiteRtCreateModelFromFile", self._environment, os.fsencode(path))
        self._options = runtime.cpu_options(threads, weight_cache)
        self._compiled = runtime.made("LiteRtCreateCompiledModel", self._environment, self._model, self._options)
        self.signatures = MappingProxyType(dict(self._signature(i) for i in range(self._count("NumModelSignatures"))))

    def __del__(self) -> None:
        with captured_stderr():  # LiteRT talks while it ends, also where nobody has closed the model
            for kind in ("CompiledModel", "Options", "Model", "Environment"):
                handle = getattr(self, "_compiled" if kind == "CompiledModel" else f"_{kind.lower()}", None)
                if handle is not None:
                    self._runtime.destroy(kind, handle)

    def resize(self, signature: Signature, name: str, shape: Sequence[int]) -> None:
        """Give an input another shape; buffers for it have to be made again."""
        dimensions = (ctypes.c_int * len(shape))(*shape)
        index = ctypes.c_size_t(signature.inputs.index(name))
        where = self._compiled, ctypes.c_size_t(signature.index), index
        self._runtime.call("LiteRtCompiledModelResizeInputTensor", *where, dimensions, ctypes.c_size_t(len(shape)))

    def input_buffer(self, signature: Signature, name: str) -> Buffer:
        """A buffer for an input of the shape that it has now."""
        number = signature.inputs.index(name)
        where = self._compiled, ctypes.c_size_t(signature.index), ctypes.c_size_t(number)
        kind = _TensorType(signature.input_types[number])
        self._runtime.call("LiteRtGetCompiledModelInputTensorLayout", *where, ctypes.byref(kind.layout))
        needs = self._runtime.made("LiteRtGetCompiledModelInputBufferRequirements", *where)
        return Buffer(self, self._made_buffer(kind, needs))

    def output_buffer(self, signature: Signature, name: str) -> Buffer:
        """A buffer for an output of the shape that it has with the inputs' shapes of now."""
        number, count = signature.outputs.index(name), len(signature.outputs)
        layouts, index = (_Layout * count)(), ctypes.c_size_t(signature.index)
        self._runtime.call(
            "LiteRtGetCompiledModelOutputTensorLayouts",
            self._compiled, index, ctypes.c_size_t(count), layouts, ctypes.c_bool(True),
        )  # fmt: skip
        where = self._compiled, index, ctypes.c_size_t(number)
        needs = self._runtime.made("LiteRtGetCompiledModelOutputBufferRequirements", *where)
        return Buffer(self, self._made_buffer(_TensorType(signature.output_types[number], layouts[number]), needs))

    def _made_buffer(self, kind: _TensorType, needs: ctypes.c_void_p) -> ctypes.c_void_p:
        """`needs` stays the model's."""
        name = "LiteRtCreateManagedTensorBufferFromRequirements"
        return self._runtime.made(name, self._environment, ctypes.byref(kind), needs)

    def bind(self, signature: Signature, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> Bound:
        """What `run` runs: buffers in the order of the signature's inputs and outputs."""
        return Bound(self, signature, inputs, outputs)

    def _count(self, what: str, *of: Any) -> int:
        count = ctypes.c_size_t()
        self._runtime.call(f"LiteRtGet{what}", *(of or (self._model,)), ctypes.byref(count))
        return count.value

    def _signature(self, index: int) -> tuple[str, Signature]:
        handle = self._runtime.made("LiteRtGetModelSignature", self._model, ctypes.c_size_t(index))
        key = ctypes.c_char_p()
        self._runtime.call("LiteRtGetSignatureKey", handle, ctypes.byref(key))
        (inputs, input_types), (outputs, output_types) = (self._tensors(handle, way) for way in ("Input", "Output"))
        return (key.value or b"").decode(), Signature(index, inputs, outputs, input_types, output_types)

    def _tensors(self, signature: ctypes.c_void_p, way: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        names, types, name = [], [], ctypes.c_char_p()
        for i in range(self._count(f"NumSignature{way}s", signature)):
            self._runtime.call(f"LiteRtGetSignature{way}Name", signature, ctypes.c_size_t(i), ctypes.byref(name))
            tensor = self._runtime.made(f"LiteRtGetSignature{way}TensorByIndex", signature, ctypes.c_size_t(i))
            kind = _TensorType()
            self._runtime.call("LiteRtGetRankedTensorType", tensor, ctypes.byref(kind))
            names.append((name.value or b"").decode())
            types.append(int(kind.element_type))
        return tuple(names), tuple(types)


class Buffer:
    """Memory of an input or output."""

    def __init__(self, model: CompiledModel, handle: ctypes.c_void_p) -> None:
        self._model, self.handle = model, handle  # which has to outlive it
        self._runtime = model._runtime

    def __del__(self) -> None:
        self._runtime.destroy("TensorBuffer", self.handle)

    def write(self, values: Any) -> None:
        """Copy values, which are contiguous and writable (an array of numpy or of Python), to its beginning."""
        with memoryview(values) as view:
            self._copy(view, _WRITE)

    def read(self, values: Any) -> None:
        """Fill values, which are contiguous, from its beginning."""
        with memoryview(values) as view:
            self._copy(view, _READ)

    def clear(self) -> None:
        """Make all of it zeros."""
        self._runtime.call("LiteRtClearTensorBuffer", self.handle)

    def _copy(self, view: memoryview, mode: int) -> None:
        size = ctypes.c_size_t()
        self._runtime.call("LiteRtGetTensorBufferPackedSize", self.handle, ctypes.byref(size))
        if view.nbytes > size.value:
            raise ValueError(f"a buffer of {size.value:,} bytes cannot take or give {view.nbytes:,}")
        if view.nbytes == 0:
            return
        here = ctypes.c_char.from_buffer(view)
        there = ctypes.c_void_p()
        self._runtime.call("LiteRtLockTensorBuffer", self.handle, ctypes.byref(there), mode)
        try:
            source, target = (there, ctypes.byref(here)) if mode == _READ else (ctypes.byref(here), there)
            ctypes.memmove(target, source, view.nbytes)
        finally:
            del here
            self._runtime.call("LiteRtUnlockTensorBuffer", self.handle)


class Bound:
    """A signature and the buffers of its runs."""

    def __init__(
        self, model: CompiledModel, signature: Signature, inputs: Sequence[Buffer], outputs: Sequence[Buffer]
    ) -> None:
        self._model, self._kept = model, (*inputs, *outputs)
        self._arguments = (
            model._compiled, ctypes.c_size_t(signature.index),
            ctypes.c_size_t(len(inputs)), _handles(inputs), ctypes.c_size_t(len(outputs)), _handles(outputs),
        )  # fmt: skip

    def run(self) -> None:
        """Once. The buffers have to be of the shapes that the signature's inputs have now."""
        self._model._runtime.call("LiteRtRunCompiledModel", *self._arguments)


def _handles(buffers: Sequence[Buffer]) -> Any:
    return (ctypes.c_void_p * len(buffers))(*(buffer.handle.value for buffer in buffers))
