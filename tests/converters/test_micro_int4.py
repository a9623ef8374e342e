"""int4 weights in the micro profile: what the bundle says of itself, and what runs it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from boards import load_board
from boards.fit import Subject, fit
from converters.checkpoints import Checkpoint
from converters.convert import Options, convert
from converters.emit.lint import check_graph
from converters.plan import plan_for, subject_of
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE
from device_runtime.engine.backends import open_backend
from device_runtime.errors import BackendError
from device_runtime.micro.library import CEngine, compiler
from tests.support.random_checkpoint import float_logits, random_checkpoint

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return random_checkpoint(width=64, ffn_width=128, head_dim=32, heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("int4") / "bundle"
    return convert(checkpoint, folder, Options("micro", 64, weights="int4", fast=True))


def test_the_manifest_says_that_only_the_c_engine_runs_it(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.weight_bits, manifest.backends, manifest.arena) == (4, ("native",), None)
    with pytest.raises(BackendError, match="'tflm' cannot run this bundle: its int4 weights run in native only"):
        open_backend(bundle, "tflm")


def test_the_c_engine_is_taken_without_asking_and_is_near_the_float_network(
    bundle: Bundle, checkpoint: Checkpoint
) -> None:
    """Random weights lose 9 % in each matmul on the way, see test_block_kernels.py."""
    backend = open_backend(bundle)
    tokens = [int(t) for t in np.random.default_rng(2).integers(3, 384, 20)]
    found = np.array([backend.decode(token).copy() for token in tokens])
    expected = float_logits(checkpoint, bundle.manifest.prefix_tokens, tokens)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97
    CEngine(bundle.path / IMAGE).self_test()


def test_tflite_micros_rules_name_the_weights(bundle: Bundle) -> None:
    found = check_graph(bundle.model_path)
    assert found and all(v.problem == "int4 weights with a scale for each block" for v in found)
    assert "--weights int8" in found[0].remedy
    assert check_graph(bundle.model_path, blocks=True) == []


def test_a_board_whose_flash_is_too_small_for_int8_gets_int4(checkpoint: Checkpoint) -> None:
    board = load_board("mps2-an386")
    sizes = {w: fit(board, subject_of(checkpoint, "micro", 64, w), remedies=False) for w in ("int8", "int4")}
    stored = {weights: int(found.figures["storage"].value) for weights, found in sizes.items()}
    assert stored["int4"] < stored["int8"]
    between = replace(board, storage=replace(board.storage, model_kib=(stored["int4"] >> 10) + 1))
    assert plan_for(checkpoint, between, None, 64)[2] == "int4"
    assert plan_for(checkpoint, board, None, 64)[2] == "int8"


def test_what_is_computed_beforehand_is_what_the_bundle_has(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Within 5 %: what a calibration chooses is not known beforehand."""
    made, computed = Subject.of_manifest(bundle.manifest), subject_of(checkpoint, "micro", 64, "int4")
    assert computed.graph_bytes == pytest.approx(made.graph_bytes, rel=0.05)
    assert made.graph.weight_bytes == computed.graph.weight_bytes
