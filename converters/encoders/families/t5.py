"""T5 and mT5: relative positions, RMS norms before each part, no biases."""

from __future__ import annotations

from converters.checkpoints.fields import Fields
from converters.encoders.family import EncoderFamily, Recipe, Task, activation, expected
from converters.encoders.network import Buckets, Config, Stack, TranslatorConfig
from converters.encoders.settings import SentenceSettings
from converters.network.config import Attention, FeedForward, Norm

__all__ = ["FAMILY"]

NAME = "t5"
_LONGEST = 512  # tokens, where the configuration names no other: the length that T5 was trained with


def _config(fields: Fields, task: Task, settings: SentenceSettings) -> Config:
    expected(NAME, fields, "is_encoder_decoder", fields.flag("is_encoder_decoder", True), True)
    width, heads, layers = (
        fields.integer("d_model", 512),
        fields.integer("num_heads", 8),
        fields.integer("num_layers", 6),
    )
    projection = fields.text("feed_forward_proj", "relu")
    gated = projection.startswith("gated-")
    # "gated-gelu" means what it meant when the first such checkpoints were made
    kind = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
    chosen = activation(NAME, Fields({"feed_forward_proj": kind}, fields.where), "feed_forward_proj", "relu")
    buckets = Buckets(
        fields.integer("relative_attention_num_buckets", 32, least=4),
        fields.integer("relative_attention_max_distance", 128, least=2),
    )
    attention = Attention(heads, heads, fields.integer("d_kv", 64), None, scale=1.0)
    norm = Norm(fields.number("layer_norm_epsilon", 1e-6))

    def stack(side: str, count: int) -> Stack:
        return Stack(
            "encoder" if side == "encoder" else "decoder",
            count,
            attention,
            FeedForward(fields.integer("d_ff", 2048), chosen, gated=gated),
            norm,
            norm_first=True,
            final_norm=True,
            buckets=buckets,
        )

    tied = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", tied)
    return TranslatorConfig(
        fields.integer("vocab_size", 32128),
        width,
        stack("encoder", layers),
        stack("decoder", fields.integer("num_decoder_layers", layers)),
        tied=tied,
        head_bias=False,
        head_scale=float(width**-0.5) if scaled else 1.0,
        start_id=fields.integer("decoder_start_token_id", fields.integer("pad_token_id", 0, least=0), least=0),
        max_tokens=fields.integer("n_positions", _LONGEST),
    )


def _recipe(name: str, config: Config, fields: Fields) -> Recipe:
    stem, part = name.rsplit(".", 1)
    if name == "embed.weight":
        return Recipe(("shared.weight",))
    if name == "head.weight":
        return Recipe(("lm_head.weight",))
    side, which = stem.split(".", 1)
    if which == "relative":
        return Recipe((f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",))
    if which == "final_norm":
        return Recipe((f"{side}.final_layer_norm.weight",))
    _, i, which = which.split(".")
    last = 2 if side == "decoder" else 1
    ffn = f"{last}.DenseReluDense"
    places = {
        "attention_norm": "0.layer_norm", "cross_norm": "1.layer_norm", "ffn_norm": f"{last}.layer_norm",
        "gate": f"{ffn}.wi_0", "up": f"{ffn}.wi_1" if config.encoder.feed_forward.gated else f"{ffn}.wi",
        "down": f"{ffn}.wo",
        **{part: f"0.SelfAttention.{part}" for part in "qkvo"},
        **{f"cross_{part}": f"1.EncDecAttention.{part}" for part in "qkvo"},
    }  # fmt: skip
    return Recipe((f"{side}.block.{i}.layer.{places[which]}.{part}",))


FAMILY = EncoderFamily(
    NAME,
    "T5, FLAN-T5, mT5",
    ("t5", "mt5"),
    {"T5ForConditionalGeneration": "translate", "MT5ForConditionalGeneration": "translate"},
    _config,
    _recipe,
    unused=(
        r"(encoder|decoder)\.embed_tokens\.weight",  # the shared table
        r"lm_head\.weight",  # of a tied head: the shared table
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # of old files, never read
    ),
)
