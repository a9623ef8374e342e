"""The model image of a `micro` graph."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.emit.c.calls import Buffer, Call
from converters.emit.c.constants import Constants
from converters.emit.c.image import SectionKind, write_image
from converters.emit.c.lowering.graph import Lowered, PrefixRows, lower
from converters.emit.c.plan import plan_arena
from converters.emit.tflite_read import TfliteFile
from device_runtime.errors import GraphError

__all__ = ["ModelImage", "self_test_section", "write_model_image"]

_GRAPH_VERSION = 1
_PREFIX_VERSION = 1
_SELF_TEST_VERSION = 1


@dataclass(frozen=True)
class ModelImage:
    """What was written, for reports and for tests."""

    calls: Sequence[Call]
    arena_bytes: int  # activations
    kv_bytes: int
    constant_bytes: int
    call_bytes: int
    buffers: Mapping[str, tuple[Buffer, int]]  # tensor of the graph -> where it lies in the arena


def write_model_image(graph: Path, path: Path, sections: Mapping[SectionKind, bytes] | None = None) -> ModelImage:
    """Make a model image of a .tflite file.

    Args:
        graph: of the profile `micro`.
        path: the image.
        sections: what else belongs into it: tokenizer, chat roles, schema, self-test.

    Raises:
        GraphError: the graph has something that the engine has no call for.
    """
    file = TfliteFile(graph)
    constants = Constants(path.parent)
    try:
        with file.damage_reported():
            subgraphs = list(file.subgraphs())
        if len(subgraphs) != 1:
            raise GraphError(f"{graph} has {len(subgraphs)} subgraphs; a micro graph has one.")
        lowered = lower(subgraphs[0], constants)
        offsets, arena_bytes = plan_arena(lowered.calls, [lowered.logits])
        calls = b"".join(call.encoded(offsets.__getitem__) for call in lowered.calls)
        with constants.mapped() as data:
            parts: dict[SectionKind, bytes | memoryview] = {**(sections or {})}
            parts[SectionKind.GRAPH] = _head(lowered, offsets[lowered.logits], arena_bytes) + calls
            parts[SectionKind.CONSTANTS] = memoryview(data)
            if lowered.prefix:
                parts[SectionKind.PREFIX] = _prefix_section(lowered.prefix)
            constant_bytes = len(data)
            write_image(path, parts)
            for part in parts.values():
                if isinstance(part, memoryview):
                    part.release()
    finally:
        constants.close()
    places = {name: (b, offsets[b]) for name, b in lowered.buffers.items() if b in offsets}
    return ModelImage(lowered.calls, arena_bytes, lowered.kv_bytes, constant_bytes, len(calls), places)


def self_test_section(tokens: Sequence[int], logits: Sequence[bytes]) -> bytes:
    """Tokens from the prefix on, and a digest of the stored logits after each."""
    digest = hashlib.sha256(b"".join(logits)).digest()
    return struct.pack(f"<{len(tokens) + 2}I", _SELF_TEST_VERSION, len(tokens), *tokens) + digest


def _head(lowered: Lowered, logits_at: int, arena_bytes: int) -> bytes:
    scale, zero_point = lowered.logits_grid
    bits = {"int8": 8, "int16": 16}[lowered.logits.type]
    return struct.pack(
        "<9IfiI",
        _GRAPH_VERSION,
        lowered.vocabulary,
        lowered.context,
        arena_bytes,
        lowered.kv_bytes,
        lowered.prefix_positions,
        len(lowered.calls),
        logits_at,
        bits,
        scale,
        zero_point,
        0,
    )


def _prefix_section(prefix: Sequence[PrefixRows]) -> bytes:
    """{version, records, 0, 0}, {offset, stride, rows, bytes of a row} for each, then the bytes of all."""
    records = b"".join(struct.pack("<4I", p.offset, p.stride, *p.rows.shape) for p in prefix)
    rows = b"".join(np.ascontiguousarray(p.rows).tobytes() for p in prefix)
    return struct.pack("<4I", _PREFIX_VERSION, len(prefix), 0, 0) + records + rows
