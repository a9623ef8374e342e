"""MiniCPM 1 and 4: Llama's layers, with multipliers of the embedding, each part and the logits."""

from __future__ import annotations

from converters.architectures import llama
from converters.architectures.configuration import activation_of, gguf_rope, gguf_sizes, huggingface_sizes
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.granite import multiplied
from converters.architectures.stored import permuted
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig, Norm

__all__ = ["FAMILY"]

NAME = "minicpm"


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json of the models' own code.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes = huggingface_sizes(NAME, config, maps=("scale_emb", "scale_depth", "dim_model_base"), tied=True)
    bias = config.flag("attention_bias", False)
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context)
    return multiplied(
        sizes,
        sizes.attention(turns, bias=bias, output_bias=bias),
        Norm(config.number("rms_norm_eps", 1e-6)),
        embedding=config.number("scale_emb", 1.0),
        residual=config.number("scale_depth", 1.0) / sizes.layers**0.5,
        logits=sizes.width / config.integer("dim_model_base", 1),
    )


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `minicpm.*` metadata; old files have no multipliers, and llama.cpp takes those of MiniCPM 1 for them.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    keys = ("embedding_scale", "residual_scale", "logit_scale")
    meta, sizes = source.metadata, gguf_sizes(NAME, NAME, source, keys=keys)
    return multiplied(
        sizes,
        sizes.attention(gguf_rope(sizes, NAME, source)),
        Norm(meta.number(f"{NAME}.attention.layer_norm_rms_epsilon")),
        embedding=meta.number(f"{NAME}.embedding_scale", 12.0),
        residual=meta.number(f"{NAME}.residual_scale", 1.4 / sizes.layers**0.5),
        logits=meta.number(f"{NAME}.logit_scale", sizes.width / 256),
    )


FAMILY = Family(
    NAME,
    "MiniCPM 1B and 2B, MiniCPM4 0.5B and 8B",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="minicpm",
        classes=("MiniCPMForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(
        llama.GGUF_NAMES,
        unused=(r"rope_factors_(short|long)\.weight",),
        find=permuted(llama.GGUF_NAMES),
        architecture=NAME,
        config=config_from_gguf,
    ),
)
