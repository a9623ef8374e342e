"""Keys and values of a bundle's prefix."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import BundleError

__all__ = ["read_prefix"]


def read_prefix(bundle: Bundle) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Keys and values of the prefix of a `pi` bundle, as its graph stores them, (layers, positions, kv_heads,
    head_dim) each.

    Raises:
        BundleError: they are not there, or of another shape than the manifest says.
    """
    graph = bundle.manifest.graph
    expected = (graph.layers, len(bundle.manifest.prefix_tokens), graph.kv_heads, graph.head_dim)
    dtype = np.dtype(graph.cache_type)
    try:
        with zipfile.ZipFile(bundle.prefix_path) as archive:
            keys, values = (_read_array(archive, name, expected, dtype) for name in ("k", "v"))
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.prefix_path}: {error}. Convert the checkpoint again.") from None
    return keys, values


def _read_array(
    archive: zipfile.ZipFile, name: str, expected: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """An array of an .npz file, as `np.load` reads it, but never more of it than there is on the disk.

    Raises:
        ValueError: it is compressed, or of another type or shape.
    """
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed; expected it as `stonechat convert` writes it")
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, found = read_header(stream)
        if shape != expected or found != dtype or fortran_order:
            raise ValueError(f"{name} is {found} {shape}; the manifest says {dtype} {expected}")
        size = int(np.prod(expected)) * dtype.itemsize
        data = stream.read(size) if size <= entry.file_size else b""
        if len(data) != size:
            raise ValueError(f"{name} has {len(data)} bytes, expected {size}")
        return np.frombuffer(data, dtype).reshape(expected)
