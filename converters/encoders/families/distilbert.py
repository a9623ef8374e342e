"""DistilBERT: BERT without token types and with names of its own."""

from __future__ import annotations

from converters.checkpoints.fields import Fields
from converters.encoders.families.bert import family, with_head
from converters.encoders.family import Recipe, Task, activation, expected
from converters.encoders.labels import head_recipe
from converters.encoders.network import Config, EncoderConfig, Stack
from converters.encoders.settings import SentenceSettings
from converters.network.config import Attention, FeedForward, Norm

__all__ = ["FAMILY"]

NAME = "distilbert"
_PARTS = {
    "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "o": "attention.out_lin",
    "attention_norm": "sa_layer_norm", "up": "ffn.lin1", "down": "ffn.lin2", "ffn_norm": "output_layer_norm",
}  # fmt: skip
_STEMS = {
    "embed": "embeddings.word_embeddings", "encoder.positions": "embeddings.position_embeddings",
    "encoder.embed_norm": "embeddings.LayerNorm", "dense": "pre_classifier",
}  # fmt: skip


def _config(fields: Fields, task: Task, settings: SentenceSettings) -> Config:
    width, heads = fields.integer("dim", 768), fields.integer("n_heads", 12)
    expected(NAME, fields, "dim modulo n_heads", width % heads, 0)
    positions = fields.integer("max_position_embeddings", 512)
    stack = Stack(
        "encoder",
        fields.integer("n_layers", 6),
        Attention(heads, heads, width // heads, None, bias=True, output_bias=True),
        FeedForward(
            fields.integer("hidden_dim", 3072), activation(NAME, fields, "activation", "gelu"), gated=False, bias=True
        ),
        Norm(1e-12, "layer", bias=True),
        norm_first=False,
        positions=positions,
        embedding_norm=True,
    )
    return with_head(fields, task, settings, width, stack, "relu")


def _recipe(name: str, config: Config, fields: Fields) -> Recipe:
    assert isinstance(config, EncoderConfig)
    stem, part = name.rsplit(".", 1)
    if stem == "head":
        return head_recipe(f"classifier.{part}", part, config, fields)
    if stem in _STEMS:
        return Recipe((f"{_STEMS[stem]}.{part}",))
    _, _, i, which = stem.split(".")
    return Recipe((f"transformer.layer.{i}.{_PARTS[which]}.{part}",))


FAMILY = family(NAME, "DistilBERT", ("distilbert",), ("DistilBert",), _config, _recipe)
