"""OPT: layer norms, learned positions that begin at row 2, ReLU, biases everywhere."""

from __future__ import annotations

from converters.architectures.configuration import activation_of, check_neutral
from converters.architectures.family import Family, HuggingFaceFormat, Source, refused
from converters.checkpoints.fields import Fields
from converters.network.config import Attention, Block, Embedding, FeedForward, Head, NetworkConfig, Norm
from converters.network.tensors import Tensor

__all__ = ["FAMILY"]

NAME = "opt"
_NAMES = {
    "embed": "embed_tokens",
    "positions": "embed_positions",
    "attention_norm": "layers.{i}.self_attn_layer_norm",
    "q": "layers.{i}.self_attn.q_proj",
    "k": "layers.{i}.self_attn.k_proj",
    "v": "layers.{i}.self_attn.v_proj",
    "o": "layers.{i}.self_attn.out_proj",
    "ffn_norm": "layers.{i}.final_layer_norm",
    "up": "layers.{i}.fc1",
    "down": "layers.{i}.fc2",
    "final_norm": "final_layer_norm",
    "head": "lm_head",
}
_FIRST_POSITION = 2  # rows before it are of padding
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "_remove_final_layer_norm": (False,),
    "do_layer_norm_before": (True,),  # not of the 350M, whose layer norms come after the parts
    "quantization_config": (),
}


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: layer norms after the parts, an embedding of another width, or another extra.
    """
    check_neutral(NAME, config, _NEUTRAL)
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if (projected := config.integer("word_embed_proj_dim", width)) != width:
        raise refused(NAME, config.where, "word_embed_proj_dim", projected, width)
    if width % heads:
        raise refused(NAME, config.where, "hidden_size", width, f"a multiple of {heads} heads")
    affine, bias = config.flag("layer_norm_elementwise_affine", True), config.flag("enable_bias", True)
    norm = Norm(1e-5, "layer", gain=affine, bias=affine)
    known = ("relu", "gelu", "gelu_new", "silu")
    activation = activation_of(NAME, config, "activation_function", "relu", known)
    block = Block(
        Attention(heads, heads, width // heads, rope=None, bias=bias, output_bias=bias),
        FeedForward(config.integer("ffn_dim"), activation, gated=False, bias=bias),
        attention_norm=norm,
        ffn_norm=norm,
    )
    positions = config.integer("max_position_embeddings", 2048)
    return NetworkConfig(
        vocabulary=config.integer("vocab_size"),
        width=width,
        blocks=(block,) * config.integer("num_hidden_layers"),
        head=Head(config.flag("tie_word_embeddings", True), norm),
        max_context=positions,
        embedding=Embedding(positions=positions),
    )


def _find(tensor: Tensor, config: NetworkConfig) -> Source | None:
    if tensor.kind != "positions":
        return None
    rows = config.embedding.positions
    shape = (rows + _FIRST_POSITION, config.width)
    return Source("embed_positions.weight", shape, slice(_FIRST_POSITION, rows + _FIRST_POSITION))


FAMILY = Family(
    NAME,
    "OPT 125M, 1.3B to 66B, Galactica",
    HuggingFaceFormat(
        _NAMES,
        unused=(r"lm_head\.weight",),  # of a tied head, which the reader compares with the embedding
        find=_find,
        prefix="model.decoder.",
        model_type="opt",
        classes=("OPTForCausalLM",),
        config=config_from_huggingface,
    ),
    note="llama.cpp does not have it",
)
