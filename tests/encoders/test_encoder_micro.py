"""Sentence encoders in the profile `micro`: one file that TFLite Micro and LiteRT run, close to the float network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.emit.lint import check_graph
from converters.encoders.checkpoint import EncoderCheckpoint, open_encoder
from converters.encoders.convert import EncoderOptions, convert_encoder, subject_of_encoder
from converters.encoders.ops_numpy import reference_sentence
from converters.encoders.quality import encoder_quality
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.errors import ArchitectureError, ConfigurationError, ContextOverflowError
from tests.encoders.conftest import FOLDER
from toolkit.cli import main

CONTEXT = 40
NAMES = ["bert-embed", "bert-classify", "distilbert", "roberta", "xlm-roberta"]
TOKENS = np.random.default_rng(5).integers(5, 60, CONTEXT).tolist()
pytest.importorskip("tflite_micro")


def checkpoint_of(name: str) -> EncoderCheckpoint:
    checkpoint = open_encoder(FOLDER / name)
    assert checkpoint is not None
    return checkpoint


def micro(name: str, folder: Path, **options: Any) -> Bundle:
    return convert_encoder(checkpoint_of(name), folder / name, EncoderOptions("micro", CONTEXT, **options))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("name", NAMES)
def test_tflite_micro_and_litert_give_what_the_float_network_gives(name: str, tmp_path: Path) -> None:
    """int8 weights alone are 0.4 % off each; these networks are 16 to 48 wide, so little averages out."""
    bundle, checkpoint = micro(name, tmp_path, fast=True), checkpoint_of(name)
    assert check_graph(bundle.model_path) == []
    assert bundle.manifest.arena is not None
    with EncoderModel.open(bundle.path, backend="tflm") as board, EncoderModel.open(bundle.path) as desk:
        for length in (CONTEXT, 7, 1):
            found = board.read(TOKENS[:length])
            expected = reference_sentence(checkpoint.config, checkpoint.read, TOKENS[:length])
            assert cosine(found, expected) > 0.995
            # Kernels round differently at ties, a step of int16 each
            np.testing.assert_allclose(desk.read(TOKENS[:length]), found, atol=0.01 * np.abs(expected).max())


def test_padding_changes_nothing(tmp_path: Path) -> None:
    bundle = micro("bert-embed", tmp_path, fast=True)
    longer = convert_encoder(checkpoint_of("bert-embed"), tmp_path / "longer", EncoderOptions("micro", 60, fast=True))
    with EncoderModel.open(bundle.path) as short, EncoderModel.open(longer.path) as long:
        # other ranges, from longer calibration texts; see above
        assert cosine(short.read(TOKENS[:9]), long.read(TOKENS[:9])) > 0.999


def test_a_classifier_answers_with_its_labels(tmp_path: Path, bundles: Any) -> None:
    bundle = micro("bert-classify", tmp_path, fast=True)
    with EncoderModel.open(bundle.path) as model, EncoderModel.open(bundles("bert-classify").path) as pi:
        found, expected = model.classify("The pump is hot."), pi.classify("The pump is hot.")
        assert found.answer == expected.answer
        with pytest.raises(ContextOverflowError):
            model.classify("pump " * 200)


def test_the_report_is_measured_and_compensation_brings_the_graph_closer(tmp_path: Path) -> None:
    fast, whole = (micro("bert-embed", tmp_path / str(fast), fast=fast) for fast in (True, False))
    assert whole.manifest.quality["least_cosine"] > 0.998
    found = [encoder_quality(bundle, checkpoint_of("bert-embed"), backend="tflm")["cosine"] for bundle in (fast, whole)]
    assert found[0] <= found[1] + 1e-5


def test_an_estimate_counts_what_the_graph_will_have(tmp_path: Path) -> None:
    bundle = micro("bert-embed", tmp_path, fast=True)
    counts = bundle.manifest.counts["micro"]
    estimate = subject_of_encoder(checkpoint_of("bert-embed"), CONTEXT, "micro").counts["micro"]
    for name in ("signatures", "rows", "matmul_bytes", "operators", "kv_cache_bytes_per_position"):
        assert getattr(estimate, name) == getattr(counts, name), name
    assert estimate.activation_bytes(CONTEXT) == counts.activation_bytes(CONTEXT)


def test_a_backend_that_does_not_run_the_profile_is_refused(bundles: Any) -> None:
    with pytest.raises(ConfigurationError, match="TFLite Micro runs bundles of the profile micro"):
        EncoderModel.open(bundles("bert-embed").path, backend="tflm")
    with pytest.raises(ConfigurationError, match="no backend 'native' for encoders"):
        EncoderModel.open(bundles("bert-embed").path, backend="native")


def test_a_translator_has_no_graph_in_micro(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="no graph in the profile micro"):
        convert_encoder(checkpoint_of("marian"), tmp_path / "bundle", EncoderOptions("micro"))


def test_a_microcontroller_is_refused_because_the_firmware_reads_token_by_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(FOLDER / "bert-embed"), "--board", "stm32h743", "-o", str(tmp_path / "out")]) == 1
    assert "stonechat's firmware reads token by token" in capsys.readouterr().err


def test_the_command_converts_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, bundle = str(FOLDER / "bert-embed"), str(tmp_path / "bundle")
    assert main(["convert", folder, "--profile", "micro", "--context", "40", "-o", bundle, "--fast"]) == 0
    assert main(["eval", bundle, "--against", folder, "--backend", "tflm", "--sentences", "3"]) == 0
    assert "cosine" in capsys.readouterr().out
