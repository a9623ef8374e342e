"""What is not supported is refused by name: what it is, which key says so, and what is supported. Never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_checkpoints import VARIANTS, write_folder
from family_gguf import write_family_gguf
from safetensors.numpy import load_file, save_file

from converters.architectures import FAMILIES
from converters.checkpoints import open_checkpoint
from device_runtime.errors import StonechatError
from tests.support.random_checkpoint import CHECKPOINTS

# name -> (config.json, what it is, the key that says so)
UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "Mixtral": (dict(model_type="mixtral", num_local_experts=8), "a mixture of experts: it has num_local_experts 8"),
    "Qwen3 MoE": (dict(model_type="qwen3_moe", num_experts=128), "a mixture of experts: it has num_experts 128"),
    "DeepSeek": (dict(model_type="deepseek_v3", n_routed_experts=256), "a mixture of experts: it has n_routed"),
    "Gemma 3 4B": (
        dict(model_type="gemma3", vision_config={"hidden_size": 1152}), "a model that sees pictures: it has vision"),
    "Phi-4 multimodal": (
        dict(model_type="phi4mm", audio_config={"a": 1}), "a model that listens: it has audio_config"),
    "Whisper": (dict(model_type="whisper", num_mel_bins=80), "a model that listens: it has num_mel_bins 80"),
    "Mamba": (dict(model_type="mamba", state_size=16), "a model with state-space layers: it has state_size 16"),
    "LFM2": (dict(model_type="lfm2", conv_L_cache=3), "a model with short convolutions: it has conv_L_cache 3"),
    "Qwen3.5": (
        dict(model_type="qwen3_5_text", linear_num_key_heads=16), "a model with linear attention: it has linear_num"),
    "Gemma 4 E2B": (
        dict(model_type="gemma4_text", hidden_size_per_layer_input=256),
        "a model with embeddings in every layer: it has hidden_size_per_layer_input 256"),
    "MiniCPM 3": (dict(model_type="minicpm3", kv_lora_rank=256), "a model with latent attention: it has kv_lora"),
}  # fmt: skip
# variant -> (changes of its config.json, message): what would change the network is named
CHANGED: list[tuple[str, dict[str, Any], str]] = [
    ("mistral", dict(hidden_act="gelu"), "hidden_act is gelu; the mistral network is described for silu only"),
    ("smollm3", dict(no_rope_layers=[1, 2, 1, 1]), "no_rope_layers is"),
    ("stablelm", dict(qk_layernorm=True), "qk_layernorm is True"),
    ("qwen2", dict(num_experts=60), "num_experts is 60"),
    ("phi3", dict(rope_scaling=dict(type="yarn2")), "rope_type yarn2 is not supported"),
    ("phi", dict(qk_layernorm=True), "qk_layernorm is True"),
    ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
    ("gemma2", dict(layer_types=["sliding_attention", "chunked_attention"]), "layer_types is chunked_attention"),
    ("granite", dict(position_embedding_type="alibi"), "position_embedding_type is alibi"),
    ("granite4", dict(layer_types=["mamba", "attention"]), "layer_types is mamba; .* attention in every layer"),
    ("granite4", dict(num_local_experts=64), "num_local_experts is 64"),
    ("opt", dict(do_layer_norm_before=False), "do_layer_norm_before is False"),
    ("opt", dict(word_embed_proj_dim=32), "word_embed_proj_dim is 32"),
    ("qwen3", dict(quantization_config={"bits": 4}), "quantization_config is"),
    ("qwen3", dict(num_key_value_heads=3), "number of key-value heads is 3"),
]


def refusal(path: Path) -> str:
    with pytest.raises(StonechatError) as error:
        open_checkpoint(path)
    return str(error.value)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_model_of_another_kind_is_named_with_what_is_supported(name: str, tmp_path: Path) -> None:
    config, kind = UNKNOWN[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = refusal(tmp_path)
    assert f"model_type is '{config['model_type']}' ({kind}" in message
    assert all(f.huggingface is None or f.huggingface.model_type in message for f in FAMILIES.values())
    assert "stonechat families" in message


@pytest.mark.parametrize(
    ("architecture", "keys", "kind"),
    [
        ("qwen3moe", {"expert_count": 128}, "a mixture of experts: it has expert_count 128"),
        ("mamba", {"ssm.state_size": 16}, "a model with state-space layers: it has ssm.state_size 16"),
        ("lfm2", {"shortconv.l_cache": 3}, "a model with short convolutions: it has shortconv.l_cache 3"),
        ("clip", {"has_vision_encoder": 1}, "a model that sees pictures: it has has_vision_encoder 1"),
    ],
)
def test_a_gguf_file_of_another_kind_is_named(
    architecture: str, keys: dict[str, int], kind: str, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert f"general.architecture is '{architecture}' ({kind})" in refusal(tmp_path / "model.gguf")


@pytest.mark.parametrize(("variant", "changes", "message"), CHANGED)
def test_a_key_that_would_change_the_network_is_named(
    variant: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "m", variant)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    if "rope_scaling" in changes:
        del config["rope_parameters"]
    path.write_text(json.dumps(config))
    with pytest.raises(StonechatError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "logits_of" not in VARIANTS[name]])
def test_a_missing_tensor_and_one_too_many_are_named(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", name)
    tensors = load_file(folder / "model.safetensors")
    missing = sorted(tensors)[len(tensors) // 2]
    rest = {key: values for key, values in tensors.items() if key != missing}
    save_file(rest, folder / "model.safetensors")
    short = missing.removeprefix("transformer.").removeprefix("model.decoder.")
    if "lm_head" not in short:
        assert f"tensor {short} (" in refusal(folder)
    save_file(
        tensors | {"model.layers.0.mlp.experts.0.w1.weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors"
    )
    assert "tensors without a place in the network: model.layers.0.mlp.experts.0.w1.weight" in refusal(folder)


def test_the_command_prints_the_refusal_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNKNOWN["Mixtral"][0]))
    command = [sys.executable, "-m", "toolkit", "convert", str(tmp_path), "--profile", "pi", "-o", str(tmp_path / "b")]
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    error = json.loads(run.stdout)["error"]
    assert run.returncode == 1 and error["code"] == "architecture" and "mixture of experts" in error["message"]
    assert "Traceback" not in run.stderr and not (tmp_path / "b").exists()


def test_mistral_in_a_gguf_file_comes_with_a_word_about_its_window(tmp_path: Path) -> None:
    path = write_family_gguf(tmp_path / "m.gguf", "llama", name="Mistral 7B v0.1")
    assert any("sliding window of 4,096" in note for note in open_checkpoint(path).tokenizer.notes)
    assert not open_checkpoint(write_family_gguf(path, "llama")).tokenizer.notes


def test_an_encoder_in_the_place_of_a_decoder_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / "gqa-tied", tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert "'LlamaForSequenceClassification'; supported: LlamaForCausalLM" in refusal(folder)
