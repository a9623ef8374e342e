"""Gemma: GeGLU, an embedding times the root of its width, and gains of norms that are stored as gain - 1."""

from __future__ import annotations

from converters.architectures import llama
from converters.architectures.configuration import Sizes, activation_of, gguf_rope, gguf_sizes, huggingface_sizes
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.stored import gain_minus_one
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Attention, Block, Embedding, FeedForward, NetworkConfig, Norm

__all__ = ["FAMILY", "embedding_of", "feed_forward_of", "geglu"]

NAME = "gemma"


def geglu(family: str, config: Fields) -> None:
    """Refuse another activation. `gelu` in old configurations means the one with tanh, as in transformers.

    Raises:
        ArchitectureError: it is another one.
    """
    key = "hidden_activation" if "hidden_activation" in config else "hidden_act"
    if config.text(key, "gelu") != "gelu":
        activation_of(family, config, key, "gelu_pytorch_tanh", ("gelu_pytorch_tanh",))


def feed_forward_of(sizes: Sizes) -> FeedForward:
    """Gemma's feed-forward part."""
    return FeedForward(sizes.ffn_width, "gelu_tanh")


def embedding_of(sizes: Sizes) -> Embedding:
    """Gemma's embedding."""
    return Embedding(sizes.width**0.5)


def _network(sizes: Sizes, attention: Attention, norm: Norm) -> NetworkConfig:
    block = Block(attention, feed_forward_of(sizes), attention_norm=norm, ffn_norm=norm)
    return sizes.network(block, norm, embedding=embedding_of(sizes))


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    geglu(NAME, config)
    sizes = huggingface_sizes(NAME, config, tied=True, max_context=8192, head_dim=256)
    bias, norm = config.flag("attention_bias", False), Norm(config.number("rms_norm_eps", 1e-6))
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context)
    return _network(sizes, sizes.attention(turns, bias=bias, output_bias=bias), norm)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `gemma.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    sizes = gguf_sizes(NAME, NAME, source)
    norm = Norm(source.metadata.number(f"{NAME}.attention.layer_norm_rms_epsilon"))
    return _network(sizes, sizes.attention(gguf_rope(sizes, NAME, source)), norm)


FAMILY = Family(
    NAME,
    "Gemma 2B and 7B, CodeGemma",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        find=gain_minus_one(llama.HUGGINGFACE_NAMES),
        model_type="gemma",
        classes=("GemmaForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(llama.GGUF_NAMES, architecture=NAME, config=config_from_gguf),  # gains are whole there
)
