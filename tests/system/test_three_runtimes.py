"""One micro graph in three runtimes: TFLite Micro, LiteRT, and tflite-runtime 2.14 in an environment of its own.

tflite-runtime needs numpy 1, so it runs in the Python that STONECHAT_TFLITE214_PYTHON names (`make test` makes
one); that environment has none of the converter's packages, as on a board.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters.network.weights import CanonicalWeights
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Backend
from device_runtime.engine.backends.interpreter import LiteRtBackend
from tests.support.micro_bundles import Network, micro_bundle, random_network, relative_error

ROOT = Path(__file__).parents[2]
PROMPT = [11, 42, 99, 7]
NEW = 24  # tokens of the answer

TEXT = [int(t) for t in np.random.default_rng(4).integers(0, 160, 32)]


def counting(network: Network) -> Network:
    """The same network with a head that answers each word with the one 7 further on, and so is sure of itself."""
    rows = np.roll(network.read("embed.weight"), 7, axis=0)
    read = CanonicalWeights(
        network.config, lambda name: rows.copy() if name == "head.weight" else network.read(name).copy()
    )
    return Network(network.config, read, network.prefix_tokens)


# Seeds whose closest choice is clear: at least 0.6 standard deviations of the logits, rounding errors being 0.04.
NETWORKS = {
    "tied": random_network(seed=31),
    "untied": counting(random_network(seed=66, tied_head=False)),
    "attention bias, prefix of 3": counting(
        random_network(seed=42, tied_head=False, attention_bias=True, prefix_tokens=(5, 6, 7))
    ),
    "one key head for all, no prefix": counting(random_network(seed=15, tied_head=False, kv_heads=1, prefix_tokens=())),
}

# Runs in the other environment: a greedy answer, and the logits of a given text, to a file.
CHILD = f"""
import sys
import numpy as np
from device_runtime.engine.backends.interpreter import TfliteRuntimeBackend
from device_runtime.bundle.folder import Bundle

backend = TfliteRuntimeBackend(Bundle.open(sys.argv[1]), 1)
logits, answer = backend.prefill({PROMPT}), []
for _ in range({NEW}):
    answer.append(int(logits.argmax()))
    logits = backend.decode(answer[-1])
backend.rewind(0)
logits = np.stack([backend.decode(token).copy() for token in {TEXT}])
assert not [m for m in sys.modules if m.split(".")[0] in ("converters", "toolkit", "ai_edge_litert", "gguf")]
np.savez(sys.argv[2], answer=answer, logits=logits)
"""


Results = tuple[list[int], np.ndarray]


def run(backend: Backend) -> Results:
    """The greedy answer to PROMPT, and the logits of TEXT, (tokens, vocabulary)."""
    logits, answer = backend.prefill(PROMPT), []
    for _ in range(NEW):
        answer.append(int(logits.argmax()))
        logits = backend.decode(answer[-1])
    backend.rewind(0)
    rows = np.stack([backend.decode(token).copy() for token in TEXT])
    backend.close()
    return answer, rows


def in_tflm(bundle: Bundle, folder: Path) -> Results:
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed (x86_64 only)")
    from device_runtime.engine.backends.tflm import TflmBackend

    return run(TflmBackend(bundle, 1))


def in_tflite_runtime(bundle: Bundle, folder: Path) -> Results:
    python = os.environ.get("STONECHAT_TFLITE214_PYTHON")
    if not python or not Path(python).exists():
        pytest.skip("STONECHAT_TFLITE214_PYTHON names no Python with tflite-runtime 2.14; `make test` sets it")
    found = subprocess.run(
        [python, "-c", CHILD, str(bundle.path), str(folder / "answer.npz")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    results = np.load(folder / "answer.npz")
    return results["answer"].tolist(), results["logits"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def bundle(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return micro_bundle(tmp_path_factory.mktemp("runtimes") / "bundle", network)


@pytest.fixture(scope="module")
def in_litert(bundle: Bundle) -> Results:
    return run(LiteRtBackend(bundle, 1))


@pytest.mark.parametrize("other", [in_tflm, in_tflite_runtime])
def test_answers_are_the_same_and_logits_close(
    other: Callable[[Bundle, Path], Results], bundle: Bundle, in_litert: Results, tmp_path: Path
) -> None:
    """Kernels round sums of int8 products in different ways: a step of a grid here and there. That is an error of
    the size of the quantization error itself, which tests/converters/test_micro_graph.py explains; 1 to 4 % was
    measured. Where LiteRT is sure of the next word, the other is too."""
    answer, logits = in_litert
    other_answer, other_logits = other(bundle, tmp_path)
    assert other_answer == answer
    assert relative_error(other_logits, logits) < 0.08
    ranked = np.sort(logits, axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > 0.3 * logits.std()
    assert sure.sum() >= 10
    assert (other_logits.argmax(1) == logits.argmax(1))[sure].all()


def test_the_answer_is_that_of_the_float_network(network: Network, in_litert: Results) -> None:
    answer, logits = in_litert
    assert network.logits([*PROMPT, *answer])[len(PROMPT) - 1 : -1].argmax(1).tolist() == answer
    assert relative_error(logits, network.logits(TEXT)) < 0.08


def test_most_answers_are_not_one_word_repeated(network: Network, in_litert: Results) -> None:
    """So that equal answers mean something. A random tied network repeats itself: its word is its own best match."""
    if not network.config.head.tied:
        assert len(set(in_litert[0])) == NEW
