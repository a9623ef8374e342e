"""Bundles of the small random checkpoints in tests/data/encoders."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from converters.encoders.checkpoint import open_encoder
from converters.encoders.convert import EncoderOptions, convert_encoder
from device_runtime.bundle.folder import Bundle

FOLDER = Path(__file__).parent.parent / "data" / "encoders"


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A bundle by the name of its checkpoint, made once. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("encoders")

    @cache
    def bundle(name: str) -> Bundle:
        checkpoint = open_encoder(FOLDER / name)
        assert checkpoint is not None
        return convert_encoder(checkpoint, folder / name, EncoderOptions(fast=True))

    return bundle
