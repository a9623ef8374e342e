"""A real sentence encoder, from checkpoint to vector: all-MiniLM-L6-v2. About two minutes on two cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converters.encoders.checkpoint import open_encoder
from converters.encoders.ops_numpy import reference_sentence
from device_runtime.engine.encoder.encoder_model import EncoderModel

CHECKPOINT = os.environ.get("STONECHAT_MINILM", "")
GOLDEN = Path(__file__).parents[1] / "data" / "encoders" / "minilm" / "golden.json"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(CHECKPOINT, "config.json").is_file(),
        reason="STONECHAT_MINILM does not name the folder; run `make test-all`, which downloads it",
    ),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm") / "bundle"
    command = [sys.executable, "-m", "toolkit", "convert", CHECKPOINT, "--profile", "pi", "-o", str(folder)]
    subprocess.run(command, check=True)
    return folder


def test_the_float_network_gives_the_vectors_of_transformers() -> None:
    checkpoint = open_encoder(Path(CHECKPOINT))
    assert checkpoint is not None
    for row in json.loads(GOLDEN.read_text(encoding="utf-8"))["rows"]:
        found = reference_sentence(checkpoint.config, checkpoint.read, row["tokens"])
        np.testing.assert_allclose(found, row["result"], atol=2e-5)


def test_in_int8_200_sentences_keep_a_cosine_of_0995(bundle: Path) -> None:
    command = [sys.executable, "-m", "toolkit", "eval", str(bundle), "--against", CHECKPOINT, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["sentences"] == 200
    assert figures["least_cosine"] >= 0.995


def test_in_tflite_micro_200_sentences_keep_a_cosine_of_0995(tmp_path: Path) -> None:
    pytest.importorskip("tflite_micro")
    bundle = str(tmp_path / "micro")
    command = [sys.executable, "-m", "toolkit", "convert", CHECKPOINT, "--profile", "micro", "-o", bundle]
    subprocess.run(command, check=True)
    command = [sys.executable, "-m", "toolkit", "eval", bundle, "--against", CHECKPOINT, "--backend", "tflm", "--json"]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(figures)
    assert figures["sentences"] == 200
    assert figures["least_cosine"] >= 0.995


def test_a_text_is_nearest_to_what_it_means(bundle: Path) -> None:
    labels = ["overheating", "leak", "everything is normal"]
    texts = ["The pump is far too hot.", "Water drips out of the pipe.", "All values are as they should be."]
    with EncoderModel.open(bundle) as model:
        assert [label for label, _ in model.nearest(texts, labels)] == labels
