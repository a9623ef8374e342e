"""Files of llama2.c in its three layouts give the weights that they were written with."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.network.tensors import tensors
from device_runtime.errors import CheckpointError
from tests.support.gguf_files import permuted
from tests.support.random_checkpoint import float_logits, random_checkpoint

LETTERS = [chr(0x4E00 + i) for i in range(384 - 259)]
TOKENS = [1, 300, 12, 270, 5, 301]


@pytest.fixture
def source() -> Checkpoint:
    """A network whose RoPE has llama2.c's base."""
    frequencies = tuple((10000.0 ** -(np.arange(0, 8, 2) / 8)).tolist())
    checkpoint = random_checkpoint(ffn_width=40, max_context=32)
    block = checkpoint.config.blocks[0]

    attention = replace(block.attention, rope=replace(block.attention.rope, frequencies=frequencies))  # type: ignore[type-var]
    return replace(checkpoint, config=replace(checkpoint.config, blocks=(replace(block, attention=attention),) * 2))


def write_tokenizer(path: Path) -> None:
    """384 tokens, as tokenizer.py of llama2.c exports them."""
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), *LETTERS]
    content = b"".join(struct.pack("<fi", -i, len(t.encode())) + t.encode() for i, t in enumerate(texts))
    path.write_bytes(struct.pack("<I", 8) + content)


def stored(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Canonical tensors with the rows of q and k in pairs."""
    found = {tensor.name: checkpoint.read(tensor.name) for tensor in tensors(checkpoint.config)}
    for i, block in enumerate(checkpoint.config.blocks):
        for role, heads in (("q", block.attention.heads), ("k", block.attention.kv_heads)):
            found[f"layers.{i}.{role}.weight"] = permuted(found[f"layers.{i}.{role}.weight"], heads)
    return found


def quantized(values: np.ndarray, group: int) -> bytes:
    """As `quantize_q80` and the export have it: all values, then all scales."""
    groups = values.reshape(-1, group)
    scales = np.abs(groups).max(axis=1, keepdims=True) / 127
    return np.rint(groups / scales).astype(np.int8).tobytes() + scales.astype("<f4").tobytes()


def write(path: Path, checkpoint: Checkpoint, version: int, group: int = 8) -> Path:
    weights, config, block = stored(checkpoint), checkpoint.config, checkpoint.config.blocks[0]
    sizes = struct.pack(
        "<7i", config.width, block.feed_forward.width, config.layers, block.attention.heads, block.attention.kv_heads,
        config.vocabulary, config.max_context,
    )  # fmt: skip

    def all_of(kind: str) -> list[np.ndarray]:
        return [weights[f"layers.{i}.{kind}.weight"] for i in range(config.layers)]

    norms = [*all_of("attention_norm"), *all_of("ffn_norm"), weights["final_norm.weight"]]
    kinds = ("q", "k", "v", "o", "gate", "down", "up")
    matrices = [weights["embed.weight"], *(tensor for kind in kinds for tensor in all_of(kind))]
    if version == 0:
        tables = np.zeros(config.max_context * block.attention.head_dim, np.float32)
        order = [weights["embed.weight"], *all_of("attention_norm")]
        order += [tensor for kind in ("q", "k", "v", "o") for tensor in all_of(kind)] + all_of("ffn_norm")
        order += [tensor for kind in ("gate", "down", "up") for tensor in all_of(kind)]
        order += [weights["final_norm.weight"], tables]
        path.write_bytes(sizes + b"".join(tensor.astype("<f4").tobytes() for tensor in order))
    else:
        header = struct.pack("<Ii", 0x616B3432, version) + sizes + b"\1"
        header += struct.pack("<i", group) if version == 2 else b""
        body = b"".join(norm.astype("<f4").tobytes() for norm in norms)
        for tensor in matrices:
            body += tensor.astype("<f4").tobytes() if version == 1 else quantized(tensor, group)
        path.write_bytes(header.ljust(256, b"\0") + body)
    write_tokenizer(path.with_name("tokenizer.bin"))
    return path


@pytest.mark.parametrize("version", [0, 1])
def test_float_files_give_the_same_logits(version: int, source: Checkpoint, tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path / "model.bin", source, version))
    assert found.config == source.config
    np.testing.assert_array_equal(float_logits(found, [], TOKENS), float_logits(source, [], TOKENS))
    assert found.tokenizer.bos_id == 1 and found.tokenizer.eos_ids == (2,)


@pytest.mark.parametrize("group", [8, 4, 16])
def test_int8_files_give_what_was_rounded(group: int, source: Checkpoint, tmp_path: Path) -> None:
    """Groups of 16 do not divide the feed-forward width of 40: they go on in the next row."""
    found = open_checkpoint(write(tmp_path / "model.bin", source, 2, group))
    for tensor in tensors(source.config):
        expected, values = source.read(tensor.name), found.read(tensor.name)
        most = 0 if expected.ndim == 1 else np.abs(expected).max() / 127 / 2 * 1.001  # half a step of the largest group
        np.testing.assert_allclose(values, expected, atol=most)


def test_what_no_group_divides_and_a_short_file_are_refused(source: Checkpoint, tmp_path: Path) -> None:
    path = write(tmp_path / "model.bin", source, 2)
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, 37, 7)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="groups of 7 values do not divide its tensors of width 32"):
        open_checkpoint(path)
    write(path, source, 1)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"has .* bytes, and its header announces"):
        open_checkpoint(path)
    struct.pack_into("<i", data, 4, 3)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="version 3; expected 1, 2, or the legacy one"):
        open_checkpoint(path)
