"""Hugging Face folders are read value for value, and what is wrong with one is said by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from converters.architectures import llama
from converters.checkpoints import finite_weights, open_checkpoint
from converters.checkpoints.huggingface import read_safetensors
from converters.convert import Options, convert
from converters.network.tensors import tensors
from device_runtime.errors import ArchitectureError, CheckpointError, ConfigurationError

CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"
FOLDERS = sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir())


def values_of(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor as the safetensors package's own parser finds it."""
    values = {}
    for path in folder.glob("*.safetensors"):
        for name, entry in safetensors.deserialize(path.read_bytes()):
            raw = np.frombuffer(entry["data"], dtype=np.uint8)
            if entry["dtype"] == "BF16":
                halves = np.zeros((raw.size // 2, 4), dtype=np.uint8)
                halves[:, 2:] = raw.reshape(-1, 2)
                numbers = halves.reshape(-1).view("<f4")
            else:
                numbers = raw.view({"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
            values[name] = numbers.reshape(entry["shape"])
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint with changed keys in one of its JSON files."""

    def copy(name: str = "gqa-tied", file: str = "config.json", **changes: Any) -> Path:
        target = tmp_path / name
        shutil.copytree(CHECKPOINTS / name, target)
        document = json.loads((target / file).read_text()) | changes
        (target / file).write_text(json.dumps({k: v for k, v in document.items() if v != "absent"}))
        return target

    return copy


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tensor_equals_its_source(name: str) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    source = values_of(CHECKPOINTS / name)
    form = llama.FAMILY.huggingface
    assert form is not None
    for known in tensors(checkpoint.config):
        tensor = checkpoint.read(known.name)
        assert tensor.shape == known.shape and tensor.dtype == np.float32
        assert tensor.flags.c_contiguous and tensor.flags.writeable
        np.testing.assert_array_equal(tensor, source.pop(form.named(known)))
    assert not source


def test_reading_twice_gives_two_arrays() -> None:
    checkpoint = open_checkpoint(CHECKPOINTS / "gqa-tied")
    first = checkpoint.read("final_norm.weight")
    first[:] = 0
    assert checkpoint.read("final_norm.weight").any()


def test_the_configuration_is_mapped() -> None:
    checkpoint = open_checkpoint(CHECKPOINTS / "yarn-biases")
    config = checkpoint.config
    assert (checkpoint.name, checkpoint.architecture) == ("yarn-biases", "llama")
    attention = config.blocks[1].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim, config.width) == (2, 1, 48, 64)
    assert attention.bias and attention.output_bias and config.blocks[1].feed_forward.bias and config.head.tied
    assert config.max_context == 256 and [len(rope.frequencies) for rope in config.ropes] == [24]
    assert checkpoint.has("layers.1.o.bias") and not checkpoint.has("head.weight")


def test_the_digest_is_of_the_weights_and_of_all_of_them() -> None:
    # sha256sum of the one file; `sha256sum *.safetensors | sha256sum` of two.
    import hashlib

    one = CHECKPOINTS / "gqa-tied"
    assert open_checkpoint(one).sha256 == hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    two = CHECKPOINTS / "mha-untied-sharded"
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(two.glob("*.safetensors"))]
    assert open_checkpoint(two).sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_double_precision_is_read(folder: Callable[..., Path]) -> None:
    path = folder()
    source = {name: value.astype(np.float64) for name, value in values_of(path).items()}
    save_file(source, path / "model.safetensors")
    np.testing.assert_array_equal(open_checkpoint(path).read("embed.weight"), source["model.embed_tokens.weight"])


def test_a_missing_tensor_is_named(folder: Callable[..., Path]) -> None:
    path = folder()
    source = values_of(path)
    del source["model.layers.1.mlp.up_proj.weight"]
    save_file(source, path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight \(layers\.1\.up\.weight\) is missing"
    ):
        open_checkpoint(path)


def test_a_wrong_shape_is_named_with_both_shapes(folder: Callable[..., Path]) -> None:
    path = folder(intermediate_size=95)
    with pytest.raises(CheckpointError, match=r"gate_proj.* has shape \(96, 64\), expected \(95, 64\)"):
        open_checkpoint(path)


def test_a_tensor_without_a_place_is_refused(folder: Callable[..., Path]) -> None:
    path = folder()
    save_file(values_of(path) | {"model.layers.0.self_attn.sinks": np.ones(4, np.float32)}, path / "model.safetensors")
    with pytest.raises(ArchitectureError, match=r"without a place in the network: model\.layers\.0\.self_attn\.sinks"):
        open_checkpoint(path)


def test_fewer_layers_than_the_file_has_are_refused(folder: Callable[..., Path]) -> None:
    with pytest.raises(ArchitectureError, match=r"model\.layers\.1\."):
        open_checkpoint(folder(num_hidden_layers=1))


def test_a_tied_head_may_be_stored_again_but_not_differ(folder: Callable[..., Path]) -> None:
    path = folder()
    source = values_of(path)
    embedding = source["model.embed_tokens.weight"]
    save_file(source | {"lm_head.weight": embedding}, path / "model.safetensors")
    assert open_checkpoint(path).config.head.tied
    save_file(source | {"lm_head.weight": embedding + 1}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        open_checkpoint(path)


def test_a_missing_shard_is_named(folder: Callable[..., Path]) -> None:
    path = folder("mha-untied-sharded")
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00002\.safetensors is missing; the index places 10 tensors"
    ):
        open_checkpoint(path)


class TestAnIndexBesideAWholeFile:
    def test_what_is_left_over_is_not_read(self, folder: Callable[..., Path]) -> None:
        """The index of an earlier save names files that are gone; transformers takes the whole file."""
        path = folder()
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        checkpoint = open_checkpoint(path)
        assert checkpoint.sha256 == open_checkpoint(CHECKPOINTS / "gqa-tied").sha256
        assert "model.safetensors.index.json is not read" in checkpoint.tokenizer.notes[0]

    @pytest.mark.parametrize("left_over", ["another model", "cut short", "nothing"])
    def test_a_whole_file_that_does_not_fit_gives_way_to_the_index(
        self, left_over: str, folder: Callable[..., Path]
    ) -> None:
        path = folder("mha-untied-sharded")
        other = (CHECKPOINTS / "gqa-tied" / "model.safetensors").read_bytes()
        data = {"another model": other, "cut short": other[:-9], "nothing": b""}[left_over]
        (path / "model.safetensors").write_bytes(data)
        checkpoint = open_checkpoint(path)
        assert checkpoint.sha256 == open_checkpoint(CHECKPOINTS / "mha-untied-sharded").sha256
        assert "model.safetensors is not read: it does not fit" in checkpoint.tokenizer.notes[0]

    def test_where_neither_fits_the_whole_file_is_named(self, folder: Callable[..., Path]) -> None:
        path = folder("mha-untied-sharded")
        (path / "model.safetensors").write_bytes(b"")
        (path / "model-00001-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cut short"):
            open_checkpoint(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(value: float, folder: Callable[..., Path]) -> None:
    path = folder()
    file = path / "model.safetensors"
    tensor = next(t for t in read_safetensors(file) if t.name.endswith("layers.1.mlp.up_proj.weight"))
    raw = {"F32": np.float32(value).tobytes(), "F16": np.float16(value).tobytes()}.get(tensor.encoding.name)
    raw = raw or np.float32(value).tobytes()[2:]  # BF16
    data = bytearray(file.read_bytes())
    at = tensor.offset + 3 * tensor.encoding.size
    data[at : at + len(raw)] = raw
    file.write_bytes(data)
    checkpoint = finite_weights(open_checkpoint(path))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* has 1 of .* \[0, 3\]"):
        checkpoint.read("layers.1.up.weight")
    with pytest.raises(CheckpointError, match=r"up_proj"):
        convert(open_checkpoint(path), path.parent / "bundle", Options("pi", 64, fast=True))
    assert checkpoint.read("layers.0.up.weight").size


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_told_from_a_damaged_file(file: str, folder: Callable[..., Path]) -> None:
    path = folder()
    (path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 2104556\n")
    with pytest.raises(CheckpointError, match=rf"{file}: a git-lfs pointer, expected the file of 2104556 bytes"):
        open_checkpoint(path)


def test_an_index_cannot_point_outside_the_folder(folder: Callable[..., Path]) -> None:
    path = folder("mha-untied-sharded", "model.safetensors.index.json", weight_map={"a": "../other.safetensors"})
    with pytest.raises(CheckpointError, match="expected one in the same folder"):
        open_checkpoint(path)


def test_a_truncated_file_says_what_is_cut(folder: Callable[..., Path]) -> None:
    path = folder()
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(
        CheckpointError, match=rf"cut short: {len(data) - 100} bytes, but tensor .* ends at byte {len(data)}"
    ):
        open_checkpoint(path)


def test_a_file_that_shrinks_after_opening_is_an_error_of_ours(folder: Callable[..., Path]) -> None:
    path = folder()
    checkpoint = open_checkpoint(path)
    (path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        checkpoint.read("embed.weight")


def test_integer_weights_are_refused(folder: Callable[..., Path]) -> None:
    path = folder()
    save_file(values_of(path) | {"model.norm.weight": np.ones(64, np.int8)}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"dtype 'I8'; expected one of F64, F32, F16, BF16"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "[]", "holds a list, expected an object"),
        ("config.json", "[" * 100_000, "config.json: not JSON"),
        ("tokenizer.json", "{}", "tokenizer.json: damaged"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is no text"),
        ("generation_config.json", "nonsense", "generation_config.json: not JSON"),
    ],
)
def test_malformed_json_is_named(folder: Callable[..., Path], file: str, content: str, message: str) -> None:
    path = folder()
    (path / file).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    shutil.copy(CHECKPOINTS / "gqa-tied.gguf", tmp_path)
    with pytest.raises(CheckpointError, match=r"Name the GGUF file in it: .*gqa-tied\.gguf"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="Name the folder"):
        open_checkpoint(CHECKPOINTS / "gqa-tied" / "model.safetensors")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "converters.checkpoints.gguf", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigurationError, match=r"needs the package 'gguf'.*pip install '\.\[convert\]'"):
        open_checkpoint(CHECKPOINTS / "gqa-tied.gguf")


def test_pickled_weights_get_advice(folder: Callable[..., Path]) -> None:
    path = folder()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safe_serialization"):
        open_checkpoint(path)
