"""BERT: MiniLM, E5, BGE, GTE and most sentence encoders are of this family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from converters.checkpoints.fields import Fields
from converters.encoders.family import EncoderFamily, Recipe, Task, activation, expected
from converters.encoders.labels import head_recipe, label_rows
from converters.encoders.network import Config, EncoderConfig, SentenceHead, Stack
from converters.encoders.settings import SentenceSettings
from converters.network.config import Attention, FeedForward, Norm
from converters.network.weights import FloatArray
from device_runtime.errors import ArchitectureError

__all__ = ["FAMILY", "encoder_config", "encoder_recipe", "family", "with_head"]

NAME = "bert"
_PARTS = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm", "up": "intermediate.dense", "down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}  # fmt: skip


def encoder_config(
    name: str, fields: Fields, task: Task, settings: SentenceSettings, unused_positions: int
) -> EncoderConfig:
    """Map config.json.

    Args:
        unused_positions: rows of the table of positions before the first token's.
    """
    expected(name, fields, "position_embedding_type", fields.text("position_embedding_type", "absolute"), "absolute")
    for key in ("is_decoder", "add_cross_attention"):
        expected(name, fields, key, fields.flag(key, False), False)
    width, heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
    expected(name, fields, "hidden_size modulo num_attention_heads", width % heads, 0)
    if (positions := fields.integer("max_position_embeddings", 512) - unused_positions) < 1:
        raise ArchitectureError(
            f"{fields.where}: max_position_embeddings is {positions + unused_positions}, and the first "
            f"{unused_positions} are the padding's; expected more. The configuration is damaged."
        )
    stack = Stack(
        "encoder",
        fields.integer("num_hidden_layers", 12),
        Attention(heads, heads, width // heads, None, bias=True, output_bias=True),
        FeedForward(
            fields.integer("intermediate_size", 3072),
            activation(name, fields, "hidden_act", "gelu"),
            gated=False,
            bias=True,
        ),
        Norm(fields.number("layer_norm_eps", 1e-12, least=-1.0), "layer", bias=True),
        norm_first=False,
        positions=positions,
        embedding_norm=True,
    )
    return with_head(fields, task, settings, width, stack, "tanh")


def with_head(
    fields: Fields, task: Task, settings: SentenceSettings, width: int, stack: Stack, dense: Literal["tanh", "relu"]
) -> EncoderConfig:
    """An encoder with the head of its task.

    Args:
        dense: activation between the two matmuls of a classifier's head.
    """
    if task == "classify":
        head = SentenceHead("cls", dense, label_rows(fields), normalized=False)
    else:
        head = SentenceHead(settings.pooling, normalized=settings.normalized)
    most = min(stack.positions, settings.max_tokens or stack.positions)
    return EncoderConfig(fields.integer("vocab_size", 30522), width, stack, head, most)


def encoder_recipe(name: str, config: EncoderConfig, fields: Fields, token_types: int) -> Recipe:
    """All but the head. Token type 0 is every token's: its row becomes part of the positions."""
    stem, part = name.rsplit(".", 1)
    if name == "embed.weight":
        return Recipe(("embeddings.word_embeddings.weight",))
    if name == "encoder.positions.weight":
        rows = fields.integer("max_position_embeddings", 512)

        def summed(positions: FloatArray, types: FloatArray) -> FloatArray:
            return np.asarray(positions[rows - config.encoder.positions :] + types[0])

        stored = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
        return Recipe(stored, summed, ((rows, config.width), (token_types, config.width)))
    if stem == "encoder.embed_norm":
        return Recipe((f"embeddings.LayerNorm.{part}",))
    _, _, i, which = stem.split(".")
    return Recipe((f"encoder.layer.{i}.{_PARTS[which]}.{part}",))


def _recipe(name: str, config: Config, fields: Fields) -> Recipe:
    assert isinstance(config, EncoderConfig)
    stem, part = name.rsplit(".", 1)
    if stem == "dense":
        return Recipe((f"pooler.dense.{part}",))
    if stem == "head":
        return head_recipe(f"classifier.{part}", part, config, fields)
    return encoder_recipe(name, config, fields, fields.integer("type_vocab_size", 2))


def family(
    name: str,
    models: str,
    model_types: tuple[str, ...],
    stems: tuple[str, ...],
    config: Callable[[Fields, Task, SentenceSettings], Config],
    recipe: Callable[[str, Config, Fields], Recipe],
) -> EncoderFamily:
    """A family whose classes are called STEMModel and so on."""
    classes: dict[str, Task] = {}
    for stem in stems:
        classes |= {f"{stem}{what}": "embed" for what in ("Model", "ForMaskedLM", "ForPreTraining")}
        classes[f"{stem}ForSequenceClassification"] = "classify"
    return EncoderFamily(
        name,
        models,
        model_types,
        classes,
        config,
        recipe,
        prefixes=(f"{name}.",),
        unused=(
            r"embeddings\.(position_ids|token_type_ids)",  # buffers
            r"pooler\.dense\.(weight|bias)",  # of an embedding, which is pooled otherwise
            r"cls\..*",
            r"lm_head\..*",
            r"vocab_(transform|layer_norm|projector)\..*",
        ),
    )


FAMILY = family(
    NAME,
    "BERT, MiniLM, E5, BGE, GTE",
    ("bert",),
    ("Bert",),
    lambda fields, task, settings: encoder_config(NAME, fields, task, settings, 0),
    _recipe,
)
