"""Adapters of PEFT: the merged checkpoint gives the logits that PEFT gives with the adapter beside its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_checkpoints import COLUMNS, DATA, golden, write_folder
from family_gguf import write_family_gguf
from safetensors.numpy import load_file, save_file

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.checkpoints.lora import merge_adapter
from device_runtime.errors import StonechatError
from tests.support.random_checkpoint import float_logits

ADAPTERS = DATA / "adapters"
BASES = {
    "plain": "llama", "rslora": "llama", "patterns": "qwen2", "dora": "llama", "modules-to-save": "llama",
    "tied-head": "qwen2", "tied-embedding": "qwen2", "tied-saved": "qwen2", "fused": "phi3", "conv1d": "gpt2",
    "conv1d-dora": "gpt2", "neox": "gpt_neox",
}  # fmt: skip


def logits(checkpoint: Checkpoint, base: str) -> np.ndarray:
    return float_logits(checkpoint, [], golden(base)[0])[:, ::COLUMNS]


def test_there_is_a_base_for_every_adapter() -> None:
    assert BASES.keys() == {path.name for path in ADAPTERS.iterdir() if path.is_dir()}


@pytest.mark.parametrize("form", ["folder", "gguf"])
@pytest.mark.parametrize("name", BASES)
def test_logits_are_those_of_peft(name: str, form: str, tmp_path: Path) -> None:
    """Also where PEFT itself, merging a tied embedding, gives others than those that it was trained for."""
    base = BASES[name]
    path = write_folder(tmp_path / "m", base) if form == "folder" else write_family_gguf(tmp_path / "m.gguf", base)
    merged = merge_adapter(open_checkpoint(path), ADAPTERS / name)
    with np.load(ADAPTERS / "logits.npz") as file:
        expected = file[name]
    np.testing.assert_allclose(logits(merged, base), expected, atol=1e-3)
    assert np.abs(expected - golden(base)[1]).max() > 0.5  # the adapter does something
    assert merged.sha256 != open_checkpoint(path).sha256


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ADAPTERS / "plain", tmp_path / "adapter"))


def change(adapter: Path, **keys: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; adapters are merged with 'LORA' only"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is 'True'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base model's weights"),
        ({"use_dora": True}, "use_dora is True, and module .* has no magnitude"),
        ({"r": 3}, "factors of rank 2, and adapter_config.json says 3"),
        ({"rank_pattern": {"v_proj": "two"}}, "rank_pattern has 'two' for v_proj; expected a number"),
        ({"lora_alpha": "four"}, "lora_alpha is 'four'; expected a number"),
    ],
)
def test_what_would_be_merged_wrongly_is_refused(
    keys: dict[str, Any], message: str, adapter: Path, tmp_path: Path
) -> None:
    change(adapter, **keys)
    with pytest.raises(StonechatError, match=message):
        merge_adapter(open_checkpoint(write_folder(tmp_path / "m", "llama")), adapter)


@pytest.mark.parametrize("name", ["conv1d", "conv1d-dora"])
def test_the_family_says_how_a_matrix_lies_not_the_flag_of_the_module_that_came_last(name: str, tmp_path: Path) -> None:
    """PEFT writes the flag of whichever module it visited last: false where a head was among GPT-2's modules."""
    adapter = Path(shutil.copytree(ADAPTERS / name, tmp_path / "adapter"))
    change(adapter, fan_in_fan_out=False)
    merged = merge_adapter(open_checkpoint(write_folder(tmp_path / "m", "gpt2")), adapter)
    with np.load(ADAPTERS / "logits.npz") as file:
        np.testing.assert_allclose(logits(merged, "gpt2"), file[name], atol=1e-3)


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    gpt2 = open_checkpoint(write_folder(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(StonechatError, match=r"changes what the network of gpt2 does not have: model\.layers\.0"):
        merge_adapter(gpt2, adapter)
    merged = merge_adapter(open_checkpoint(write_folder(tmp_path / "wide", "mistral")), adapter)
    with pytest.raises(StonechatError, match=r"the adapter has shape \(48, 48\), and wide has \(64, 48\)"):
        merged.read("layers.0.q.weight")


def test_a_row_of_zeros_has_no_direction_for_dora(tmp_path: Path) -> None:
    """PEFT divides by its length and gives NaN."""
    folder = write_folder(tmp_path / "m", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][3] = 0
    save_file(weights, folder / "model.safetensors")
    adapter = Path(shutil.copytree(ADAPTERS / "dora", tmp_path / "adapter"))
    factors = load_file(adapter / "adapter_model.safetensors")
    factors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][3] = 0
    save_file(factors, adapter / "adapter_model.safetensors")
    merged = merge_adapter(open_checkpoint(folder), adapter)
    with pytest.raises(StonechatError, match=r"row 3 of layers\.0\.q\.weight is zero"):
        merged.read("layers.0.q.weight")


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", "llama"))
    with pytest.raises(StonechatError, match=r"has no adapter_config\.json; expected the folder of an adapter"):
        merge_adapter(checkpoint, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(StonechatError, match=r"has no adapter_model\.safetensors"):
        merge_adapter(checkpoint, tmp_path)
