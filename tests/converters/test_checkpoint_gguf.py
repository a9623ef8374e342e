"""GGUF files give the tensors of the checkpoint that they were exported from."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.checkpoints.gguf import ENCODINGS
from converters.checkpoints.gguf_header import read_header
from converters.checkpoints.tensors import StoredTensor
from converters.network.config import NetworkConfig
from converters.network.tensors import tensors
from device_runtime.errors import ArchitectureError, CheckpointError
from tests.support.gguf_files import add_tokenizer, permuted, write_gguf

CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"


def export(path: Path, name: str = "gqa-tied", kind: Kind = Kind.F32, **options: Any) -> Path:
    """A checkpoint of tests/data as GGUF, every tensor as `kind` (norms as F32)."""
    folder = CHECKPOINTS / name

    def tokenizer(writer: gguf.GGUFWriter) -> None:
        add_tokenizer(writer, folder / "tokenizer.json", "smollm", {"bos": 0, "eos": 1})

    def kind_of(tensor: str) -> Kind:
        return Kind.F32 if "norm" in tensor or tensor.endswith("bias") else kind

    write_gguf(path, open_checkpoint(folder), kind_of, **{"base": 10000.0, "tokenizer": tokenizer} | options)
    return path


def worst_difference(one: Checkpoint, other: Checkpoint) -> float:
    """Largest difference of any tensor, as a part of that tensor's largest value."""
    worst = 0.0
    for tensor in tensors(other.config):
        expected = other.read(tensor.name)
        worst = max(worst, float(np.abs(one.read(tensor.name) - expected).max() / np.abs(expected).max()))
    return worst


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("gqa-tied", 0.005), ("llama3-rope", 0.0)],  # Q8_0: half of 1/127 of a block's largest value; BF16: none
)
def test_gguf_equals_the_folder_it_came_from(name: str, tolerance: float) -> None:
    gguf_file, folder = open_checkpoint(CHECKPOINTS / f"{name}.gguf"), open_checkpoint(CHECKPOINTS / name)
    assert worst_difference(gguf_file, folder) <= tolerance
    (ours,), (theirs,) = gguf_file.config.ropes, folder.config.ropes
    np.testing.assert_allclose(ours.frequencies, theirs.frequencies, rtol=1e-6)
    assert [comparable(c) for c in (gguf_file.config,)] == [comparable(folder.config)]
    assert (gguf_file.name, gguf_file.architecture) == (name, "llama")


def comparable(config: NetworkConfig) -> NetworkConfig:
    """Without what a GGUF file has in float32 only: RoPE's frequencies, and the last digits of an epsilon."""
    blocks = []
    for block in config.blocks:
        assert block.attention_norm is not None
        norm = replace(block.attention_norm, epsilon=round(block.attention_norm.epsilon, 9))
        attention = replace(block.attention, rope=None)
        blocks.append(replace(block, attention=attention, attention_norm=norm, ffn_norm=norm))
    assert config.head.norm is not None
    head = replace(config.head, norm=replace(config.head.norm, epsilon=round(config.head.norm.epsilon, 9)))
    return replace(config, blocks=tuple(blocks), head=head)


def test_q_and_k_come_back_in_half_split_order(tmp_path: Path) -> None:
    # `permuted` is llama.cpp's own; one head of four rows: (0, 1, 2, 3) is stored as (0, 2, 1, 3).
    assert permuted(np.arange(4)[:, None], 1).ravel().tolist() == [0, 2, 1, 3]
    checkpoint = open_checkpoint(export(tmp_path / "f32.gguf"))
    assert worst_difference(checkpoint, open_checkpoint(CHECKPOINTS / "gqa-tied")) == 0
    assert checkpoint.read("layers.0.k.weight").flags.c_contiguous


def test_biases_are_permuted_with_their_rows(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(export(tmp_path / "f32.gguf", "yarn-biases"))
    block = checkpoint.config.blocks[0]
    assert block.attention.bias and block.attention.output_bias and block.feed_forward.bias
    assert worst_difference(checkpoint, open_checkpoint(CHECKPOINTS / "yarn-biases")) == 0


@pytest.mark.parametrize(
    ("kind", "step"),  # distance of two neighbours in the encoding, as a part of the largest value
    [
        *[(Kind.F64, 0), (Kind.F32, 0), (Kind.F16, 2**-10), (Kind.BF16, 2**-7)],
        *[(Kind.Q8_0, 1 / 127), (Kind.Q5_0, 1 / 8), (Kind.Q4_1, 2 / 15)],
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_whole_files_in_one_encoding(tmp_path: Path, kind: Kind, step: float) -> None:
    checkpoint = open_checkpoint(export(tmp_path / "model.gguf", kind=kind))
    assert worst_difference(checkpoint, open_checkpoint(CHECKPOINTS / "gqa-tied")) <= step / 2 * 1.01


@pytest.mark.parametrize("kind", [Kind(number) for number in ENCODINGS], ids=lambda kind: kind.name)
def test_decoding_in_blocks_equals_decoding_at_once(tmp_path: Path, kind: Kind) -> None:
    encoding = ENCODINGS[kind]
    shape = (700, 768)  # two blocks of 2**18 values and part of a third
    raw = np.random.default_rng(int(kind)).integers(0, 120, encoding.bytes_of(shape), dtype=np.uint8)
    (tmp_path / "data").write_bytes(b"x" * 4100 + raw.tobytes())
    tensor = StoredTensor("t", shape, encoding, tmp_path / "data", 4100).read()
    with np.errstate(all="ignore"):
        if kind == Kind.F64:
            expected = raw.view("<f8").astype(np.float32).reshape(shape)
        else:
            expected = gguf.dequantize(raw.reshape(700, -1), kind)
        np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_1, Kind.Q6_K, Kind.IQ2_XXS], ids=lambda kind: kind.name)
def test_the_peak_is_the_result_and_one_block(tmp_path: Path, kind: Kind) -> None:
    encoding, shape = ENCODINGS[kind], (4096, 4096)  # 64 MiB as float32
    with (tmp_path / "data").open("wb") as file:
        file.truncate(encoding.bytes_of(shape))  # a hole: no disk is written
    tensor = StoredTensor("t", shape, encoding, tmp_path / "data", 0)
    tracemalloc.start()
    result = tensor.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < result.nbytes + 24 * 2**20


def test_every_type_that_the_package_decodes_is_known() -> None:
    assert {Kind(number).name for number in ENCODINGS} >= {
        *("F32", "F16", "BF16", "F64", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_XXS", "TQ1_0", "MXFP4"),
    }


def test_the_header_reader_agrees_with_the_package() -> None:
    path = CHECKPOINTS / "gqa-tied.gguf"
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == fields
    ours = [(t.name, t.shape, t.ggml_type, t.offset) for t in header.tensors]
    assert ours == [(t.name, tuple(t.shape.tolist())[::-1], t.tensor_type, t.data_offset) for t in reader.tensors]


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = export(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight \(layers\.1\.up\.weight\) is missing"):
        open_checkpoint(path)


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    path = export(tmp_path / "model.gguf", extra={"llama.test": 0})
    key = b"llama.feed_forward_length" + struct.pack("<I", 4)
    data = path.read_bytes().replace(key + struct.pack("<I", 96), key + struct.pack("<I", 95))
    path.write_bytes(data.replace(b"llama.test", b"other.test"))
    with pytest.raises(CheckpointError, match=r"ffn_gate.* has shape \(96, 64\), expected \(95, 64\)"):
        open_checkpoint(path)


@pytest.mark.parametrize("key", ["llama.attention.sliding_window", "llama.logit_scale", "llama.from_the_future"])
def test_a_key_that_would_be_ignored_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ArchitectureError, match=key):
        open_checkpoint(export(tmp_path / "model.gguf", extra={key: 7}))


def test_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="expert_count is 8"):
        open_checkpoint(export(tmp_path / "model.gguf", extra={"llama.expert_count": 8}))


def test_an_unknown_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    path = export(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(struct.pack("<Q5s", 5, b"llama"), struct.pack("<Q5s", 5, b"mamba"), 1))
    with pytest.raises(ArchitectureError, match=r"general\.architecture is 'mamba'; supported: .*llama"):
        open_checkpoint(path)


def test_an_unknown_tensor_type_is_named(tmp_path: Path) -> None:
    path = export(tmp_path / "model.gguf")
    entry = b"output_norm.weight" + struct.pack("<IQ", 1, 64)
    path.write_bytes(path.read_bytes().replace(entry + struct.pack("<I", 0), entry + struct.pack("<I", 99)))
    with pytest.raises(CheckpointError, match=r"output_norm\.weight has ggml type number 99; expected one of F32, F16"):
        open_checkpoint(path)


class TestASplitModel:
    """Parts as `llama-gguf-split` makes them: the metadata in the first, tensors in all."""

    def parts(self, folder: Path, count: int = 3) -> list[Path]:
        whole = folder / "whole.gguf"
        export(whole)
        header = read_header(whole)
        data = whole.read_bytes()
        shares = [header.tensors[i::count] for i in range(count)]
        paths = []
        for number, share in enumerate(shares):
            path = folder / f"toy-Q4_0-{number + 1:05d}-of-{count:05d}.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            for key, value in header.metadata.items() if number == 0 else ():
                if key != "general.architecture":
                    writer.add_key_value(key, value, *_kind_of(value))
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", count)
            writer.add_int32("split.tensors.count", len(header.tensors))
            for info in share:
                encoding = ENCODINGS[info.ggml_type]
                raw = np.frombuffer(data, np.uint8, encoding.bytes_of(info.shape), info.offset)
                rows = raw.reshape(*info.shape[:-1], -1)
                writer.add_tensor(info.name, rows, raw_dtype=gguf.GGMLQuantizationType(info.ggml_type))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            paths.append(path)
        return paths

    def test_its_parts_are_joined_whichever_is_named(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path)
        whole = open_checkpoint(tmp_path / "whole.gguf")
        for part in parts:
            joined = open_checkpoint(part)
            assert joined.config == whole.config or repr(joined.config) == repr(whole.config)
            assert joined.name == "toy"
            for name in ("embed.weight", "layers.1.q.weight", "final_norm.weight"):
                if whole.has(name):
                    assert (joined.read(name) == whole.read(name)).all()

    def test_a_missing_part_is_named(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path)
        parts[1].unlink()
        with pytest.raises(CheckpointError, match=r"one of 3 parts.*; toy-Q4_0-00002-of-00003\.gguf are missing"):
            open_checkpoint(parts[2])

    def test_parts_under_other_names_are_refused(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path)
        parts[0].rename(tmp_path / "x.gguf")
        with pytest.raises(CheckpointError, match=r"one of 3 parts.*; expected a name such as model-00001"):
            open_checkpoint(tmp_path / "x.gguf")
        parts[2].rename(parts[0])
        (tmp_path / "x.gguf").rename(parts[2])
        with pytest.raises(CheckpointError, match="says that it is part 3 of 3, expected 1 of 3"):
            open_checkpoint(parts[1])


def _kind_of(value: object) -> tuple:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        return kinds.ARRAY, _kind_of(value[0])[0]
    if isinstance(value, bool):
        return (kinds.BOOL,)
    return (kinds.STRING if isinstance(value, str) else kinds.FLOAT32 if isinstance(value, float) else kinds.INT32,)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.causal", True), ("pooling_type", 0), ("expert_shared_count", 0), ("attention.sliding_window", 0)],
)
def test_metadata_that_changes_nothing_is_no_obstacle(key: str, value: object, tmp_path: Path) -> None:
    open_checkpoint(export(tmp_path / "model.gguf", extra={f"llama.{key}": value}))
    other = not value if isinstance(value, bool) else 2
    with pytest.raises(ArchitectureError, match=key.replace(".", r"\.")):
        open_checkpoint(export(tmp_path / "other.gguf", extra={f"llama.{key}": other}))


def test_a_big_endian_file_is_not_sent_to_a_converter_that_ruins_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(60))
    with pytest.raises(CheckpointError, match="big-endian") as caught:
        open_checkpoint(path)
    assert "gguf-convert-endian" not in str(caught.value)


def test_a_git_lfs_pointer_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 91739456\n")
    with pytest.raises(CheckpointError, match=r"a git-lfs pointer, expected the file of 91739456 bytes.*git lfs pull"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\x7fELF" + bytes(60), "not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1; expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "entries are announced"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "entries are announced"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), r"general\.architecture is missing"),
    ],
)
def test_what_is_no_gguf_file_is_said_to_be_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.gguf")


def test_tensor_data_past_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((CHECKPOINTS / "gqa-tied.gguf").read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"cut short or damaged: 1\d+ bytes, but tensor \S+ ends at byte"):
        open_checkpoint(path)
