"""Phi-1, Phi-1.5 and Phi-2: parallel blocks with one layer norm, biases everywhere, RoPE on a part of each head."""

from __future__ import annotations

from converters.architectures.configuration import Sizes, activation_of, gguf_rope, gguf_sizes, huggingface_sizes
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.llama import GGUF_NAMES
from converters.architectures.stored import fused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import ActivationKind, Block, FeedForward, NetworkConfig, Norm, Rope
from converters.network.tensors import Role

__all__ = ["FAMILY"]

NAME = "phi"
_GGUF_ARCHITECTURE = "phi2"
_NAMES = {
    "embed": "model.embed_tokens",
    "attention_norm": "model.layers.{i}.input_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "o": "model.layers.{i}.self_attn.dense",
    "up": "model.layers.{i}.mlp.fc1",
    "down": "model.layers.{i}.mlp.fc2",
    "final_norm": "model.final_layernorm",
    "head": "lm_head",
}
_FUSED = {"blk.{i}.attn_qkv": (Role.Q, Role.K, Role.V)}


def _network(sizes: Sizes, turns: Rope, epsilon: float, activation: ActivationKind) -> NetworkConfig:
    norm = Norm(epsilon, "layer", bias=True)
    block = Block(
        sizes.attention(turns, bias=True, output_bias=True),
        FeedForward(sizes.ffn_width, activation, gated=False, bias=True),
        attention_norm=norm,
        ffn_norm=None,
        parallel=True,
    )
    return sizes.network(block, norm, bias=True)


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation = activation_of(NAME, config, "hidden_act", "gelu_new", ("gelu_new", "gelu"))
    sizes = huggingface_sizes(NAME, config)
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context, partial=0.5)
    return _network(sizes, turns, config.number("layer_norm_eps", 1e-5), activation)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `phi2.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    meta, keys = source.metadata, ("attention.layer_norm_epsilon",)
    sizes = gguf_sizes(NAME, _GGUF_ARCHITECTURE, source, keys=keys)
    turns = gguf_rope(sizes, _GGUF_ARCHITECTURE, source, partial=True)
    return _network(sizes, turns, meta.number(f"{_GGUF_ARCHITECTURE}.attention.layer_norm_epsilon"), "gelu_tanh")


FAMILY = Family(
    NAME,
    "Phi-1, Phi-1.5, Phi-2",
    HuggingFaceFormat(
        _NAMES,
        unused=(r".*\.rotary_emb\.inv_freq",),
        model_type="phi",
        classes=("PhiForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(GGUF_NAMES, other=fused(_FUSED), architecture=_GGUF_ARCHITECTURE, config=config_from_gguf),
)
