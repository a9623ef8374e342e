"""A family for tests only, as docs/contributing/adding-a-family.md says: layer norms, no gate, biases."""

from __future__ import annotations

from converters.architectures.family import Family, HuggingFaceFormat, refused
from converters.checkpoints.fields import Fields
from converters.network.config import Attention, Block, Embedding, FeedForward, Head, NetworkConfig, Norm

__all__ = ["FAMILY"]

NAME = "toy"
NAMES = {
    "embed": "tokens",
    "positions": "positions",
    "attention_norm": "layer.{i}.ln_1",
    "q": "layer.{i}.query",
    "k": "layer.{i}.key",
    "v": "layer.{i}.value",
    "o": "layer.{i}.mix",
    "ffn_norm": "layer.{i}.ln_2",
    "up": "layer.{i}.wide",
    "down": "layer.{i}.narrow",
    "final_norm": "ln",
}


def config(fields: Fields) -> NetworkConfig:
    """Map config.json."""
    if (activation := fields.text("activation", "gelu")) != "gelu":
        raise refused(NAME, fields.where, "activation", activation, "gelu")
    width, heads, positions = fields.integer("width"), fields.integer("heads"), fields.integer("positions")
    norm = Norm(fields.number("epsilon", 1e-5), "layer", bias=True)
    block = Block(
        attention=Attention(heads, heads, width // heads, rope=None, bias=True, output_bias=True),
        feed_forward=FeedForward(4 * width, "gelu", gated=False, bias=True),
        attention_norm=norm,
        ffn_norm=norm,
    )
    return NetworkConfig(
        vocabulary=fields.integer("vocab_size"),
        width=width,
        blocks=(block,) * fields.integer("layers"),
        head=Head(tied=True, norm=norm),
        max_context=positions,
        embedding=Embedding(positions=positions),
    )


FAMILY = Family(NAME, "none", HuggingFaceFormat(NAMES, model_type="toy", classes=("ToyForCausalLM",), config=config))
