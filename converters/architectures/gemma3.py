"""Gemma 3, text: Gemma 2's layers with norms of q and k, five local layers for each global one, and two RoPE bases."""

from __future__ import annotations

from converters.architectures import gemma2, llama
from converters.architectures.configuration import Sizes, gguf_rope, gguf_sizes, huggingface_sizes, sliding_layers
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.gemma import embedding_of, geglu
from converters.architectures.stored import gain_minus_one
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig, Norm, Rope

__all__ = ["FAMILY"]

NAME = "gemma3"
_HUGGINGFACE_NAMES = {
    **gemma2.HUGGINGFACE_NAMES,
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
}
_GGUF_NAMES = {**gemma2.GGUF_NAMES, "q_norm": "blk.{i}.attn_q_norm", "k_norm": "blk.{i}.attn_k_norm"}
_PATTERN = 6  # one layer of so many is global
_LOCAL_BASE, _GLOBAL_BASE = 10_000.0, 1_000_000.0
_LAYERS_OF_27B = 62
_MAPS = (  # attn_logit_softcapping is Gemma 2's: transformers reads the key for Gemma 3 too, and caps no score
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "sliding_window", "layer_types"),
)


def _network(
    sizes: Sizes,
    norm: Norm,
    slides: list[bool],
    ropes: tuple[Rope, Rope],
    *,
    window: int,
    scale: float | None,
    logits_cap: float | None,
    bias: bool = False,
) -> NetworkConfig:
    """`ropes`: of global and of local layers."""
    attentions = (
        sizes.attention(
            ropes[sliding],
            bias=bias,
            output_bias=bias,
            qk_norm=norm,
            scale=scale,
            window=window if sliding else None,
        )
        for sliding in slides
    )
    blocks = [gemma2.block_of(sizes, attention, norm) for attention in attentions]
    return sizes.network(blocks, norm, embedding=embedding_of(sizes), softcap=logits_cap)


def _ropes(config: Fields, sizes: Sizes) -> tuple[Rope, Rope]:
    """transformers 5 has `rope_parameters` for each kind of layer; before, the scaling was of the global ones only."""
    parameters = config.section("rope_parameters")
    found = []
    for kind, base in (("full_attention", _GLOBAL_BASE), ("sliding_attention", _LOCAL_BASE)):
        own = parameters.section(kind)
        if kind == "full_attention" and kind not in parameters:
            own = config.section("rope_scaling")
        key = "rope_theta" if kind == "full_attention" else "rope_local_base_freq"
        values = {**own.values, "rope_theta": own.number("rope_theta", config.number(key, base, least=1.0), least=1.0)}
        own = Fields(values, own.where)
        found.append(rope.from_huggingface(config, sizes.head_dim, sizes.max_context, parameters=own))
    return found[0], found[1]


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    geglu(NAME, config)
    sizes = huggingface_sizes(NAME, config, maps=_MAPS, tied=True, max_context=131072, head_dim=256)
    pattern = config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", _PATTERN))
    return _network(
        sizes,
        Norm(config.number("rms_norm_eps", 1e-6)),
        sliding_layers(NAME, config, sizes.layers, [(i + 1) % pattern != 0 for i in range(sizes.layers)]),
        _ropes(config, sizes),
        window=config.integer("sliding_window", 4096),
        scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        logits_cap=config.number("final_logit_softcapping") if "final_logit_softcapping" in config else None,
        bias=config.flag("attention_bias", False),
    )


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `gemma3.*` metadata; older files name neither the local base nor which layers are global.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    meta = source.metadata
    keys = ("attention.sliding_window", "final_logit_softcapping", "rope.freq_base_swa")
    pattern_key = f"{NAME}.attention.sliding_window_pattern"
    sizes = gguf_sizes(NAME, NAME, source, keys=(*keys, "attention.sliding_window_pattern"), head_dim=256)
    pattern = meta.values.get(pattern_key, _PATTERN)
    if isinstance(pattern, list) and len(pattern) == sizes.layers:
        slides = [bool(sliding) for sliding in pattern]
    else:
        each = meta.integer(pattern_key, _PATTERN)
        slides = [(i + 1) % each != 0 for i in range(sizes.layers)]
    local = rope.default(sizes.head_dim, meta.number(f"{NAME}.rope.freq_base_swa", _LOCAL_BASE, least=1.0))
    with_base = GgufSource(
        Fields({f"{NAME}.rope.freq_base": _GLOBAL_BASE, **meta.values}, meta.where), source.shapes, source.read
    )
    cap = f"{NAME}.final_logit_softcapping"
    return _network(
        sizes,
        Norm(meta.number(f"{NAME}.attention.layer_norm_rms_epsilon")),
        slides,
        (gguf_rope(sizes, NAME, with_base), Rope(tuple(local.tolist()))),
        window=meta.integer(f"{NAME}.attention.sliding_window", sizes.max_context),
        scale=gemma2.gguf_scale(sizes, _LAYERS_OF_27B),
        logits_cap=meta.number(cap) if meta.values.get(cap) else None,
    )


FAMILY = Family(
    NAME,
    "Gemma 3 270M and 1B, text only",
    HuggingFaceFormat(
        _HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        find=gain_minus_one(_HUGGINGFACE_NAMES),
        model_type="gemma3_text",
        classes=("Gemma3ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(_GGUF_NAMES, architecture=NAME, config=config_from_gguf),
)
