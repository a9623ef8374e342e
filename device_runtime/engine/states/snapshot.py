"""A copy of the used positions of a backend's kv_cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Snapshot", "shared"]


@dataclass(frozen=True)
class Snapshot:
    """Keys and values of the first positions, as the backend that made it stores them."""

    positions: int
    arrays: tuple[npt.NDArray[Any], ...]  # each of the backend's own shape, with no more than `positions` in it

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for array in self.arrays)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    least = min(len(one), len(other))
    differ = np.flatnonzero(np.asarray(one[:least]) != np.asarray(other[:least]))
    return int(differ[0]) if differ.size else least
