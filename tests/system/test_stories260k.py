"""A real, trained model of 260,000 weights from the checkpoint to the C engine: its story stays a story."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import KvCache, NumpyOps
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend
from device_runtime.micro.library import compiler

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K.bin"
pytestmark = pytest.mark.skipif(not STORIES.is_file(), reason="../shared/data/stories260K.bin is not here")
STEPS = 200


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(STORIES)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return convert(checkpoint, tmp_path_factory.mktemp("stories") / "bundle", Options("micro", context=256, fast=True))


def test_the_float_network_tells_the_story_that_llama2c_tells(checkpoint: Checkpoint) -> None:
    """The first words are those that llama2.c prints for this model with `-t 0`."""
    read, text = (
        CanonicalWeights(checkpoint.config, checkpoint.read),
        SentencePieceProcessor(model_proto=checkpoint.tokenizer.content),
    )
    tokens, past, new = [checkpoint.tokenizer.bos_id], KvCache(), [checkpoint.tokenizer.bos_id]
    for _ in range(60):
        ops = NumpyOps(checkpoint.config, read, np.array([new]), past)
        new = [int(np.asarray(decoder(ops, checkpoint.config))[-1].argmax())]
        past = ops.cache
        tokens += new
    assert text.decode(tokens).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed")
def test_the_c_engine_and_tflite_micro_write_the_same_200_tokens(bundle: Bundle) -> None:
    ours, theirs = (open_backend(bundle, name) for name in ("native", "tflm"))
    token, answer = bundle.manifest.tokenizer.bos_id or 1, []
    for _ in range(STEPS):
        expected, found = theirs.decode(token), ours.decode(token)
        assert np.array_equal(found, expected), len(answer)
        token = int(found.argmax())
        answer.append(token)
    text = SentencePieceProcessor(model_file=str(bundle.path / "tokenizer.model")).decode(answer)
    assert text.startswith("Once upon a time, there was a") and text.count(".") > 5


@pytest.mark.slow  # a whole conversion with GPTQ: 20 s
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
def test_with_int4_weights_it_is_still_a_story(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The network has five layers of width 64: of 260,000 weights, few are left over to make up for a rounded one."""
    bundle = convert(checkpoint, tmp_path / "bundle", Options("micro", context=256, weights="int4"))
    assert bundle.manifest.quality["ratio"] < 1.1
    backend = open_backend(bundle)
    token, answer = bundle.manifest.tokenizer.bos_id or 1, []
    for _ in range(STEPS):
        token = int(backend.decode(token).argmax())
        answer.append(token)
    text = SentencePieceProcessor(model_file=str(bundle.path / "tokenizer.model")).decode(answer)
    assert text.startswith("Once upon a time, there was a") and text.count(".") > 5
