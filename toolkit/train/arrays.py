"""Arrays on the disk, whole or not at all: SIGKILL may come at any moment of a training."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from device_runtime.errors import ConfigurationError
from device_runtime.update import durable

__all__ = ["UNREADABLE", "kept_state", "read_state", "state_sha256", "write_arrays", "write_state"]

# What numpy raises of a file that is missing or damaged, or has no array of a name.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file in the place of the one before."""
    held = io.BytesIO()
    np.savez(held, **arrays)
    durable.replace_file(path, held.getvalue())


def write_state(path: Path, leaves: Sequence[Any], **counts: int) -> None:
    """Keep the leaves of a loop's state, and the numbers that say how far it is."""
    write_arrays(path, {**counts, **{_leaf(place): np.asarray(leaf) for place, leaf in enumerate(leaves)}})


def read_state(
    path: Path, like: Sequence[Any], counts: Sequence[str] = (), place: int = 0
) -> tuple[list[int], list[Any]] | None:
    """The numbers of `counts` and the leaves that `write_state` kept; None where they are of another form.

    Args:
        like: leaves of the shapes and types that are expected.
        place: of the first of them in the state.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    wanted = {**dict.fromkeys(counts, ()), **{_leaf(place + i): np.shape(leaf) for i, leaf in enumerate(like)}}
    try:
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in wanted if name in arrays}
    except UNREADABLE as error:
        raise _unreadable(path, str(error)) from None
    if {name: array.shape for name, array in found.items()} != wanted:
        return None
    numbers = [int(found.pop(name)) for name in counts]
    return numbers, [jnp.asarray(a, dtype=np.asarray(old).dtype) for a, old in zip(found.values(), like, strict=True)]


def state_sha256(path: Path) -> str:
    """The sha256 of a state, before work that ends with `read_state`.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as arrays:
            damaged = arrays.testzip()
    except UNREADABLE as error:
        raise _unreadable(path, str(error)) from None
    if damaged is not None:
        raise _unreadable(path, f"{damaged} is damaged")
    return hashlib.sha256(content).hexdigest()


def kept_state(path: Path, like: Sequence[Any], *counts: str) -> tuple[list[int], list[Any]] | None:
    """What a loop goes on from, as `read_state` has it; None also where nothing can be read: it begins at 0."""
    try:
        return read_state(path, like, counts)
    except ConfigurationError:
        return None


def _unreadable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be read ({why}); expected the state of a training.")


def _leaf(place: int) -> str:
    return f"l{place:03}"
