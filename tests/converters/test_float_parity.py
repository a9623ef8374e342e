"""The float reference gives the logits that transformers gave for the same checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from converters.checkpoints import open_checkpoint
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import KvCache, NumpyOps

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
FOLDERS = sorted(p.name for p in CHECKPOINTS.iterdir() if p.is_dir())


def test_there_are_checkpoints_of_every_kind():
    assert {"gqa-tied", "mha-untied-sharded", "llama3-rope", "yarn-biases", "linear-rope"} <= set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_agree_with_transformers_to_1e_3(name):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    golden = np.load(CHECKPOINTS / name / "logits.npz")
    read = CanonicalWeights(checkpoint.config, checkpoint.read)
    logits = decoder(NumpyOps(checkpoint.config, read, golden["tokens"][None]), checkpoint.config)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-3)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_sequence_in_two_parts_gives_what_the_whole_gives(name):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    config, tokens = checkpoint.config, np.load(CHECKPOINTS / name / "logits.npz")["tokens"]
    read = CanonicalWeights(config, checkpoint.read)
    whole = decoder(NumpyOps(config, read, tokens[None]), config)
    first = NumpyOps(config, read, tokens[None, :40])
    decoder(first, config)
    rest = decoder(NumpyOps(config, read, tokens[None, 40:], first.cache), config)
    np.testing.assert_allclose(rest, whole[40:], atol=1e-4)  # float32 sums in another order


def test_one_past_serves_many_sequences():
    checkpoint = open_checkpoint(CHECKPOINTS / "gqa-tied")
    config, tokens = checkpoint.config, np.load(CHECKPOINTS / "gqa-tied" / "logits.npz")["tokens"]
    read = CanonicalWeights(config, checkpoint.read)
    first = NumpyOps(config, read, tokens[None, :4])
    decoder(first, config)
    past = KvCache(first.cache.layers)
    both = np.stack([tokens[4:20], tokens[20:36]])
    together = decoder(NumpyOps(config, read, both, past), config).reshape(2, 16, -1)
    for row, sequence in zip(together, both, strict=True):
        alone = decoder(NumpyOps(config, read, sequence[None], past), config)
        np.testing.assert_allclose(row, alone, atol=1e-4)


def test_a_gguf_file_gives_the_logits_of_its_folder():
    """llama3-rope.gguf holds the folder's own BF16 weights, so only float32 rounding is between them."""
    golden = np.load(CHECKPOINTS / "llama3-rope" / "logits.npz")
    checkpoint = open_checkpoint(CHECKPOINTS / "llama3-rope.gguf")
    read = CanonicalWeights(checkpoint.config, checkpoint.read)
    logits = decoder(NumpyOps(checkpoint.config, read, golden["tokens"][None]), checkpoint.config)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-3)
