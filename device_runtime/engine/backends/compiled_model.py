"""Opens a `pi` graph in LiteRT's CompiledModel, its packed weights mapped from a file of an earlier start.

LiteRT reads and prepares a graph without Python, so it does that in a thread, while the one that asked for it loads
numpy and reads the tokenizer. The thread imports nothing: what it needs is loaded before it begins, and so it never
waits for the other one. What goes wrong in it is raised where the graph is asked for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.litert import CompiledModel, LiteRt
from device_runtime.engine.backends.native_log import captured_stderr, silence_at_exit
from device_runtime.engine.backends.weight_cache import WeightCache
from device_runtime.errors import BackendError, BackendMissingError
from device_runtime.machine.kernels import LITERT_PACKAGE
from device_runtime.machine.machine import cpu_fingerprint, usable_cores
from device_runtime.machine.resident import populate_mapped_file, release_mapped_file, trim_heap

__all__ = ["GraphOpening", "OpenedGraph"]

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class OpenedGraph(Generic[Prepared]):
    """A graph that LiteRT has accepted."""

    model: CompiledModel
    weights: WeightCache
    prepared: Prepared


class GraphOpening:
    """The graph of a bundle, which opens meanwhile. Either `finish` or `abandon` ends it."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        """Begin.

        Args:
            threads: None means one per core, at most 4.

        Raises:
            BackendError: LiteRT does not exist for this system, or is of another version.
            BackendMissingError: it is not installed.
        """
        self._runtime, self._path = _litert(), bundle.model_path
        self._threads = threads or usable_cores()
        size = self._path.stat().st_size
        self._weights = WeightCache(bundle.cache_path, size, self._runtime.version, cpu_fingerprint())
        self._model: CompiledModel | None = None
        self._failure: BaseException | None = None
        silence_at_exit()
        self._thread = threading.Thread(target=self._open, name="graph", daemon=True)
        self._thread.start()

    def finish(self, prepare: Callable[[CompiledModel], Prepared]) -> OpenedGraph[Prepared]:
        """Wait for it.

        Args:
            prepare: what else belongs to opening it, on the model: LiteRT finds some faults when buffers are made.

        Raises:
            BackendError: LiteRT refuses the graph.
        """
        self._thread.join()
        graph = self._prepared(prepare)
        if self._weights.keep():  # XNNPACK keeps memory of the largest weights' size once it has packed: begin again
            with captured_stderr():
                del graph
            trim_heap()
            self._open()
            graph = self._prepared(prepare)
        release_mapped_file(self._path)  # the packed weights are read from now on, not the original ones
        trim_heap()
        if self._weights.unkept:
            _say_unkept(self._weights.unkept)
        return graph

    def abandon(self) -> None:
        """Give it up: nothing of it goes on after this."""
        self._thread.join()
        with captured_stderr():
            self._model = None
        self._weights.close()

    def _open(self) -> None:
        """Without an exception: in a thread nobody would see it."""
        with captured_stderr() as log:
            try:
                weights = Path(self._weights.path)
                packed = weights.is_file()  # else the original ones are still in memory beside them
                self._model = CompiledModel(self._runtime, self._path, self._threads, self._weights.path)
                if packed:
                    release_mapped_file(self._path)  # first, or both would be in memory for a while
                    populate_mapped_file(weights)
            except BackendError as error:
                self._failure = self._refused(error, log())
            except BaseException as error:  # such as a MemoryError
                self._failure = error

    def _prepared(self, prepare: Callable[[CompiledModel], Prepared]) -> OpenedGraph[Prepared]:
        model, self._model = self._model, None
        if self._failure is not None or model is None:
            raise self._failure or BackendError("the graph was asked for twice")
        with captured_stderr() as log:
            try:
                return OpenedGraph(model, self._weights, prepare(model))
            except Exception as error:
                import traceback

                traceback.clear_frames(error.__traceback__)  # whose variables would go later, and LiteRT talks then
                del model
                raise self._refused(error, log()) from None

    def _refused(self, error: Exception, said: str) -> BackendError:
        return BackendError(f"LiteRT refused {self._path}: {error}\n{said}".rstrip())


@cache  # once, however many models a process opens, and however often
def _say_unkept(why: str) -> None:
    """In the log of a service, which starts again and again; the level is below what a command shows of its own."""
    import logging  # which a start does without

    log = logging.getLogger("stonechat.engine")
    log.info("packed weights cannot be kept, so each start is slower and takes more memory: %s", why)


def _litert() -> LiteRt:
    try:
        with captured_stderr():
            import ai_edge_litert
    except ImportError:
        if sys.maxsize < 2**32:
            raise BackendError(
                "This bundle has the profile pi, whose runtime LiteRT exists for 64-bit systems only, and this is "
                "a 32-bit one; convert the checkpoint again with --profile micro, or install a 64-bit system."
            ) from None
        raise BackendMissingError(
            f"This bundle needs LiteRT, which is not installed; run `pip install '{LITERT_PACKAGE}'`."
        ) from None
    return LiteRt(Path(ai_edge_litert.__file__ or "").parent, str(ai_edge_litert.__version__))
