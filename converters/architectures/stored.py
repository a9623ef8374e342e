"""Where a format has tensors that are not one to one with the network's: fused, transposed, or in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from converters.architectures.family import NameTable, Source
from converters.network.config import NetworkConfig
from converters.network.tensors import Role, Tensor, by_role
from converters.network.weights import FloatArray

__all__ = ["Find", "first_of", "fused", "gain_minus_one", "pairs_to_halves", "permuted", "transposed"]

Find = Callable[[Tensor, NetworkConfig], Source | None]


def first_of(*finds: Find) -> Find:
    """The first of several that knows the tensor."""

    def find(tensor: Tensor, config: NetworkConfig) -> Source | None:
        return next((found for each in finds if (found := each(tensor, config)) is not None), None)

    return find


def fused(names: Mapping[str, tuple[Role, ...]]) -> Find:
    """Matmuls whose rows lie one after the other in one tensor: {"model.layers.{i}.qkv": (Role.Q, Role.K, Role.V)}."""
    places = {role: (name, roles) for name, roles in names.items() for role in roles}

    def find(tensor: Tensor, config: NetworkConfig) -> Source | None:
        if tensor.matmul is None or tensor.layer is None or tensor.matmul.role not in places:
            return None
        name, roles = places[tensor.matmul.role]
        rows = [by_role(config, tensor.layer)[role].rows for role in roles]
        start = sum(rows[: roles.index(tensor.matmul.role)])
        shape = (sum(rows), *tensor.shape[1:])
        return Source(f"{name.format(i=tensor.layer)}.{tensor.part}", shape, slice(start, start + tensor.shape[0]))

    return find


def permuted(names: NameTable) -> Find:
    """GGUF keeps the rows of q and k of some families as pairs (j, j + head_dim / 2)."""

    def find(tensor: Tensor, config: NetworkConfig) -> Source | None:
        if tensor.matmul is None or tensor.matmul.layer is None or tensor.matmul.role not in (Role.Q, Role.K):
            return None
        head_dim = config.blocks[tensor.matmul.layer].attention.head_dim
        name = f"{names[tensor.stem].format(i=tensor.layer)}.{tensor.part}"
        return Source(name, part=lambda stored: pairs_to_halves(stored, head_dim))

    return find


def transposed(source: Source) -> Source:
    """The same matrix, stored as (in, out)."""
    assert source.shape is not None and source.rows is None
    return Source(source.name, source.shape[::-1], part=np.transpose)


def gain_minus_one(names: NameTable) -> Find:
    """Gains of norms that are stored as gain - 1."""

    def find(tensor: Tensor, config: NetworkConfig) -> Source | None:
        if tensor.kind != "gain":
            return None
        return Source(f"{names[tensor.stem].format(i=tensor.layer)}.{tensor.part}", part=lambda gain: gain + 1)

    return find


def pairs_to_halves(tensor: FloatArray, head_dim: int) -> FloatArray:
    """Rows of q or k in pairs (j, j + head_dim / 2) -> in half-split order; (rows, columns), or (rows,) of a bias."""
    rows = tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:])  # (heads, pair, which half, columns)
    return rows.swapaxes(1, 2).reshape(tensor.shape)
