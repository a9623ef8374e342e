"""Rotation changes the basis of a network and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from converters.checkpoints import open_checkpoint
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from converters.quantize.rotation import RotatedWeights, rotation_matrix, turned_rows

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"


@pytest.mark.parametrize("width", [16, 48, 64, 576, 100])
def test_the_matrix_is_orthogonal_and_spreads_every_channel(width):
    matrix = rotation_matrix(width)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-5)
    power_of_two = width & -width
    # A row's largest element: that of the small random factor, over the root of the Hadamard factor's size.
    assert np.abs(matrix).max() <= 1 / np.sqrt(power_of_two) + 1e-6


def test_the_matrix_is_the_same_every_time():
    np.testing.assert_array_equal(rotation_matrix(48), rotation_matrix(48))


@pytest.mark.parametrize("width", [1024, 1152, 1536, 2880, 3072])
def test_two_steps_give_what_the_whole_matrix_gives(width):
    rows = np.random.default_rng(1).standard_normal((3, 5, width)).astype(np.float32)
    np.testing.assert_allclose(turned_rows(rows), rows @ rotation_matrix(width), atol=2e-5)


@pytest.mark.parametrize("name", ["gqa-tied", "mha-untied-sharded", "yarn-biases"])
def test_a_rotated_network_gives_the_same_logits(name):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    config, tokens = checkpoint.config, np.load(CHECKPOINTS / name / "logits.npz")["tokens"][None]
    read = CanonicalWeights(config, checkpoint.read)
    order = {i: np.random.default_rng(i).permutation(config.largest_ffn_width) for i in range(config.layers)}
    weights = RotatedWeights(read, order)
    plain = NumpyOps(config, read, tokens)
    rotated = NumpyOps(weights.config, weights, tokens)
    # float32 products in another order: the logits are of the order of 10
    np.testing.assert_allclose(decoder(rotated, weights.config), decoder(plain, config), atol=2e-3)
    turned = weights.rotate_cache(plain.cache)
    for (keys, values), (rotated_keys, rotated_values) in zip(turned.layers, rotated.cache.layers, strict=True):
        np.testing.assert_allclose(keys, rotated_keys, atol=1e-3)
        np.testing.assert_allclose(values, rotated_values, atol=1e-3)


def test_a_row_of_a_tied_head_maps_to_its_embedding():
    checkpoint = open_checkpoint(CHECKPOINTS / "gqa-tied")
    read = CanonicalWeights(checkpoint.config, checkpoint.read)
    rotated = RotatedWeights(read, {})
    mapped = rotated("head.weight") @ rotated.embedding_map
    np.testing.assert_allclose(mapped, rotated("embed.weight"), atol=1e-4)
