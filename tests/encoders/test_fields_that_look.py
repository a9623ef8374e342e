"""Each field of a tuned encoder weighs the rows of a text by itself: in float, in LiteRT and in TFLite Micro."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from converters.emit.lint import check_graph
from converters.encoders.network import EncoderConfig
from converters.encoders.ops_numpy import NumpyReading, reference_sentence, reference_sentences
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.encoder.encoder_model import EncoderModel
from tests.support.tuned_encoder import tuned_checkpoint, tuned_encoder

FIELDS = (3, 2)
TOKENS = np.random.default_rng(5).integers(5, 60, 40).tolist()


def test_a_field_takes_the_logits_of_the_rows_that_it_looks_at() -> None:
    ops = NumpyReading(lambda name: np.zeros(0), [1, 2, 3])
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    scores = np.array([[0, -50], [50, -50], [0, 0]], np.float32)  # the second row, and the third
    np.testing.assert_allclose(ops.look(scores, values, FIELDS), [[5, 6, 7, 13, 14]])
    np.testing.assert_allclose(ops.look(scores * 0, values, FIELDS), values.mean(axis=0, keepdims=True))


def test_texts_side_by_side_do_not_see_each_other() -> None:
    checkpoint = tuned_checkpoint()
    assert isinstance(checkpoint.config, EncoderConfig)
    texts = [TOKENS[:9], TOKENS[9:18]]
    found = reference_sentences(checkpoint.config, checkpoint.read, texts)
    for row, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(row, reference_sentence(checkpoint.config, checkpoint.read, text), atol=1e-4)


@pytest.mark.parametrize(
    ("profile", "backend"), [("pi", "litert"), ("micro", "litert"), ("micro", "tflm")]
)  # of what each computes with
def test_a_bundle_gives_what_the_float_network_gives(
    profile: Literal["pi", "micro"], backend: str, tmp_path: Path
) -> None:
    """int8 weights alone are 0.4 % off each; this network is 16 wide, so little averages out. A text fills a part of
    the graph's rows, all of them, or one: what comes after its end has no share."""
    if backend == "tflm":
        pytest.importorskip("tflite_micro")
    checkpoint = tuned_checkpoint()
    assert isinstance(checkpoint.config, EncoderConfig)
    bundle = Bundle.open(tuned_encoder(tmp_path / "bundle", 40, profile))
    assert profile == "pi" or check_graph(bundle.model_path) == []
    with EncoderModel.open(bundle.path, backend=backend) as model:
        for length in (40, 33, 7, 1):
            wanted = reference_sentence(checkpoint.config, checkpoint.read, TOKENS[:length])
            found = model.read(TOKENS[:length])
            assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.995
