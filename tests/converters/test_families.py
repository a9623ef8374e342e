"""Every family: small random checkpoints give the logits that transformers gave, in every form that they come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_checkpoints import COLUMNS, VARIANTS, golden, write_folder
from family_gguf import NOT_IN_GGUF, write_family_gguf

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from device_runtime.engine.backends import open_backend


def float_logits(checkpoint: Checkpoint, tokens: list[int]) -> np.ndarray:
    config = checkpoint.config.for_context(len(tokens))
    read = CanonicalWeights(config, checkpoint.read)
    return decoder(NumpyOps(config, read, np.array([tokens])), config)


@pytest.mark.parametrize("name", VARIANTS)
def test_float_logits_of_a_folder_agree_with_transformers_to_1e_3(name: str, tmp_path: Path) -> None:
    tokens, expected = golden(name)
    found = float_logits(open_checkpoint(write_folder(tmp_path / "model", name)), tokens)
    np.testing.assert_allclose(found[:, ::COLUMNS], expected, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in NOT_IN_GGUF])
def test_float_logits_of_a_gguf_file_agree_with_transformers_to_1e_3(name: str, tmp_path: Path) -> None:
    tokens, expected = golden(name)
    found = float_logits(open_checkpoint(write_family_gguf(tmp_path / "model.gguf", name)), tokens)
    np.testing.assert_allclose(found[:, ::COLUMNS], expected, atol=1e-3)


def graph_error(folder: Path, name: str, profile: str) -> float:
    """Relative root mean square of the difference that the graph's logits have to float ones, token by token."""
    tokens, _ = golden(name)
    checkpoint = open_checkpoint(write_folder(folder / "model", name))
    context = len(tokens) + 1
    bundle = convert(checkpoint, folder / "bundle", Options(profile, context, fast=True))  # type: ignore[arg-type]
    backend = open_backend(bundle)
    found = np.stack([backend.decode(token).copy() for token in tokens])
    backend.close()
    prefix = list(bundle.manifest.prefix_tokens)
    assert len(prefix) + len(tokens) == context  # the same choice of LongRoPE's frequencies
    expected = float_logits(checkpoint, prefix + tokens)[len(prefix) :]
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


# int8 roundings of 0.7 %, some ten a layer, add up in quadrature; random networks of seven layers amplify them.
MOST = {"pi": 0.13, "micro": 0.18}
QUICK = [("gemma3", "pi"), ("phi4-mini", "pi"), ("exaone4", "pi"), ("gpt_neox", "micro"), ("granite4", "micro")]


@pytest.mark.parametrize(("name", "profile"), QUICK)
def test_graphs_are_close_to_float(name: str, profile: str, tmp_path: Path) -> None:
    assert graph_error(tmp_path, name, profile) < MOST[profile]


@pytest.mark.slow
@pytest.mark.parametrize("profile", MOST)
@pytest.mark.parametrize("name", VARIANTS)
def test_graphs_of_every_family_are_close_to_float(name: str, profile: str, tmp_path: Path) -> None:
    """About a second each: two minutes in all."""
    assert graph_error(tmp_path, name, profile) < MOST[profile]
