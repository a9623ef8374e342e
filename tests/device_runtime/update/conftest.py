"""Bundles of a few bytes for what never runs them, and slot folders that have one confirmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from device_runtime.update.install import install
from device_runtime.update.slots import lock
from tests.support.update_bundles import confirm, tiny_bundle

SlotFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(pi_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Versions 1, 2 and 3, with counters 1, 2 and 2; they open but do not run. Read only."""
    folder = tmp_path_factory.mktemp("tiny")
    counters = {"1": 1, "2": 2, "3": 2}
    return {v: tiny_bundle(pi_bundle, folder / v, v, security_counter=c) for v, c in counters.items()}


@pytest.fixture
def slot_folder(tmp_path: Path) -> SlotFolder:
    """`slot_folder(bundle, …)`: a slot folder in which these were confirmed, one after the other."""

    def make(*bundles: Path) -> Path:
        folder = tmp_path / "model"
        for bundle in bundles:
            with lock(folder, make=True) as slots:
                install(bundle, slots)
                confirm(slots)
        return folder

    return make
