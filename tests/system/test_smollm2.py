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

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel

CHECKPOINT = os.environ.get("STONECHAT_SMOLLM2", "")
# Each token of its answer is surer than the next by a nat: "What is the capital of France?" is a tie of 0.1 even to the
# float network, which runs of another length decide another way.
QUESTION = [{"role": "user", "content": "Name the capital of France."}]

ROOT = Path(__file__).parents[2]
# Texts that leave a language model little choice: in benchmarks/runtimes.py the best token leads by 0.7 or more.
SURE = (
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    "def f0(x):\n    return x + 0\n\ndef f1(x):\n    return x + 1\n\ndef f2(x):\n    return x + 2\n\ndef f3(x):",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(CHECKPOINT).is_file(),
        reason="STONECHAT_SMOLLM2 does not name the checkpoint; run `make test-all`, which downloads it",
    ),
]


def converted(folder: Path, *flags: object) -> float:
    """Convert as a user does it; returns the peak memory, MB."""
    command = [sys.executable, "-m", "toolkit", "convert", CHECKPOINT, *map(str, flags), "-o", str(folder), "--json"]
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
    return peak_mb


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Memory is bounded by the largest layer, not by the model."""
    folder = tmp_path_factory.mktemp("smollm2") / "bundle"
    assert converted(folder, "--profile", "pi") <= 1500
    return folder


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for windows of 512 behind the prefix."""
    folder = tmp_path_factory.mktemp("smollm2-micro") / "bundle"
    assert converted(folder, "--profile", "micro", "--context", 513) <= 3000
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
    from converters.network.decoder import decoder
    from converters.network.weights import CanonicalWeights
    from converters.ops.numpy import KvCache, NumpyOps

    checkpoint = open_checkpoint(Path(CHECKPOINT))
    read = CanonicalWeights(checkpoint.config, checkpoint.read)
    tokens, cache, said = model.encode(QUESTION), KvCache(), []
    for _ in range(7):
        ops = NumpyOps(checkpoint.config, read, np.array([tokens]), cache)
        said.append(int(decoder(ops, checkpoint.config)[-1].argmax()))
        tokens, cache = said[-1:], ops.cache
    text = model._tokenizer.decode(said)
    assert text == "The capital of France is Paris."


class TestMicro:
    """Static int8 with an int8 kv_cache, as it runs in LiteRT's Interpreter."""

    def test_it_is_within_one_percent_of_the_float_network(self, micro: Path) -> None:
        """On text that calibration never saw, of three kinds, in windows of 512."""
        command = [sys.executable, "-m", "toolkit", "eval", str(micro), "--against", CHECKPOINT, "--window", "512"]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        print(f"\n{done.stdout}")
        assert result["tokens"] >= 8000
        assert len(result["kinds"]) == 3
        assert result["ratio"] <= 1.01
        assert all(kind["ratio"] <= 1.02 for kind in result["kinds"].values())
        assert result["top1_agreement"] >= 0.95

    def test_tflite_micro_ran_it_and_its_arena_is_known(self, micro: Path) -> None:
        pytest.importorskip("tflite_micro", reason="tflite-micro is not installed (x86_64 only)")
        arena = Bundle.open(micro).manifest.arena
        assert arena is not None
        assert arena.kv_cache_bytes == 2 * 30 * 3 * 64 * 513
        assert arena.head_bytes < 200_000

    @pytest.mark.parametrize("text", SURE)
    def test_200_greedy_tokens_are_the_same_in_three_runtimes(self, text: str, micro: Path, tmp_path: Path) -> None:
        """Where the model is sure. Where it hesitates, a rounding may decide: docs/explained/quantization.md."""
        pytest.importorskip("tflite_micro", reason="tflite-micro is not installed (x86_64 only)")
        python = os.environ.get("STONECHAT_TFLITE214_PYTHON")
        if not python or not Path(python).exists():
            pytest.skip("STONECHAT_TFLITE214_PYTHON names no Python with tflite-runtime 2.14; `make test-slow` sets it")
        answers = {}
        for backend, interpreter in (("litert", sys.executable), ("tflm", sys.executable), ("tflite-runtime", python)):
            command = [interpreter, "-m", "toolkit", "run", str(micro), text, "--raw", "--max-new", "200", "--json"]
            done = subprocess.run(
                [*command, "--backend", backend], capture_output=True, text=True, check=True, cwd=ROOT
            )
            answers[backend] = json.loads(done.stdout)
        assert answers["litert"]["completion_tokens"] == 200
        assert answers["litert"]["text"] == answers["tflm"]["text"] == answers["tflite-runtime"]["text"]
