"""Every family: small random checkpoints give the logits that transformers gave, in every form that they come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_checkpoints import COLUMNS, VARIANTS, golden, write_folder
from family_gguf import NOT_IN_GGUF, write_family_gguf

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps


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
