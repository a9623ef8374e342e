"""However a checkpoint is damaged, only errors of our own come out of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.checkpoints import open_checkpoint
from converters.network.tensors import tensors
from device_runtime.errors import StonechatError

CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"
GGUF = (CHECKPOINTS / "gqa-tied.gguf").read_bytes()
SAFETENSORS = (CHECKPOINTS / "gqa-tied" / "model.safetensors").read_bytes()
CONFIG = (CHECKPOINTS / "gqa-tied" / "config.json").read_bytes()
TOKENIZER = (CHECKPOINTS / "gqa-tied" / "tokenizer.json").read_bytes()

# Tests share one folder: each example overwrites the file that it damages.
several = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def damaged(data: bytes, header: int) -> st.SearchStrategy[bytes]:
    """Cut short anywhere, or with some bytes changed, most of them in the header."""
    place = st.one_of(st.integers(0, min(600, header - 1)), st.integers(0, header - 1), st.integers(0, len(data) - 1))
    changes = st.dictionaries(place, st.integers(0, 255), min_size=1, max_size=4)

    def changed(places: dict[int, int]) -> bytes:
        copy = bytearray(data)
        for at, value in places.items():
            copy[at] = value
        return bytes(copy)

    return st.one_of(st.integers(0, len(data) - 1).map(lambda length: data[:length]), changes.map(changed))


def read_all(path: Path) -> None:
    try:
        checkpoint = open_checkpoint(path)
        for tensor in tensors(checkpoint.config):
            assert checkpoint.read(tensor.name).shape == tensor.shape
    except StonechatError as error:
        assert str(path) in str(error) and len(str(error)) < 1500


@several
@given(damaged(GGUF, 16_000))
def test_gguf(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    read_all(tmp_path / "model.gguf")


@several
@given(damaged(SAFETENSORS, 1800))
def test_safetensors(tmp_path: Path, data: bytes) -> None:
    shutil.copytree(CHECKPOINTS / "gqa-tied", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(data)
    read_all(tmp_path)


@several
@given(damaged(CONFIG, len(CONFIG)))
def test_config_json(tmp_path: Path, data: bytes) -> None:
    shutil.copytree(CHECKPOINTS / "gqa-tied", tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_bytes(data)
    read_all(tmp_path)


@several
@given(damaged(TOKENIZER, 2000))
def test_tokenizer_json(tmp_path: Path, data: bytes) -> None:
    shutil.copytree(CHECKPOINTS / "gqa-tied", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_bytes(data)
    read_all(tmp_path)


@several
@given(data=damaged((CHECKPOINTS.parent / "sentencepiece.model").read_bytes(), 2000))
def test_sentencepiece_model(tmp_path: Path, data: bytes) -> None:
    shutil.copytree(CHECKPOINTS / "gqa-tied", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    (tmp_path / "tokenizer.model").write_bytes(data)
    read_all(tmp_path)


def test_the_undamaged_file_is_read() -> None:
    read_all(CHECKPOINTS / "gqa-tied.gguf")  # else the tests above would pass with a reader that refuses all
    assert open_checkpoint(CHECKPOINTS / "gqa-tied.gguf").read("embed.weight").any()
