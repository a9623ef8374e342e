"""RoBERTa and XLM-R: BERT's layers; positions begin after the padding's, and the classifier has a matmul of its own."""

from __future__ import annotations

from converters.checkpoints.fields import Fields
from converters.encoders.families.bert import encoder_config, encoder_recipe, family
from converters.encoders.family import Recipe, Task
from converters.encoders.labels import head_recipe
from converters.encoders.network import Config, EncoderConfig
from converters.encoders.settings import SentenceSettings

__all__ = ["FAMILY", "recipe"]

NAME = "roberta"


def _config(fields: Fields, task: Task, settings: SentenceSettings) -> Config:
    # transformers counts positions from padding_idx + 1, so that padding has a row of its own
    return encoder_config(NAME, fields, task, settings, fields.integer("pad_token_id", 1, least=0) + 1)


def recipe(name: str, config: Config, fields: Fields) -> Recipe:
    """BERT's, and the classifier's two matmuls."""
    assert isinstance(config, EncoderConfig)
    stem, part = name.rsplit(".", 1)
    if stem == "dense":
        return Recipe((f"classifier.dense.{part}",))
    if stem == "head":
        return head_recipe(f"classifier.out_proj.{part}", part, config, fields)
    return encoder_recipe(name, config, fields, fields.integer("type_vocab_size", 2))


FAMILY = family(
    NAME,
    "RoBERTa, XLM-R, multilingual E5 base and large",
    ("roberta", "xlm-roberta", "camembert"),
    ("Roberta", "XLMRoberta", "Camembert"),
    _config,
    recipe,
)
