"""What several stories begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  tiny: {{bundle: model, threads: 1, max_new: 8}}
devices:
  test-pi: {{model: tiny}}
"""


@pytest.fixture
def write_fleet() -> Callable[[Path, int], Path]:
    """Writes FOLDER/fleet.yaml, in which test-pi serves the slot folder FOLDER/model at a broker of this machine."""

    def write(folder: Path, port: int) -> Path:
        path = folder / "fleet.yaml"
        path.write_text(FLEET.format(port=port))
        return path

    return write
