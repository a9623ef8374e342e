"""int4 weights in blocks: the engine's matmuls against numpy's whole numbers, and against the network in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.emit.c.calls import BlockMatmul
from converters.emit.c.model import write_model_image
from device_runtime.bundle.manifest import IMAGE
from device_runtime.micro.library import CEngine, compiler
from tests.support.engine_cases import block_matmuls, stored_logits, traced_buffers
from tests.support.micro_bundles import Network, micro_bundle, random_network, relative_error

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
NETWORKS = {
    "two ranges": random_network(ffn_width=288),
    "every bias": random_network(attention_bias=True, output_bias=True, ffn_bias=True, tied_head=False, layers=1),
    # rows that are no multiple of four, and matmuls that keep 8 bits because their columns are none of 32
    "odd rows": random_network(width=32, heads=5, kv_heads=1, head_dim=6, ffn_width=70, vocabulary=77, layers=1),
    "long sums": random_network(width=64, ffn_width=2368, layers=1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_matmul_gives_numpys_whole_numbers(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    graph = tmp_path / "model.tflite"
    network.write(graph, 40, fast=True, weights="int4")
    image = write_model_image(graph, tmp_path / IMAGE)
    engine = CEngine(tmp_path / IMAGE)
    for token in np.random.default_rng(3).integers(0, network.config.vocabulary, 5):
        stored = traced_buffers(engine, image, int(token))
        expected = block_matmuls(graph, stored)
        assert len(expected) == sum(isinstance(call, BlockMatmul) for call in image.calls) > 0
        for result, values in expected.items():
            np.testing.assert_array_equal(stored[result], values, result)


def test_int4_is_near_the_network_in_float(tmp_path: Path) -> None:
    """Weights drawn from a normal distribution lose 9 % to a grid of 16 values with the largest of 32 at its end, and
    each of the seven matmuls on a token's way adds its share; int8 leaves 4 %."""
    network: Network = NETWORKS["two ranges"]
    bundle = micro_bundle(tmp_path / "bundle", network, weights="int4")
    engine = CEngine(bundle.path / IMAGE)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, 160, 30)]
    found = (stored_logits(engine, tokens) - engine.zero_point) * engine.scale
    assert 0.05 < relative_error(found, network.logits(tokens)) < 0.25


def test_the_image_of_int4_weights_takes_two_thirds_of_that_of_int8(tmp_path: Path) -> None:
    network = random_network(width=128, ffn_width=384, vocabulary=64)
    sizes = [
        (micro_bundle(tmp_path / weights, network, weights=weights).path / IMAGE).stat().st_size  # type: ignore[arg-type]
        for weights in ("int4", "int8")
    ]
    assert sizes[0] < 0.67 * sizes[1]
