"""The backends of the micro profile keep the contract of `Backend`, each in the same way."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import GraphWriter
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE, MODEL
from device_runtime.engine.backends import Backend, open_backend
from device_runtime.engine.backends.interpreter import LiteRtBackend, TfliteRuntimeBackend
from device_runtime.engine.backends.tflm import TflmBackend
from device_runtime.errors import BackendError, BackendMissingError
from device_runtime.micro.library import compiler
from tests.support.micro_bundles import micro_bundle, random_network, relative_error

NETWORK = random_network(prefix_tokens=(4, 8))
CONTEXT = 40
TOKENS = [int(t) for t in np.random.default_rng(2).integers(0, 160, 16)]

needs_tflm = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed (x86_64 only)"
)
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
BACKENDS = [
    pytest.param("litert", id="LiteRT"),
    pytest.param("tflm", id="TFLite Micro", marks=needs_tflm),
    pytest.param("native", id="native", marks=needs_compiler),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return micro_bundle(tmp_path_factory.mktemp("micro") / "bundle", NETWORK, CONTEXT)


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(bundle: Bundle, name: str) -> Iterator[Backend]:
    backend = open_backend(bundle, name, threads=1)
    yield backend
    backend.close()


def decoded(backend: Backend, tokens: list[int]) -> np.ndarray:
    return np.stack([backend.decode(token).copy() for token in tokens])


def test_a_new_backend_stands_right_behind_the_prefix(backend: Backend) -> None:
    assert (backend.position, backend.context) == (2, CONTEXT)
    expected = NETWORK.logits(TOKENS[:1])
    assert relative_error(decoded(backend, TOKENS[:1]), expected) < 0.08
    assert backend.position == 3


def test_logits_are_float32_of_the_vocabulary(backend: Backend) -> None:
    logits = backend.decode(1)
    assert (logits.dtype, logits.shape) == (np.float32, (160,))


def test_the_cache_persists_from_call_to_call(backend: Backend) -> None:
    """See tests/converters/test_micro_graph.py for the tolerance: a lost token is an error of over 10 %."""
    assert relative_error(decoded(backend, TOKENS), NETWORK.logits(TOKENS)) < 0.08


def test_prefill_is_decoding_one_by_one(bundle: Bundle, name: str, backend: Backend) -> None:
    expected = decoded(backend, TOKENS)
    other = open_backend(bundle, name, threads=1)
    assert np.array_equal(other.prefill(TOKENS[:10]), expected[9])
    assert np.array_equal(other.prefill(TOKENS[10:]), expected[-1])
    assert other.position == backend.position == 18
    other.close()


def test_prefill_of_nothing_is_an_error(backend: Backend) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        backend.prefill([])


def test_after_rewinding_the_same_tokens_give_the_same_logits(backend: Backend) -> None:
    first = decoded(backend, TOKENS)
    backend.rewind(7)
    assert backend.position == 7
    assert np.array_equal(decoded(backend, TOKENS[5:]), first[5:])


def test_after_rewinding_nothing_is_left_of_other_tokens(backend: Backend) -> None:
    """Rows of the cache behind the position are masked, whatever they hold, up to the last one."""
    fresh = decoded(backend, TOKENS)
    backend.rewind(0)
    backend.prefill([150 - i for i in range(CONTEXT - 2)])
    assert backend.position == CONTEXT
    backend.rewind(0)
    assert np.array_equal(decoded(backend, TOKENS), fresh)


def test_the_prefix_cannot_be_forgotten(backend: Backend) -> None:
    first = backend.decode(TOKENS[0]).copy()
    backend.rewind(0)
    assert backend.position == 2
    assert np.array_equal(backend.decode(TOKENS[0]), first)


def test_rewinding_does_not_go_forward(backend: Backend) -> None:
    backend.decode(1)
    backend.rewind(30)
    assert backend.position == 3


def test_two_backends_have_two_caches(bundle: Bundle, name: str, backend: Backend) -> None:
    alone = decoded(backend, TOKENS)
    backend.rewind(0)
    other = open_backend(bundle, name, threads=1)
    mixed = []
    for i, token in enumerate(TOKENS):
        mixed.append(backend.decode(token).copy())
        other.decode(i)
    other.close()
    assert np.array_equal(mixed, alone)


def test_threads_do_not_change_the_answer(bundle: Bundle) -> None:
    one, two = LiteRtBackend(bundle, 1), LiteRtBackend(bundle, 2)
    assert np.array_equal(decoded(one, TOKENS), decoded(two, TOKENS))


def test_nothing_is_written_to_stderr(bundle: Bundle, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    backend = open_backend(bundle, name, threads=1)
    backend.decode(1)
    backend.close()
    assert capfd.readouterr() == ("", "")


@needs_tflm
def test_the_arena_is_measured(bundle: Bundle) -> None:
    """It holds the cache and what each operator keeps, and is far from the size that was offered."""
    backend = TflmBackend(bundle, None)
    config = NETWORK.config
    attention = config.blocks[0].attention
    cache_bytes = 2 * config.layers * attention.kv_width * CONTEXT
    arena = backend.arena
    assert arena is not None
    assert arena.total_bytes == arena.head_bytes + arena.tail_bytes
    # Each head's keys and values are tensors of their own, on whole 16 bytes.
    assert cache_bytes <= arena.kv_cache_bytes < cache_bytes + 2 * config.layers * attention.kv_heads * 16
    assert arena.kv_cache_bytes < arena.tail_bytes
    assert arena.pointer_bytes == 8
    assert arena.total_bytes < 200_000


# -- what goes wrong -----------------------------------------------------------------------------------


def broken(bundle: Bundle, folder: Path, content: bytes, file: str = MODEL) -> Bundle:
    """A copy with another graph, past the check of its hash."""
    shutil.copytree(bundle.path, folder)
    (folder / file).write_bytes(content)
    return dataclasses.replace(bundle, path=folder)


def foreign_graph(folder: Path, code: int) -> bytes:
    """One float operator; it takes `x`."""
    with GraphWriter(folder, external=False) as writer:
        graph = writer.subgraph("decode")
        x = graph.input("x", (1,), np.float32)
        graph.output("logits", graph.operator(code, [x], [("y", (1,), np.float32, None)])[0])
        writer.write(folder / "foreign.tflite", "")
    return (folder / "foreign.tflite").read_bytes()


@pytest.mark.parametrize("content", [lambda whole: b"", lambda whole: bytes(500), lambda whole: whole[:3000]])
def test_a_damaged_graph_is_refused(
    content: Callable[[bytes], bytes], bundle: Bundle, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = IMAGE if name == "native" else MODEL
    damaged = broken(bundle, tmp_path / "copy", content((bundle.path / file).read_bytes()), file)
    with pytest.raises(BackendError, match=rf"refused .*{file}"):
        open_backend(damaged, name)
    assert capfd.readouterr().err == ""


def test_a_graph_with_other_inputs_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    foreign = broken(bundle, tmp_path / "copy", foreign_graph(tmp_path, schema.BuiltinOperator.LOGISTIC))
    with pytest.raises(BackendError, match="takes x"):
        LiteRtBackend(foreign, 1)


@needs_tflm
def test_tflite_micro_names_the_operator_that_it_lacks(bundle: Bundle, tmp_path: Path) -> None:
    foreign = broken(bundle, tmp_path / "copy", foreign_graph(tmp_path, schema.BuiltinOperator.GELU))
    with pytest.raises(BackendError, match="GELU"):
        TflmBackend(foreign, None)


@pytest.mark.parametrize(
    ("kind", "module", "command"),
    [
        (LiteRtBackend, "ai_edge_litert", "pip install 'ai-edge-litert~=2.3.0'"),
        (TfliteRuntimeBackend, "tflite_runtime", "pip install 'tflite-runtime==2.14.0'"),
        (TflmBackend, "tflite_micro", "pip install tflite-micro"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    kind: type[LiteRtBackend], module: str, command: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [known for known in sys.modules if known.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendMissingError) as caught:
        kind(bundle, 1)
    assert command in str(caught.value)
