"""The `micro` profile in stonechat's own C engine, compiled on this machine; it reads the bundle's model image."""

from __future__ import annotations

import numpy as np

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE
from device_runtime.engine.backends.stepwise import StepwiseBackend
from device_runtime.engine.states.snapshot import Snapshot
from device_runtime.errors import BackendError
from device_runtime.micro.library import CEngine

__all__ = ["NativeBackend"]


class NativeBackend(StepwiseBackend):
    """See `device_runtime.engine.backends.Backend`. It has one thread whatever is asked for."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle)
        path = bundle.path / IMAGE
        if not path.exists():
            raise BackendError(
                f"{bundle.path} has no {IMAGE}, which the native backend runs; convert the checkpoint again with this "
                "version of stonechat."
            )
        # Bundle.open has compared the file's hash with the manifest's, if the manifest names it
        self._engine: CEngine | None = CEngine(path, trust_hash=IMAGE in bundle.manifest.files)
        needs = self._engine.needs
        found = (needs.context, needs.vocabulary, needs.prefix)
        expected = (self.context, bundle.manifest.graph.vocabulary, self._prefix)
        if found != expected:
            raise BackendError(
                f"{path} has context, vocabulary and prefix {found}, the manifest {expected}: they are of two "
                "conversions. Convert the checkpoint again."
            )

        self.position_bytes = needs.kv_cache_bytes // self.context

    def snapshot(self, positions: int) -> Snapshot:
        """As in `Backend`."""
        assert self._engine is not None
        self._engine.rewind(positions)
        return Snapshot(positions, (np.frombuffer(self._engine.save(), np.uint8),))

    def restore(self, state: Snapshot, positions: int) -> None:
        """As in `Backend`.

        Raises:
            BackendError: another graph has made the state, or it is damaged.
        """
        assert self._engine is not None
        state.require(self.context, [((self._engine.saved_bytes,), np.uint8)])
        self._engine.restore(state.arrays[0].tobytes())
        self.position = positions

    def _step(self, token: int, position: int) -> None:
        assert self._engine is not None
        self._engine.rewind(position)
        self._engine.feed(token)
        self._dequantize(self._engine.logits, self._engine.scale, self._engine.zero_point)

    def close(self) -> None:
        """As in `Backend`."""
        self._engine = None
