"""A copy of the used positions of a backend's kv_cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import BackendError

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

    def require(self, context: int, expected: Sequence[tuple[tuple[int, ...], npt.DTypeLike]]) -> None:
        """Raise a `BackendError` unless these are the arrays of a graph.

        Args:
            context: positions that it can hold.
            expected: the shape and type of each.
        """
        if self.positions > context:
            raise _foreign(f"{self.positions} positions, and this bundle holds {context}")
        if len(self.arrays) != len(expected):
            raise _foreign(f"{len(self.arrays)} arrays, and this bundle {len(expected)}")
        for array, (shape, dtype) in zip(self.arrays, expected, strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise _foreign(f"{array.dtype} {array.shape}, and this bundle {np.dtype(dtype)} {shape}")


def _foreign(difference: str) -> BackendError:
    return BackendError(
        f"This state of the kv_cache is of another graph: it has {difference}. Delete it and begin again: another "
        "graph could not use it."
    )


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    least = min(len(one), len(other))
    differ = np.flatnonzero(np.asarray(one[:least]) != np.asarray(other[:least]))
    return int(differ[0]) if differ.size else least
