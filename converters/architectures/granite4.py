"""Granite 4, dense: Granite 3 in the form of the hybrid models, without any of their state-space layers and experts."""

from __future__ import annotations

from dataclasses import replace

from converters.architectures import llama
from converters.architectures.configuration import huggingface_sizes
from converters.architectures.family import Family, HuggingFaceFormat, refused
from converters.architectures.granite import MULTIPLIERS, network_of
from converters.architectures.stored import fused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig
from converters.network.tensors import Role

__all__ = ["FAMILY"]

NAME = "granite4"
_NAMES = {**llama.HUGGINGFACE_NAMES, "down": "model.layers.{i}.shared_mlp.output_linear"}


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json. What `mamba_` keys say is of layers that are not there.

    Raises:
        ArchitectureError: state-space layers, experts, or an extra that the network does not describe.
    """
    kinds = config.values.get("layer_types", config.values.get("layers_block_type", ["mamba"]))
    attention = {"attention", "full_attention"}
    if not isinstance(kinds, list) or not {str(kind) for kind in kinds} <= attention:
        strange = next((kind for kind in kinds if kind not in attention), kinds) if isinstance(kinds, list) else kinds
        raise refused(NAME, config.where, "layer_types", strange, "attention in every layer")
    sizes = huggingface_sizes(NAME, config, maps=(*MULTIPLIERS, "layer_types", "position_embedding_type"))
    sizes = replace(sizes, ffn_width=config.integer("shared_intermediate_size", 1024))
    kind = config.text("position_embedding_type", "nope")
    if kind not in ("rope", "nope"):
        raise refused(NAME, config.where, "position_embedding_type", kind, "rope and nope")
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context) if kind == "rope" else None
    return network_of(config, sizes, turns)


FAMILY = Family(
    NAME,
    "Granite 4.0 350M, 1B and micro, dense (not the H models)",
    HuggingFaceFormat(
        _NAMES,
        unused=llama.UNUSED,
        find=fused({"model.layers.{i}.shared_mlp.input_linear": (Role.GATE, Role.UP)}),
        model_type="granitemoehybrid",
        classes=("GraniteMoeHybridForCausalLM",),
        config=config_from_huggingface,
    ),
    note="its GGUF files say granite",
)
