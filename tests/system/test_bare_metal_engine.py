"""The engine computes the same bits on Cortex-M and RISC-V, which QEMU emulates, as on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle.manifest import IMAGE
from device_runtime.micro.library import CEngine, compiler
from tests.support.bare_metal import BOARDS, missing_tools, run_image
from tests.support.micro_bundles import micro_bundle, random_network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="there is no C compiler here"),
]
NETWORKS = {
    "heads of 16": random_network(),
    # nothing is a multiple of 16, and a head_dim of 8 takes the short way through attention on SMLAD
    "odd sizes": random_network(width=40, heads=3, kv_heads=1, head_dim=10, ffn_width=52, vocabulary=77),
    "heads of 8": random_network(width=64, heads=8, kv_heads=4, head_dim=8, ffn_width=172, vocabulary=77),
    "int4 weights": random_network(width=32, heads=5, kv_heads=1, head_dim=18, ffn_width=288, vocabulary=77),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("core", BOARDS)
def test_a_board_gives_the_bits_of_this_machine(core: str, name: str, tmp_path: Path) -> None:
    if missing := missing_tools(BOARDS[core].family):
        pytest.skip(missing)
    bundle = micro_bundle(tmp_path / "bundle", NETWORKS[name], weights="int4" if "int4" in name else "int8")
    engine = CEngine(bundle.path / IMAGE)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, engine.needs.vocabulary, 20)]
    digest = hashlib.sha256()
    for token in tokens:
        engine.feed(token)
        digest.update(engine.logits.tobytes())
    found, _ = run_image(BOARDS[core], tmp_path, bundle.path / IMAGE, tokens)
    assert found == digest.hexdigest()
