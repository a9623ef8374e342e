"""Kept states of the kv_cache by the tokens that made them; bounded in bytes, the least recently used goes first.

Keys and values at a position depend on the tokens up to it alone. So a state serves every prompt that begins with some
of its tokens, as far as they agree.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

from device_runtime.engine.states.snapshot import Snapshot, shared

__all__ = ["LEAST_GAIN", "PromptStates", "default_keep_bytes"]

LEAST_GAIN = 8  # tokens below which computing them again costs less than copying a state
_MOST_DEFAULT = 64 << 20  # bytes
_SHARE_OF_RAM = 16  # one part in so many


def default_keep_bytes() -> int:
    """What kept states may take where nobody has said: a sixteenth of the machine's memory, at most 64 MiB."""
    ram: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_MOST_DEFAULT, ram // _SHARE_OF_RAM)


class PromptStates:
    """The states of one model. For one thread, but for `count` and `used_bytes`."""

    def __init__(self, keep_bytes: int) -> None:
        """`keep_bytes` is the memory that they may take together; 0 keeps none."""
        self.keep_bytes, self.used_bytes = keep_bytes, 0
        self._states: OrderedDict[tuple[int, ...], Snapshot] = OrderedDict()  # the least recently used first

    @property
    def count(self) -> int:
        """How many are kept."""
        return len(self._states)

    def find(self, tokens: Sequence[int]) -> tuple[Snapshot | None, int]:
        """The state that begins with most of `tokens`, and with how many of them."""
        best, most = None, 0
        for known in self._states:
            if (common := shared(known, tokens)) > most:
                best, most = known, common
        if best is None:
            return None, 0
        self._states.move_to_end(best)
        return self._states[best], most

    def takes(self, positions: int, position_bytes: int) -> bool:
        """Whether a state of so many positions would be kept."""
        return 0 < positions * position_bytes <= self.keep_bytes

    def keep(self, tokens: Sequence[int], state: Snapshot) -> None:
        """Keep the state after `tokens`; those that it replaces are given up, and then the oldest."""
        key = tuple(tokens)
        for known in [known for known in self._states if known == key[: len(known)]]:
            self._drop(known)
        self._states[key] = state
        self.used_bytes += state.nbytes
        while self.used_bytes > self.keep_bytes:
            self._drop(next(iter(self._states)))

    def _drop(self, key: tuple[int, ...]) -> None:
        self.used_bytes -= self._states.pop(key).nbytes
