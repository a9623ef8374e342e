"""The C sampler draws what Python's draws, token by token."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from device_runtime.engine.sampler import Sampler, Sampling
from tests.support.c_programs import compile_program, sources_of

DRAWS = 8
SOURCE = Path(__file__).parent / "sampler_library.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    # Undefined behaviour ends the process; addresses are checked where a program of its own runs (the fuzz targets).
    flags = ("-fsanitize=undefined", "-fno-sanitize-recover=all", "-static-libubsan")
    out = tmp_path_factory.mktemp("c") / "sampler.so"
    return ctypes.CDLL(
        str(compile_program(out, SOURCE, *sources_of("sampler"), flags=flags, engine=False, shared=True))
    )


def draws(library: ctypes.CDLL, sampling: Sampling, logits: np.ndarray, skip: int = 0) -> list[int]:
    tokens = (ctypes.c_uint32 * DRAWS)()
    library.test_draw(
        ctypes.c_float(sampling.temperature),
        sampling.top_k,
        ctypes.c_float(sampling.top_p),
        ctypes.c_uint64(sampling.seed or 0),
        ctypes.c_uint64(skip),
        logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        logits.size,
        DRAWS,
        tokens,
    )
    return list(tokens)


def in_python(sampling: Sampling, logits: np.ndarray, skip: int = 0) -> list[int]:
    sampler = Sampler(sampling)
    sampler.skip(skip)
    return [sampler.choose(logits) for _ in range(DRAWS)]


some_logits = st.one_of(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32)),
    # ties, zeros of both signs, and tokens that a schema has masked
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, -0.0, 1.0, 2.5, float("-inf"), -9.0])),
    arrays.arrays(np.float32, st.integers(1, 9), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
)


def test_c_and_python_draw_the_same(library: ctypes.CDLL) -> None:
    @given(
        some_logits,
        st.floats(0, 10),
        st.integers(0, 70),
        st.floats(0, 1, exclude_min=True),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
    )
    @example(np.zeros(50, np.float32), 1.0, 7, 0.5, 3, 0)
    @example(np.full(5, -np.inf, np.float32), 1.0, 2, 0.5, 3, 0)
    def check(logits: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int, skip: int) -> None:
        sampling = Sampling(temperature, top_k, top_p, seed)
        assert draws(library, sampling, logits, skip) == in_python(sampling, logits, skip)

    check()


def test_the_same_over_a_whole_vocabulary(library: ctypes.CDLL) -> None:
    logits = np.random.default_rng(1).normal(0, 3, 49_152).astype(np.float32)
    for sampling in (Sampling(0.8, 0, 1.0, 1), Sampling(0.8, 40, 0.95, 2), Sampling(1.3, 0, 0.9, 3), Sampling(seed=4)):
        assert draws(library, sampling, logits) == in_python(sampling, logits)


def test_a_sequence_that_must_not_change() -> None:
    """Seeds are kept by users: the same seed draws the same tokens in every later version."""
    logits = np.linspace(0, 4, 100, dtype=np.float32)
    assert in_python(Sampling(1.0, 0, 1.0, 42), logits) == [92, 56, 69, 74, 28, 96, 63, 94]
