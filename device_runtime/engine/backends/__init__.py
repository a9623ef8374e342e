"""One file per way to run a graph. Which of them serves which profile is decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeAlias

from device_runtime.errors import BackendError, ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from device_runtime.bundle.folder import Bundle
    from device_runtime.engine.backends.compiled_model import GraphOpening
    from device_runtime.engine.states.snapshot import Snapshot

__all__ = ["BACKENDS", "Backend", "begin_opening", "open_backend"]

Logits: TypeAlias = "npt.NDArray[np.float32]"  # a graph begins to open before numpy is loaded


class Backend(Protocol):
    """A graph and its kv_cache. A new backend is right after the bundle's prefix.

    A backend does not check that tokens fit the context: the engine does, once, for all of them.
    """

    context: int  # positions that the kv_cache can hold, those of the prefix included
    position: int  # positions that it holds now
    chunk: int  # tokens that one run of the graph takes in; `prefill` of more is several runs
    several: int  # tokens of a run that takes about as long as one for one token; 1 where there is none
    position_bytes: int  # of a snapshot, for each of its positions; 0 where the graph's state cannot be copied

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Take in one or more tokens; returns the logits after the last, (vocabulary,), valid until the next call."""

    def decode(self, token: int) -> Logits:
        """Take in one token; returns the logits after it, (vocabulary,), valid until the next call."""

    def decode_several(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> Logits:
        """Take in tokens in one run of the graph, at most `chunk` or `several`; returns the logits after those at
        `rows`, or after each, (rows, vocabulary). Not where `several` is 1."""

    def look_ahead(self, tokens: Sequence[int], position: int) -> Logits:
        """The logits after the last of some tokens that would come at `position`, (vocabulary,). No position is
        changed, those after it neither. Not where `several` is 1."""

    def rewind(self, position: int) -> None:
        """Forget all positions from `position` on. The prefix cannot be forgotten."""

    def snapshot(self, positions: int) -> Snapshot:
        """A copy of the first positions, after which the others are lost. Not where `position_bytes` is 0."""

    def restore(self, state: Snapshot, positions: int) -> None:
        """Take up the first `positions` of what `snapshot` has copied, the prefix among them."""

    def close(self) -> None:
        """Give back memory."""


# name -> (module, class, profiles). For each profile the first that is installed is taken.
BACKENDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "compiled": ("device_runtime.engine.backends.compiled", "CompiledBackend", ("pi",)),
    "litert": ("device_runtime.engine.backends.interpreter", "LiteRtBackend", ("micro",)),
    "tflite-runtime": ("device_runtime.engine.backends.interpreter", "TfliteRuntimeBackend", ("micro",)),
    "native": ("device_runtime.engine.backends.native", "NativeBackend", ("micro",)),
    "tflm": ("device_runtime.engine.backends.tflm", "TflmBackend", ("micro",)),
}


def begin_opening(bundle: Bundle, name: str | None = None, threads: int | None = None) -> GraphOpening | None:
    """Have the graph of a bundle open meanwhile, to be given to `open_backend`; None where its backend has nothing that
    could.

    Args, Raises:
        as `open_backend`, but for what is wrong with the graph itself.
    """
    if _chosen(bundle, name) != "compiled":
        return None
    from device_runtime.engine.backends.compiled_model import GraphOpening

    return GraphOpening(bundle, threads)


def open_backend(
    bundle: Bundle, name: str | None = None, threads: int | None = None, opening: GraphOpening | None = None
) -> Backend:
    """Open the graph of a bundle.

    Args:
        name: a key of `BACKENDS`, or None for the first one that serves the profile and is installed.
        threads: CPU threads; None means one per core, at most 4. The checking backend `tflm` has one.
        opening: what `begin_opening` has begun with the same arguments.

    Raises:
        ConfigurationError: there is no such backend, or the bundle writes no text.
        BackendError: it does not serve the bundle's profile, or refused the graph.
        BackendMissingError: the package it needs is not installed.
        BundleError: only an earlier stonechat runs it.
    """
    module, class_name, _ = BACKENDS[_chosen(bundle, name)]
    begun = () if opening is None else (opening,)
    backend: Backend = getattr(import_module(module), class_name)(bundle, threads, *begun)
    return backend


def _chosen(bundle: Bundle, name: str | None) -> str:
    bundle.manifest.require_task("generate")
    bundle.manifest.require_present_graph()
    profile = bundle.manifest.profile
    of_profile = [known for known, (_, _, profiles) in BACKENDS.items() if profile in profiles]
    only = bundle.manifest.backends
    serving = [known for known in of_profile if not only or known in only]
    if not serving:
        raise BackendError(
            f"This bundle runs in {' or '.join(only)}, which this stonechat has not for the profile {profile}; install "
            "the stonechat that made it, or convert the checkpoint again."
        )
    if name is None:
        name = next((known for known in serving if _installed(known)), serving[0])
    if name not in BACKENDS:
        raise ConfigurationError(f"There is no backend {name!r}; the backends are {', '.join(BACKENDS)}.")
    if name in of_profile and name not in serving:
        raise BackendError(
            f"The backend {name!r} cannot run this bundle: its int{bundle.manifest.weight_bits} weights run in "
            f"{' or '.join(serving)} only. Take that one, or convert with --weights int8."
        )
    if name not in serving:
        raise BackendError(
            f"The backend {name!r} cannot run a graph of the profile {profile!r}; "
            f"for this bundle take {' or '.join(serving)}, or convert again with the other --profile."
        )
    return name


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    package = {"tflite-runtime": "tflite_runtime", "tflm": "tflite_micro"}.get(name, "ai_edge_litert")
    if name == "native":
        return False  # it is asked for by name; the others need no compiler
    return find_spec(package) is not None
