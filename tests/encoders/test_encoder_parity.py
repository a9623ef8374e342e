"""What transformers computes of random checkpoints, stonechat computes: tokens, vectors, logits and translations.

tests/encoders/make_encoders.py made them, and wrote down what transformers said.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from converters.encoders.checkpoint import EncoderCheckpoint, open_encoder
from converters.encoders.network import tensor_shapes
from converters.encoders.ops_numpy import reference_logits, reference_sentence
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.engine.encoder.translator import Translator
from device_runtime.engine.encoder.vocabulary import Vocabulary
from tests.encoders.conftest import FOLDER

SENTENCES = [
    "bert-embed",
    "bert-classify",
    "bert-several",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "mpnet",
    "mpnet-classify",
]
TRANSLATORS = ["marian", "t5", "flan-t5"]


@cache
def checkpoint(name: str) -> EncoderCheckpoint:
    found = open_encoder(FOLDER / name)
    assert found is not None
    return found


def golden(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((FOLDER / name / "golden.json").read_text(encoding="utf-8"))["rows"]
    return rows


@pytest.mark.parametrize("name", SENTENCES)
def test_the_float_network_gives_what_transformers_gives(name: str) -> None:
    opened = checkpoint(name)
    for row in golden(name):
        found = reference_sentence(opened.config, opened.read, row["tokens"])
        wanted = np.array(row["result"], np.float32)
        if name == "bert-several":  # false and true of each label in turn; the logit of false is 0
            assert not found[::2].any()
            found = found[1::2]
        np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_the_float_translator_gives_the_logits_of_transformers(name: str) -> None:
    opened = checkpoint(name)
    for row in golden(name):
        target = [opened.config.start_id, *row["target"]][: len(row["logits"])]  # type: ignore[union-attr]
        found = reference_logits(opened.config, opened.read, row["tokens"], target)
        wanted = np.array(row["logits"], np.float32)
        known = np.abs(wanted) < 1e30  # the token that is never chosen
        np.testing.assert_allclose(found[known], wanted[known], atol=1e-3)


@pytest.mark.parametrize("name", [*SENTENCES, *TRANSLATORS])
def test_texts_become_the_tokens_of_transformers(name: str, bundles: Any) -> None:
    vocabulary = Vocabulary(bundles(name))
    for row in golden(name):
        assert vocabulary.encode(row["text"]).tokens == row["tokens"]


@pytest.mark.parametrize("name", SENTENCES)
def test_the_graph_is_close_to_the_float_network(name: str, bundles: Any) -> None:
    """int8 weights and activations of a network with random weights of 32 channels: cosine of 0.99 at least."""
    with EncoderModel.open(bundles(name).path) as model:
        for row in golden(name):
            found, wanted = model.read(row["tokens"]), np.array(row["result"], np.float32)
            found = found[1::2] if name == "bert-several" else found
            assert found @ wanted / (np.linalg.norm(found) * np.linalg.norm(wanted)) > 0.99


@pytest.mark.parametrize("name", TRANSLATORS)
def test_the_translators_graph_is_close_to_the_float_network(name: str, bundles: Any) -> None:
    opened = checkpoint(name)
    with Translator.open(bundles(name).path) as model:
        for row in golden(name):
            target = [opened.config.start_id, *row["target"]][: len(row["logits"])]  # type: ignore[union-attr]
            found = model.force(row["tokens"], target)
            wanted = np.array(row["logits"], np.float32)
            known = np.abs(wanted) < 1e30
            f, w = found[known], wanted[known]
            assert f @ w / (np.linalg.norm(f) * np.linalg.norm(w)) > 0.99


def test_every_tensor_of_a_network_is_read(name: str = "bert-classify") -> None:
    opened = checkpoint(name)
    for tensor, shape in tensor_shapes(opened.config).items():
        assert opened.read(tensor).shape == shape
