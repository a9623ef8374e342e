"""The Llama family: Llama 2 and 3, SmolLM, SmolLM2, TinyLlama and others of the same layers."""

from __future__ import annotations

from converters.architectures.configuration import activation_of, gguf_rope, gguf_sizes, huggingface_sizes
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.stored import pairs_to_halves, permuted
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Attention, Block, FeedForward, Head, NetworkConfig, Norm, Rope

__all__ = ["FAMILY", "GGUF_NAMES", "HUGGINGFACE_NAMES", "UNUSED", "network", "pairs_to_halves"]

NAME = "llama"
GGUF_ARCHITECTURE = "llama"
HUGGINGFACE_NAMES = {
    "embed": "model.embed_tokens",
    "attention_norm": "model.layers.{i}.input_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "o": "model.layers.{i}.self_attn.o_proj",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "gate": "model.layers.{i}.mlp.gate_proj",
    "up": "model.layers.{i}.mlp.up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
GGUF_NAMES = {
    "embed": "token_embd",
    "attention_norm": "blk.{i}.attn_norm",
    "q": "blk.{i}.attn_q",
    "k": "blk.{i}.attn_k",
    "v": "blk.{i}.attn_v",
    "o": "blk.{i}.attn_output",
    "ffn_norm": "blk.{i}.ffn_norm",
    "gate": "blk.{i}.ffn_gate",
    "up": "blk.{i}.ffn_up",
    "down": "blk.{i}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}
# Frequencies that old checkpoints carry, and a tied head, which the reader compares with the embedding.
UNUSED = (r".*\.rotary_emb\.inv_freq", r"lm_head\.weight")


def network(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn_width: int,
    norm_epsilon: float,
    rope: Rope,
    max_context: int,
    tied_head: bool,
    attention_bias: bool = False,
    output_bias: bool = False,
    ffn_bias: bool = False,
) -> NetworkConfig:
    """A network whose layers are all Llama's. The arguments are fields of the parts in `network.config`."""
    norm = Norm(norm_epsilon)
    block = Block(
        attention=Attention(heads, kv_heads, head_dim, rope, bias=attention_bias, output_bias=output_bias),
        feed_forward=FeedForward(ffn_width, bias=ffn_bias),
        attention_norm=norm,
        ffn_norm=norm,
    )
    return NetworkConfig(vocabulary, width, (block,) * layers, Head(tied_head, norm), max_context)


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json (transformers 4 and 5).

    Raises:
        ArchitectureError: an activation, scaling or extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes, norm = huggingface_sizes(NAME, config), Norm(config.number("rms_norm_eps", 1e-6))
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context)
    bias = config.flag("attention_bias", False)
    attention = sizes.attention(turns, bias=bias, output_bias=bias)
    return sizes.network(sizes.plain_block(attention, norm, bias=config.flag("mlp_bias", False)), norm)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `llama.*` metadata; biases and a separate head are there when their tensors are.

    Raises:
        ArchitectureError: experts, a partial RoPE or any key that the network does not describe.
    """
    sizes = gguf_sizes(NAME, GGUF_ARCHITECTURE, source)
    norm = Norm(source.metadata.number("llama.attention.layer_norm_rms_epsilon"))
    attention = sizes.attention(
        gguf_rope(sizes, GGUF_ARCHITECTURE, source),
        bias="blk.0.attn_q.bias" in source.shapes,
        output_bias="blk.0.attn_output.bias" in source.shapes,
    )
    return sizes.network(sizes.plain_block(attention, norm, bias="blk.0.ffn_gate.bias" in source.shapes), norm)


def _notes(source: GgufSource) -> list[str]:
    """What a GGUF file leaves out: of Mistral's models only the first had a window, and no file says which it is."""
    meta = source.metadata
    names = (meta.values.get(f"general.{key}") for key in ("name", "basename", "finetune"))
    if not any("mistral" in name.lower() for name in names if isinstance(name, str)):
        return []
    return [
        "a GGUF file does not have the sliding window of 4,096 positions that Mistral 7B v0.1 was trained with: "
        "convert with --context 4096 or less, or from the Hugging Face folder, if it is that one"
    ]


FAMILY = Family(
    NAME,
    "Llama 2 and 3, SmolLM, SmolLM2, TinyLlama",
    HuggingFaceFormat(
        HUGGINGFACE_NAMES,
        unused=UNUSED,
        model_type="llama",
        classes=("LlamaForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(
        GGUF_NAMES,
        unused=(r"rope_freqs\.weight",),  # `config_from_gguf` has read it
        find=permuted(GGUF_NAMES),
        architecture=GGUF_ARCHITECTURE,
        config=config_from_gguf,
        notes=_notes,
    ),
)
