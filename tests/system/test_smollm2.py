"""A real model, from checkpoint to answer: SmolLM2-135M-Instruct, as `make demo` uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from device_runtime.engine import LanguageModel

CHECKPOINT = os.environ.get("STONECHAT_SMOLLM2", "")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(CHECKPOINT).is_file(),
        reason="STONECHAT_SMOLLM2 does not name the checkpoint; run `make test-all`, which downloads it",
    ),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, converted as a user does it. Memory is bounded by the largest layer, not by the model."""
    folder = tmp_path_factory.mktemp("smollm2") / "bundle"
    command = [sys.executable, "-m", "toolkit", "convert", CHECKPOINT, "--profile", "pi", "-o", str(folder), "--json"]
    started_s = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    peak_mb = usage.ru_maxrss * 1024 / 1e6
    quality = json.loads(out)["quality"]
    print(f"\nconverted in {time.monotonic() - started_s:.0f} s, peak memory {peak_mb:.0f} MB: {quality}")
    assert peak_mb <= 1500
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[LanguageModel]:
    with LanguageModel.open(bundle) as model:
        yield model


def test_the_graph_is_about_as_good_as_the_checkpoint(model: LanguageModel) -> None:
    quality = model.manifest.quality
    assert quality["tokens"] >= 255
    assert quality["float_perplexity"] < 40
    assert quality["ratio"] < 1.05


def test_it_knows_the_capital_of_france(model: LanguageModel) -> None:
    generation = model.generate(QUESTION, max_new=40)
    text = "".join(generation)
    assert "Paris" in text
    assert generation.result.finish == "stop"


def test_a_conversation_goes_on_from_the_cache(model: LanguageModel) -> None:
    first = model.generate(QUESTION, max_new=40)
    text = "".join(first)
    turns = [*QUESTION, {"role": "assistant", "content": text}, {"role": "user", "content": "And of Italy?"}]
    second = model.generate(turns, max_new=40)
    assert "Rome" in "".join(second)
    assert second.result.cached_tokens > first.result.prompt_tokens


def test_a_prompt_longer_than_a_window_is_answered(model: LanguageModel) -> None:
    """Past 256 positions the cache moves; what was said before is still known after."""
    text = "The password is swordfish. " + "The weather is fine and the sea is calm. " * 40 + "The password is"
    generation = model.generate(text, max_new=6)
    assert "swordfish" in "".join(generation)
    assert generation.result.prompt_tokens > 256


def test_the_float_reference_answers_as_the_model_is_known_to(model: LanguageModel) -> None:
    """Seven tokens of "The capital of France is Paris.", token by token with a cache."""
    from converters.checkpoints import open_checkpoint
    from converters.network import decoder
    from converters.ops_numpy import KvCache, NumpyOps, with_head

    checkpoint = open_checkpoint(Path(CHECKPOINT))
    read = with_head(checkpoint.config, checkpoint.read)
    tokens, cache, said = model.encode(QUESTION), KvCache(), []
    for _ in range(7):
        ops = NumpyOps(checkpoint.config, read, np.array([tokens]), cache)
        said.append(int(decoder(ops, checkpoint.config)[-1].argmax()))
        tokens, cache = said[-1:], ops.cache
    text = model._tokenizer.decode(said)
    assert text == "The capital of France is Paris."
