"""Tests of training compile many small networks and run each for moments."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly() -> Iterator[None]:
    """XLA leaves out most of its optimizations: compiling is most of the time here. Commands in other processes, which
    train in earnest, have all of them."""
    jax = pytest.importorskip("jax", reason="needs the extra [train]")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
