"""A bundle as tuning a sentence encoder leaves it, without training: the small BERT of tests/data, random heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.encoders.checkpoint import EncoderCheckpoint, open_encoder
from converters.encoders.convert import EncoderOptions, convert_encoder
from converters.encoders.network import EncoderConfig, SentenceHead
from device_runtime.tasks.inputs import Inputs
from device_runtime.tasks.purpose import Purpose

__all__ = ["PURPOSE", "tuned_checkpoint", "tuned_encoder"]

BERT = Path(__file__).parent.parent / "data" / "encoders" / "bert-embed"
FIELDS = {"state": {"enum": ["none", "calm", "alarm"]}, "soon": {"enum": [False, True]}}
ANSWER = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}
PURPOSE = Purpose(
    "pump-notes",
    Inputs(text=60, numbers="short", words="apart"),
    ANSWER,
    kind="tune",
    about="Says how a pump is.",
    none={"state": "none"},
    temperatures={"state": 2.0, "soon": 1.5},
    longest_pieces=0.6,
)


def tuned_checkpoint() -> EncoderCheckpoint:
    """With a head of random weights, whose fields look at different rows."""
    checkpoint = open_encoder(BERT)
    assert checkpoint is not None and isinstance(checkpoint.config, EncoderConfig)
    rng, width = np.random.default_rng(0), checkpoint.config.width
    head = SentenceHead("mean", None, 5, normalized=False, fields=(3, 2))
    heads = {"head.weight": rng.normal(0, 0.5, (5, width)).astype(np.float32), "head.bias": np.zeros(5, np.float32)}
    for name, rows in (("look", 2), ("near", 5)):
        heads[f"head.{name}.weight"] = rng.normal(0, 0.5, (rows, width)).astype(np.float32)

    def read(name: str) -> Any:
        return heads[name] if name in heads else checkpoint.read(name)

    return replace(
        checkpoint, name="bert+pump-notes", task="classify", config=replace(checkpoint.config, head=head),
        answer=ANSWER, read=read,
    )  # fmt: skip


def tuned_encoder(folder: Path, context: int = 62, profile: Literal["pi", "micro"] = "pi") -> Path:
    """Make it at `folder`."""
    options = EncoderOptions(profile, context, fast=True, purpose=PURPOSE.to_json())
    convert_encoder(tuned_checkpoint(), folder, options)
    return folder
