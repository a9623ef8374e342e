"""`stonechat trace --against` shows the layer where two readings of a network part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from family_checkpoints import golden, write_folder
from safetensors.numpy import load_file, save_file

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from toolkit.cli import main


def traced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object, name: str = "gemma3"
) -> dict[str, float]:
    tokens = ",".join(map(str, golden(name)[0][:8]))
    command = [*map(str, arguments), "--tokens", tokens, "--layers", "-o", str(tmp_path / "trace.npz"), "--json"]
    assert main(["trace", *command]) == 0
    return dict(json.loads(capsys.readouterr().out)["snr_db"])


def test_the_first_name_that_differs_is_the_changed_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = write_folder(tmp_path / "a", "gemma3"), write_folder(tmp_path / "b", "gemma3")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][:8] *= 1.5
    save_file(tensors, other / "model.safetensors")
    near = traced(capsys, tmp_path, folder, "--against", other)
    names = list(near)
    assert names[:2] == ["layers.0.attention_out", "layers.0.out"] and names[-1] == "logits"
    assert next(name for name in names if near[name] < 100) == "layers.3.out"


def test_a_trace_of_another_tool_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "a", "llama")
    traced(capsys, tmp_path, folder, "--against", folder, name="llama")
    with np.load(tmp_path / "trace.npz") as file:
        np.savez(tmp_path / "other.npz", **{"layers.1.out": file["layers.1.out"] + 0.01, "logits": file["logits"]})
    near = traced(capsys, tmp_path, folder, "--against", tmp_path / "other.npz", name="llama")
    assert near["logits"] == 150 and 20 < near["layers.1.out"] < 60 and len(near) == 2


def test_longrope_follows_the_bundle_it_is_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight tokens alone would have the short frequencies, the bundle of 32 positions has the long ones."""
    folder = write_folder(tmp_path / "a", "phi3, LongRoPE, long")
    convert(open_checkpoint(folder), tmp_path / "bundle", Options("pi", 32, fast=True))
    name = "phi3, LongRoPE, long"
    near = traced(capsys, tmp_path, folder, "--against", tmp_path / "bundle", name=name)
    assert min(near.values()) > 15  # int8; with the other frequencies it is below 10
