"""Devices on a real broker, and a larger model on a real HTTP server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.far_server import FarServer, far_server


@pytest.fixture
def far() -> Iterator[FarServer]:
    with far_server() as server:
        yield server
