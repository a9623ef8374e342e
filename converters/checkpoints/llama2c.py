"""Checkpoints of llama2.c: one .bin file, and tokenizer.bin beside it.

Three layouts, as llama2.c's export.py writes them: the first one without a magic number (28 bytes of header, tensors by
kind, RoPE tables in between), version 1 (256 bytes of header, float32) and version 2 (the same header, int8 in groups
with a float32 scale each). Rows of q and k are pairs that turn together, side by side, as in GGUF.

Groups run through a tensor from its first value to its last. One that does not divide the feed-forward width goes on
from one row to the next; llama2.c's own runtime computes such files wrongly, and here they are read as they are.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.architectures import llama
from converters.checkpoints import Checkpoint, TokenizerFile
from converters.checkpoints.llama2c_tokenizer import read_tokenizer
from converters.checkpoints.tensors import FloatArray, sha256_of
from converters.network.config import Rope
from converters.network.rope import default
from converters.network.tensors import Role
from converters.network.tensors import tensors as tensors_of
from device_runtime.errors import CheckpointError

__all__ = ["open_llama2c"]

_MAGIC = 0x616B3432  # "ak42"
_LEGACY = struct.Struct("<7i")
_HEADER_BYTES = 256  # of versions 1 and 2
_ROPE_BASE = 10_000.0
_NORM_EPSILON = 1e-5
_MOST = 1 << 24  # of any size in a header


@dataclass(frozen=True)
class _Header:
    width: int
    ffn_width: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    tied_head: bool
    version: int  # 0: without a magic number
    group: int  # values that share a scale; version 2
    size: int  # bytes of the header

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies: float32, or int8 followed by the scales of its groups."""

    shape: tuple[int, ...]
    offset: int
    group: int = 0

    @property
    def size(self) -> int:
        count = math.prod(self.shape)
        return count + 4 * (count // self.group) if self.group else 4 * count

    def read(self, path: Path) -> FloatArray:
        """A fresh float32 array."""
        count = math.prod(self.shape)
        if not self.group:
            return np.fromfile(path, "<f4", count, offset=self.offset).astype(np.float32).reshape(self.shape)
        values = np.fromfile(path, np.int8, count, offset=self.offset).reshape(-1, self.group)
        scales = np.fromfile(path, "<f4", count // self.group, offset=self.offset + count)
        return np.asarray(values * scales[:, None], np.float32).reshape(self.shape)


def open_llama2c(path: Path) -> Checkpoint:
    """Open a .bin file of llama2.c.

    Raises:
        CheckpointError: it is cut short or no checkpoint of llama2.c, or its tokenizer is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        file_bytes = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error
    header = _read_header(path, start)
    tensors, end = _layout(header)
    if file_bytes != end:
        raise CheckpointError(
            f"{path}: has {file_bytes:,} bytes, and its header announces {end:,}. It is cut short, "
            "or no checkpoint of llama2.c: fetch it again."
        )
    config = llama.network(
        vocabulary=header.vocabulary,
        width=header.width,
        layers=header.layers,
        heads=header.heads,
        kv_heads=header.kv_heads,
        head_dim=header.head_dim,
        ffn_width=header.ffn_width,
        norm_epsilon=_NORM_EPSILON,
        rope=Rope(tuple(default(header.head_dim, _ROPE_BASE).tolist())),
        max_context=header.context,
        tied_head=header.tied_head,
    )

    in_pairs = {t.name for t in tensors_of(config) if t.matmul is not None and t.matmul.role in (Role.Q, Role.K)}

    def read(name: str) -> FloatArray:
        values = tensors[name].read(path)
        return np.ascontiguousarray(llama.pairs_to_halves(values, header.head_dim) if name in in_pairs else values)

    tokenizer: TokenizerFile = read_tokenizer(path, header.vocabulary)
    return Checkpoint(path.stem, llama.NAME, config, tokenizer, sha256_of([path]), read)


def _read_header(path: Path, start: bytes) -> _Header:
    if len(start) < _LEGACY.size:
        raise CheckpointError(f"{path}: has {len(start)} bytes; expected a checkpoint of llama2.c. Fetch it again.")
    magic, version = struct.unpack_from("<Ii", start)
    if magic != _MAGIC:
        version, size, group = 0, _LEGACY.size, 0
        sizes = _LEGACY.unpack_from(start)
        tied = sizes[5] > 0  # a negative vocabulary says that the head has rows of its own
        sizes = (*sizes[:5], abs(sizes[5]), sizes[6])
    else:
        if version not in (1, 2) or len(start) < _HEADER_BYTES:
            raise CheckpointError(
                f"{path}: llama2.c checkpoint of version {version}; expected 1, 2, or the legacy one."
            )
        sizes = _LEGACY.unpack_from(start, 8)
        tied, size = bool(start[36]), _HEADER_BYTES
        group = struct.unpack_from("<i", start, 37)[0] if version == 2 else 0
        if version == 2 and group <= 0:
            raise CheckpointError(f"{path}: damaged header: groups of {group} values. Fetch the file again.")
    width, ffn_width, layers, heads, kv_heads, vocabulary, context = sizes
    if version == 2 and any(width * rows % group for rows in (vocabulary, width, width * kv_heads // heads, ffn_width)):
        raise CheckpointError(
            f"{path}: groups of {group} values do not divide its tensors of width {width} and feed-forward width "
            f"{ffn_width}; expected a divisor. No runtime can read it: export it again with another group size."
        )
    if not all(0 < n <= _MOST for n in sizes) or width % heads or heads % kv_heads or width // heads % 2:
        raise CheckpointError(
            f"{path}: its header announces width, feed-forward width, layers, heads, key heads, vocabulary and context "
            f"{list(sizes)}, which no network has. It is no checkpoint of llama2.c, or damaged: fetch it again."
        )
    return _Header(width, ffn_width, layers, heads, kv_heads, vocabulary, context, tied, version, group, size)


def _layout(h: _Header) -> tuple[dict[str, _Stored], int]:
    """Every tensor by canonical name, and the bytes of the whole file."""
    tensors: dict[str, _Stored] = {}
    kv_width = h.kv_heads * h.head_dim
    norms, matrices = {"attention_norm": (h.width,), "ffn_norm": (h.width,)}, {
        "q": (h.width, h.width), "k": (kv_width, h.width), "v": (kv_width, h.width), "o": (h.width, h.width),
        "gate": (h.ffn_width, h.width), "down": (h.width, h.ffn_width), "up": (h.ffn_width, h.width),
    }  # fmt: skip
    embedding, head = (h.vocabulary, h.width), [] if h.tied_head else ["head"]
    if h.version:
        order = [*norms, "final_norm", "embed", *matrices, *head]
    else:
        order = ["embed", "attention_norm", "q", "k", "v", "o", "ffn_norm", "gate", "down", "up", "final_norm", "rope"]
        order += head
    at = h.size
    for kind in order:
        if kind == "rope":  # cos and sin, which follow from the header
            at += 4 * h.context * h.head_dim
            continue
        shape = {"embed": embedding, "head": embedding, "final_norm": (h.width,)}.get(kind)
        of_layer = shape is None
        shape = shape or norms.get(kind) or matrices[kind]
        for i in range(h.layers if of_layer else 1):
            stored = _Stored(shape, at, h.group if len(shape) > 1 else 0)
            tensors[f"layers.{i}.{kind}.weight" if of_layer else f"{kind}.weight"] = stored
            at += stored.size
    return tensors, at
