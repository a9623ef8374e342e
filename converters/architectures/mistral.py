"""Mistral: Llama's layers with a sliding window in each."""

from __future__ import annotations

from converters.architectures import llama
from converters.architectures.configuration import activation_of, huggingface_sizes
from converters.architectures.family import Family, HuggingFaceFormat
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig, Norm

__all__ = ["FAMILY"]

NAME = "mistral"


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json; without `sliding_window` each token sees all others before it.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes = huggingface_sizes(NAME, config, maps=("sliding_window",), max_context=131072)
    norm = Norm(config.number("rms_norm_eps", 1e-6))
    window = config.integer("sliding_window") if "sliding_window" in config else None
    attention = sizes.attention(rope.from_huggingface(config, sizes.head_dim, sizes.max_context), window=window)
    return sizes.network(sizes.plain_block(attention, norm), norm)


FAMILY = Family(
    NAME,
    "Mistral 7B, Mistral Nemo",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="mistral",
        classes=("MistralForCausalLM",),
        config=config_from_huggingface,
    ),
    note="its GGUF files say llama, and lack the sliding window of Mistral 7B v0.1",
)
