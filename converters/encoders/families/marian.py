"""Marian: the opus-mt translators. Sinusoidal positions, norms after each sum, one table for both languages."""

from __future__ import annotations

import numpy as np

from converters.checkpoints.fields import Fields
from converters.encoders.family import EncoderFamily, Recipe, Task, activation, expected
from converters.encoders.network import Config, Stack, TranslatorConfig
from converters.encoders.settings import SentenceSettings
from converters.network.config import Attention, FeedForward, Norm
from converters.network.weights import FloatArray

__all__ = ["FAMILY"]

NAME = "marian"
_PARTS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm", "cross_q": "encoder_attn.q_proj", "cross_k": "encoder_attn.k_proj",
    "cross_v": "encoder_attn.v_proj", "cross_o": "encoder_attn.out_proj", "cross_norm": "encoder_attn_layer_norm",
    "up": "fc1", "down": "fc2", "ffn_norm": "final_layer_norm",
}  # fmt: skip


def _config(fields: Fields, task: Task, settings: SentenceSettings) -> Config:
    for key in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):
        expected(NAME, fields, key, fields.flag(key, False), False)
    for key in ("share_encoder_decoder_embeddings", "tie_word_embeddings"):
        expected(NAME, fields, key, fields.flag(key, True), True)
    vocabulary = fields.integer("vocab_size", 58101)
    expected(NAME, fields, "decoder_vocab_size", fields.integer("decoder_vocab_size", vocabulary), vocabulary)
    width, positions = fields.integer("d_model", 1024), fields.integer("max_position_embeddings", 1024)
    kind = activation(NAME, fields, "activation_function", "gelu")
    scale = float(width**0.5) if fields.flag("scale_embedding", False) else 1.0

    def stack(side: str, number: str) -> Stack:
        heads = fields.integer(f"{side}_attention_heads", 16)
        expected(NAME, fields, f"d_model modulo {side}_attention_heads", width % heads, 0)
        return Stack(
            "encoder" if side == "encoder" else "decoder",
            fields.integer(number, 12),
            Attention(heads, heads, width // heads, None, bias=True, output_bias=True),
            FeedForward(fields.integer(f"{side}_ffn_dim", 4096), kind, gated=False, bias=True),
            Norm(1e-5, "layer", bias=True),
            norm_first=False,
            positions=positions,
            embedding_scale=scale,
        )

    return TranslatorConfig(
        vocabulary,
        width,
        stack("encoder", "encoder_layers"),
        stack("decoder", "decoder_layers"),
        tied=True,
        head_bias=True,
        head_scale=1.0,
        start_id=fields.integer("decoder_start_token_id", fields.integer("pad_token_id", 58100, least=0), least=0),
        max_tokens=positions,
    )


def _sinusoids(positions: int, width: int) -> FloatArray:
    """Sines in the first half of a row, cosines in the second: (positions, width)."""
    angles = np.arange(positions)[:, None] / np.power(10000.0, 2 * np.arange((width + 1) // 2) / width)
    return np.hstack([np.sin(angles), np.cos(angles)[:, : width // 2]]).astype(np.float32)


def _recipe(name: str, config: Config, fields: Fields) -> Recipe:
    stem, part = name.rsplit(".", 1)
    if name == "embed.weight":
        return Recipe(("model.shared.weight",))
    if stem.endswith("positions"):  # never trained, and left out of some files
        return Recipe((), lambda: _sinusoids(config.encoder.positions, config.width))
    if name == "head.bias":
        return Recipe(("final_logits_bias",), lambda bias: bias[0], ((1, config.vocabulary),))
    side, _, i, which = stem.split(".")
    return Recipe((f"model.{side}.layers.{i}.{_PARTS[which]}.{part}",))


FAMILY = EncoderFamily(
    NAME,
    "Marian, the opus-mt translators",
    ("marian",),
    {"MarianMTModel": "translate"},
    _config,
    _recipe,
    unused=(
        r"model\.(encoder|decoder)\.embed_(tokens|positions)\.weight",  # the shared table; and sines
        r"lm_head\.weight",  # the shared table
    ),
)
