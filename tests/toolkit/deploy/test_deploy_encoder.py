"""A sentence encoder goes to a board over SSH as any bundle does, and answers requests there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.encoders.checkpoint import open_encoder
from converters.encoders.convert import EncoderOptions, convert_encoder
from device_runtime.engine.encoder.encoder_model import EncoderModel
from tests.support.ssh_boards import Board

ENCODERS = Path(__file__).parents[2] / "data" / "encoders"
TEXT = "The pump is hot."


def asked(board: Board) -> dict[str, Any]:
    command = [sys.executable, "-m", "toolkit", "ask", "--broker", f"mqtt://127.0.0.1:{board.port}"]
    done = subprocess.run(
        [*command, "--device", "test-pi", TEXT, "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_vectors_come_from_the_board_after_each_deploy(
    ready: Board, changed: Callable[..., Path], tmp_path: Path
) -> None:
    """About 20 s on two cores."""
    checkpoint = open_encoder(ENCODERS / "bert-embed")
    assert checkpoint is not None
    bundle = convert_encoder(checkpoint, tmp_path / "bundle", EncoderOptions(fast=True)).path
    with EncoderModel.open(bundle) as model:
        (expected,) = model.embed(TEXT)
    assert ready.deploy(bundle).returncode == 0
    np.testing.assert_allclose(asked(ready)["embedding"], expected, atol=1e-5)
    done = ready.deploy(changed(bundle, version="2"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sent"] == ["manifest.json"]
    assert report["slots"]["versions"][report["slots"]["active"]] == "2"
    np.testing.assert_allclose(asked(ready)["embedding"], expected, atol=1e-5)
    back = ready.run("device", "rollback", ready.server.target)
    assert back.returncode == 0, back.stderr
    np.testing.assert_allclose(asked(ready)["embedding"], expected, atol=1e-5)
