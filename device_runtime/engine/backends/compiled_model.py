"""Opens a `pi` graph in LiteRT's CompiledModel, its packed weights mapped from a file of an earlier start."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.litert_library import load_without_gpu
from device_runtime.engine.backends.native_log import captured_stderr, silence_at_exit
from device_runtime.engine.backends.weight_cache import WeightCache
from device_runtime.errors import BackendError, BackendMissingError
from device_runtime.machine.machine import cpu_fingerprint, usable_cores
from device_runtime.machine.resident import release_mapped_file, trim_heap

__all__ = ["OpenedGraph", "open_compiled"]

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class OpenedGraph(Generic[Prepared]):
    """A graph that LiteRT has accepted."""

    model: Any  # CompiledModel
    weights: WeightCache
    prepared: Prepared


def open_compiled(bundle: Bundle, threads: int | None, prepare: Callable[[Any], Prepared]) -> OpenedGraph[Prepared]:
    """Open a bundle's graph.

    Args:
        threads: None means one per core, at most 4.
        prepare: what else belongs to opening it, on the model: LiteRT finds some faults when buffers are made.

    Raises:
        BackendError: LiteRT refuses it, or does not exist for this system.
        BackendMissingError: LiteRT is not installed.
    """
    try:
        with captured_stderr():
            load_without_gpu()
            from ai_edge_litert import __version__ as litert_version
            from ai_edge_litert import compiled_model as litert
    except ImportError:
        if sys.maxsize < 2**32:
            raise BackendError(
                "This bundle has the profile pi, whose runtime LiteRT exists for 64-bit systems only, and this is "
                "a 32-bit one; convert the checkpoint again with --profile micro, or install a 64-bit system."
            ) from None
        raise BackendMissingError(
            "This bundle needs LiteRT, which is not installed; run `pip install 'ai-edge-litert>=2.3'`."
        ) from None
    size = bundle.model_path.stat().st_size
    cache = WeightCache(bundle.cache_path, size, str(litert_version), cpu_fingerprint())

    def opened() -> OpenedGraph[Prepared]:
        cpu = litert.CpuOptions(num_threads=threads or usable_cores(), xnnpack_weight_cache_path=cache.path)
        environment: Any = None
        model: Any = None
        with captured_stderr() as log:
            try:
                # LiteRT looks for GPU and NPU drivers in runtime_path; there are none in a bundle.
                of_bundle = litert.EnvironmentOptions(runtime_path=str(bundle.path))
                environment = litert.Environment.create(options=of_bundle)
                options = litert.Options(cpu_options=cpu)
                model = litert.CompiledModel.from_file(str(bundle.model_path), environment=environment, options=options)
                return OpenedGraph(model, cache, prepare(model))
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # whose variables would go later, and LiteRT talks then
                environment = model = None
                raise BackendError(f"LiteRT refused {bundle.model_path}: {error}\n{log()}".rstrip()) from None

    silence_at_exit()
    graph = opened()
    if cache.keep():  # XNNPACK keeps memory of the largest weights' size once it has packed: begin again, without
        with captured_stderr():
            del graph
        trim_heap()
        graph = opened()
    release_mapped_file(bundle.model_path)  # the packed weights are read from now on, not the original ones
    trim_heap()
    return graph
