"""What the backends of the `micro` profile share: a graph that takes one token and its position at a time.

The kv_cache lies inside the graph. A position after the current one is masked whatever the cache holds
there, so going back is a matter of the position alone. The prefix is a constant of the graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Logits
from device_runtime.engine.states.snapshot import Snapshot

__all__ = ["StepwiseBackend"]


class StepwiseBackend(ABC):
    """See `device_runtime.engine.backends.Backend`. A subclass runs one step."""

    chunk = several = 1
    position_bytes = 0

    def __init__(self, bundle: Bundle) -> None:
        self._prefix = len(bundle.manifest.prefix_tokens)
        self.context = bundle.manifest.context
        self.position = self._prefix
        self._logits = np.zeros(bundle.manifest.graph.vocabulary, np.float32)

    @abstractmethod
    def _step(self, token: int, position: int) -> None:
        """Run the graph once and fill `_logits`."""

    def _dequantize(self, stored: npt.NDArray[np.generic], scale: float, zero_point: int) -> None:
        """Fill `_logits` from the graph's output; a scale of 0 means that it is float32 already."""
        np.copyto(self._logits, stored.reshape(-1))
        if scale:
            self._logits -= np.float32(zero_point)
            self._logits *= np.float32(scale)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """As in `Backend`."""
        if not tokens:
            raise ValueError("prefill needs at least one token")
        for token in tokens:
            self.decode(token)
        return self._logits

    def decode(self, token: int) -> Logits:
        """As in `Backend`."""
        self._step(token, self.position)
        self.position += 1
        return self._logits

    def decode_several(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> Logits:
        """As in `Backend`: one after the other."""
        logits = np.stack([self.decode(token).copy() for token in tokens])
        return logits if rows is None else logits[list(rows)]

    def look_ahead(self, tokens: Sequence[int], position: int) -> Logits:
        """As in `Backend`; the graph has no place for them but the one that they would come to."""
        raise NotImplementedError

    def rewind(self, position: int) -> None:
        """As in `Backend`."""
        self.position = min(self.position, max(position, self._prefix))

    def snapshot(self, positions: int) -> Snapshot:
        """As in `Backend`; for a subclass that sets `position_bytes`."""
        raise NotImplementedError

    def restore(self, state: Snapshot, positions: int) -> None:
        """As in `Backend`; for a subclass that sets `position_bytes`."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """As in `Backend`."""
