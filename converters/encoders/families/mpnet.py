"""MPNet: RoBERTa's layers with T5's relative positions, one table for all; all-mpnet-base-v2 is of this family."""

from __future__ import annotations

from dataclasses import replace

from converters.checkpoints.fields import Fields
from converters.encoders.families.bert import encoder_config, family
from converters.encoders.families.roberta import recipe as of_roberta
from converters.encoders.family import Recipe, Task, expected
from converters.encoders.network import Buckets, Config, EncoderConfig
from converters.encoders.settings import SentenceSettings

__all__ = ["FAMILY"]

NAME = "mpnet"
_FIRST = 2  # rows of the table of positions that no token has: transformers counts from a fixed padding index of 1
_BUCKETS = Buckets(32, 128)  # transformers computes with these, whatever the configuration says
_PARTS = {**{part: f"attention.attn.{part}" for part in "qkvo"}, "attention_norm": "attention.LayerNorm"}


def _config(fields: Fields, task: Task, settings: SentenceSettings) -> Config:
    config = encoder_config(NAME, fields, task, settings, _FIRST)
    key = "relative_attention_num_buckets"
    expected(NAME, fields, key, fields.integer(key, _BUCKETS.count), _BUCKETS.count)
    return replace(config, encoder=replace(config.encoder, buckets=_BUCKETS))


def _recipe(name: str, config: Config, fields: Fields) -> Recipe:
    assert isinstance(config, EncoderConfig)
    stem, part = name.rsplit(".", 1)
    if stem == "encoder.relative":
        return Recipe(("encoder.relative_attention_bias.weight",))
    if stem == "encoder.positions":
        rows = fields.integer("max_position_embeddings", 512)
        stored = ("embeddings.position_embeddings.weight",)
        return Recipe(stored, lambda positions: positions[_FIRST:], ((rows, config.width),))
    which = stem.split(".")[-1]
    if which in _PARTS:
        return Recipe((f"encoder.layer.{stem.split('.')[2]}.{_PARTS[which]}.{part}",))
    return of_roberta(name, config, fields)


FAMILY = family(NAME, "MPNet, all-mpnet-base-v2", ("mpnet",), ("MPNet",), _config, _recipe)
