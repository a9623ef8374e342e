"""Kept states of the kv_cache by the tokens that made them; bounded in bytes, the least recently used goes first.

Keys and values at a position depend on the tokens up to it alone. So a state serves every prompt that begins with some
of its tokens, as far as they agree.
"""

from __future__ import annotations

import os
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
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
        self._sorted: list[tuple[int, ...]] = []  # a small model has thousands: none is looked at that is not near
        self._lengths: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """How many are kept."""
        return len(self._states)

    def find(self, tokens: Sequence[int]) -> tuple[Snapshot | None, int]:
        """The state that begins with most of `tokens`, and with how many of them."""
        place = bisect_left(self._sorted, tuple(tokens))
        near = self._sorted[max(0, place - 1) : place + 1]  # what begins alike is in one place of the order
        best = max(near, key=lambda known: shared(known, tokens), default=())
        if (most := shared(best, tokens)) == 0:
            return None, 0
        self._states.move_to_end(best)
        return self._states[best], most

    def takes(self, positions: int, position_bytes: int) -> bool:
        """Whether a state of so many positions would be kept."""
        return 0 < positions * position_bytes <= self.keep_bytes

    def keep(self, tokens: Sequence[int], state: Snapshot) -> None:
        """Keep the state after `tokens`; those that it replaces are given up, and then the oldest."""
        key = tuple(tokens)
        for known in [key[:length] for length in self._lengths if length <= len(key)]:
            if known in self._states:
                self._drop(known)
        self._states[key] = state
        insort(self._sorted, key)
        self._lengths[len(key)] += 1
        self.used_bytes += state.nbytes
        while self.used_bytes > self.keep_bytes:
            self._drop(next(iter(self._states)))

    def _drop(self, key: tuple[int, ...]) -> None:
        self.used_bytes -= self._states.pop(key).nbytes
        del self._sorted[bisect_left(self._sorted, key)]
        self._lengths[len(key)] -= 1
        self._lengths += Counter()  # without those of which there is none left
