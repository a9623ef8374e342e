"""The C engine computes what TFLite Micro computes from the same graph, bit for bit, with any image that opens."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from converters.emit.c.calls import Program
from converters.emit.c.model import ModelImage, write_model_image
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import BackendError
from device_runtime.micro.library import CEngine
from tests.support.c_programs import SANITIZED, compile_program, compiler, run
from tests.support.engine_cases import NETWORKS, reference_logits, reference_tensors, stored_logits, traced_buffers
from tests.support.micro_bundles import micro_bundle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed (x86_64 only)"
)
HERE = Path(__file__).parent
CONTEXT = 40
STEPS = 34  # past two groups of 16 positions, which kernels read at a time


@dataclass
class Case:
    """A network's bundle, its image, and what was written into it."""

    bundle: Bundle
    path: Path
    image: ModelImage
    tokens: list[int]

    @property
    def engine(self) -> CEngine:
        """Just opened."""
        return CEngine(self.path)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    compiler()
    network = NETWORKS[request.param]
    folder = tmp_path_factory.mktemp("engine")
    bundle = micro_bundle(folder / "bundle", network, CONTEXT)
    path = folder / "model.image"
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, network.config.vocabulary, STEPS)]
    return Case(bundle, path, write_model_image(bundle.model_path, path), tokens)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The engine in programs that end at the first wrong access, overflow or shift: scalar, and for this processor."""
    folder = tmp_path_factory.mktemp("c")
    return [compile_program(folder / name, HERE / "run_image.c", flags=flags) for name, flags in SANITIZED.items()]


# -- what it computes ----------------------------------------------------------------------------------


def test_logits_are_those_of_tflite_micro_to_the_last_bit(case: Case) -> None:
    assert np.array_equal(stored_logits(case.engine, case.tokens), reference_logits(case.bundle, case.tokens))


def test_every_integer_tensor_on_the_way_is_the_same(case: Case) -> None:
    """The cut points: what a matmul reads and what it gives. exp is the one function that is not TFLite Micro's own,
    and where its last bit differs a stored value could be one step off; in these networks none is."""
    engine, tokens = case.engine, case.tokens[:4]
    names = [name for name, (buffer, _) in case.image.buffers.items() if buffer.type != "float32"]
    assert {"head", "layers.0.q.in", "layers.0.queries", "layers.0.down.0.in"} <= set(names)
    for token, expected in zip(tokens, reference_tensors(case.bundle, tokens, names), strict=True):
        found = traced_buffers(engine, case.image, token)
        for name in names:
            assert np.array_equal(found[name], expected[name]), name


def test_scalar_and_vector_kernels_give_the_same_bits(case: Case, sanitized: list[Path]) -> None:
    """And neither leaves its memory, which the sanitizer sees."""
    expected = stored_logits(case.engine, case.tokens).astype(case.engine.logits.dtype).tobytes()
    for program in sanitized:
        assert run(program, case.path, *map(str, case.tokens)) == (0, expected), program.name


def test_greedy_answers_are_the_same(case: Case) -> None:
    engine = case.engine
    reference = reference_logits(case.bundle, case.tokens)
    for token, row in zip(case.tokens, reference, strict=True):
        engine.feed(token)
        assert engine.greedy() == int(row.argmax())


# -- the kv_cache --------------------------------------------------------------------------------------


def test_rewinding_is_forgetting(case: Case) -> None:
    engine, prefix = case.engine, len(case.bundle.manifest.prefix_tokens)
    expected = stored_logits(engine, case.tokens)
    engine.rewind(prefix + 5)
    assert engine.position == prefix + 5
    assert np.array_equal(stored_logits(engine, case.tokens[5:]), expected[5:])
    engine.rewind(0)
    assert engine.position == prefix  # it cannot be forgotten
    assert np.array_equal(stored_logits(engine, case.tokens[:3]), expected[:3])


def test_a_saved_kv_cache_goes_on_in_another_engine(case: Case) -> None:
    first, second = case.engine, case.engine
    expected = stored_logits(first, case.tokens)
    first.rewind(9 + len(case.bundle.manifest.prefix_tokens))
    saved = first.save()
    second.restore(saved)
    assert second.position == first.position
    assert np.array_equal(stored_logits(second, case.tokens[9:]), expected[9:])


def test_a_kv_cache_of_another_image_is_refused(case: Case, tmp_path: Path) -> None:
    saved = bytearray(case.engine.save())
    saved[3] ^= 1  # of the image's hash
    with pytest.raises(BackendError, match="damaged"):
        case.engine.restore(bytes(saved))
    saved[3] ^= 1
    saved[32:36] = (CONTEXT + 1).to_bytes(4, "little")
    with pytest.raises(BackendError, match="damaged"):
        case.engine.restore(bytes(saved))


def test_a_full_context_and_a_wrong_token_are_refused(case: Case) -> None:
    engine = case.engine
    free = CONTEXT - engine.position
    for _ in range(free):
        engine.feed(1)
    expected = engine.logits.copy()
    with pytest.raises(BackendError, match="kv_cache is full"):
        engine.feed(1)
    engine.rewind(engine.position - 1)
    with pytest.raises(BackendError, match="no such token"):
        engine.feed(engine.needs.vocabulary)
    engine.feed(1)
    assert np.array_equal(engine.logits, expected)


# -- how much it takes ---------------------------------------------------------------------------------


def test_memory_is_a_small_part_of_what_tflite_micro_takes(case: Case) -> None:
    """At most 0.15 of it, the kv_cache left out on both sides and TFLite Micro's records scaled to pointers of four
    bytes, which is generous: half of what they are here."""
    from device_runtime.engine.backends.tflm import TflmBackend

    arena = TflmBackend(case.bundle).arena
    assert arena is not None
    theirs = arena.head_bytes + (arena.tail_bytes - arena.kv_cache_bytes) / 2
    ours = CEngine(case.path).needs.arena_bytes
    assert ours < 0.15 * theirs, (ours, theirs)


def test_constants_of_several_rows_lie_without_gaps(case: Case) -> None:
    """So that a program takes them where they are, those of one half of each head too."""
    loads = [
        (call.columns, step.place)
        for call in case.image.calls
        if isinstance(call, Program) and call.rows > 1
        for step in call.steps
        if step.place is not None and step.place.buffer is None and not step.place.one_per_row
    ]
    assert loads
    assert {place.row_stride for columns, place in loads if place.row_stride != 4 * columns} <= {0}  # the same each row


def test_the_arena_is_exact(case: Case) -> None:
    """The sanitized program above gives the engine exactly what sc_measure says; one byte less is refused."""
    engine = case.engine
    assert engine.opens_with(engine.needs.arena_bytes, engine.needs.kv_cache_bytes) == 0
    assert engine.opens_with(engine.needs.arena_bytes - 1, engine.needs.kv_cache_bytes) == 8
    assert engine.opens_with(engine.needs.arena_bytes, engine.needs.kv_cache_bytes - 1) == 8


# -- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gqa-tied", "mha-untied-sharded", "linear-rope", "llama3-rope", "yarn-biases"])
def test_a_converted_checkpoint_answers_like_tflite_micro(converted, name: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    compiler()
    bundle = Bundle.open(converted(name, "micro"))
    write_model_image(bundle.model_path, tmp_path / "model.image")
    engine = CEngine(tmp_path / "model.image")
    room = min(60, bundle.manifest.context - len(bundle.manifest.prefix_tokens))
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, bundle.manifest.graph.vocabulary, room)]
    assert np.array_equal(stored_logits(engine, tokens), reference_logits(bundle, tokens))


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from device_runtime.errors import BackendMissingError
    from device_runtime.micro import library

    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BackendMissingError, match="apt install gcc"):
        library.compile_library()


def test_a_library_is_compiled_once_for_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from device_runtime.micro import library

    first = library.compile_library()
    assert first.is_file() and os.access(first, os.R_OK)
    monkeypatch.setattr(shutil, "which", lambda name: f"/nowhere/{name}" if name == "cc" else None)
    assert library.library_path() != first  # another compiler
