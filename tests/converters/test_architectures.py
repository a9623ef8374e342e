"""Families map their configurations, and refuse by name what the network would leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.architectures import FAMILIES, family_of_huggingface, llama
from converters.checkpoints.fields import Fields
from converters.network import rope
from device_runtime.errors import ArchitectureError, CheckpointError

DATA = Path(__file__).parent.parent / "data"
ROPES = json.loads((DATA / "rope.json").read_text())
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def config(**changes: Any) -> Fields:
    return Fields(LLAMA | changes, "config.json")


@pytest.mark.parametrize("name", ROPES)
def test_rope_frequencies_equal_those_of_transformers(name: str) -> None:
    golden = ROPES[name]
    found = rope.from_huggingface(Fields(golden["config"], "config.json"), 64, 131072)
    np.testing.assert_allclose(found.frequencies, golden["frequencies"], rtol=2e-6)
    assert found.magnitude == pytest.approx(golden["magnitude"])


@pytest.mark.parametrize("name", ["default", "linear", "yarn"])
def test_rope_in_gguf_metadata_equals_that_of_config_json(name: str) -> None:
    keys = ROPES[name]["config"]
    parameters = keys.get("rope_scaling", {})
    metadata = {"llama.rope.freq_base": keys["rope_theta"]}
    if parameters:
        metadata |= {
            "llama.rope.scaling.type": parameters.get("type", parameters.get("rope_type")),
            "llama.rope.scaling.factor": parameters["factor"],
            "llama.rope.scaling.original_context_length": parameters.get("original_max_position_embeddings"),
        }
    found = rope.from_gguf(Fields(metadata, "model.gguf"), "llama", 64, 131072, None)
    np.testing.assert_allclose(found.frequencies, ROPES[name]["frequencies"], rtol=2e-6)
    assert found.magnitude == pytest.approx(ROPES[name]["magnitude"])


def test_rope_divisors_of_a_gguf_file_are_llama3s_scaling() -> None:
    golden, plain = np.array(ROPES["llama3"]["frequencies"]), rope.default(64, 500000.0)
    divisors = (plain / golden).astype(np.float32)
    found = rope.from_gguf(Fields({"llama.rope.freq_base": 5e5}, "model.gguf"), "llama", 64, 131072, divisors)
    np.testing.assert_allclose(found.frequencies, golden, rtol=2e-6)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight has shape \(3,\)"):
        rope.from_gguf(Fields({}, "model.gguf"), "llama", 64, 131072, divisors[:3])


def test_old_and_new_spellings_of_rope_agree() -> None:
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    old = config(rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert llama.config_from_huggingface(config(rope_parameters=new)) == llama.config_from_huggingface(old)


def test_rope_is_plain_when_nothing_is_said() -> None:
    found = llama.config_from_huggingface(config(rope_scaling=None)).ropes
    np.testing.assert_allclose(found[0].frequencies, rope.default(16, 10000.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is gelu; .* for silu only"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        (
            {"rope_scaling": {"type": "xpos", "factor": 2.0}},
            "rope_type xpos is not supported; supported: default",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 3}}, "RoPE parameter alpha"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"head_dim": 15}, "heads of 15 values"),
        ({"num_key_value_heads": 3}, "key-value heads is 3; .* divisor of 4"),
        ({"num_attention_heads": 5}, "64 does not divide into 5 heads"),
    ],
)
def test_a_variant_that_would_be_wrong_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        llama.config_from_huggingface(config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing; expected a whole number"),
        ({"hidden_size": "64"}, "hidden_size is '64'; expected a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a whole number from 1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; expected a finite number"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'; expected true or false"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0; expected a finite number above 1"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    ],
)
def test_a_value_that_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        llama.config_from_huggingface(config(**changes))


def test_an_unknown_family_lists_the_supported_ones() -> None:
    with pytest.raises(ArchitectureError, match=r"model_type is 'mamba'; supported: .*llama"):
        family_of_huggingface(config(model_type="mamba"))
    with pytest.raises(ArchitectureError, match=r"'LlamaForSequenceClassification'; supported: LlamaForCausalLM"):
        family_of_huggingface(config(architectures=["LlamaForSequenceClassification"]))


def test_every_family_is_listed_under_its_name() -> None:
    assert all(name == family.name for name, family in FAMILIES.items())
