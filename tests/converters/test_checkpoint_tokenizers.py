"""Tokenizers out of GGUF metadata give the ids of the tokenizers that went in, and of llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizer_files import PRE_OF, TEXTS, small_sentencepiece, write_bpe_gguf, write_sentencepiece_gguf
from tokenizers import Tokenizer

from converters.checkpoints import TokenizerFile, open_checkpoint
from converters.checkpoints.fields import Fields
from converters.checkpoints.gguf_header import read_header
from converters.checkpoints.gguf_tokenizer import read_tokenizer
from device_runtime.errors import CheckpointError

DATA = Path(__file__).parent.parent / "data"
CHECKPOINTS = DATA / "checkpoints"
LLAMA_CPP = json.loads((DATA / "llama_cpp_tokens.json").read_text())


@pytest.fixture
def metadata(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The GGUF metadata of one of the small tokenizers."""

    def write(name: str = "gqa-tied") -> dict[str, Any]:
        path = tmp_path / "vocabulary.gguf"
        if name == "sentencepiece":
            write_sentencepiece_gguf(path, small_sentencepiece(DATA / "sentencepiece.model"))
        else:
            write_bpe_gguf(path, CHECKPOINTS / name)
        return read_header(path).metadata

    return write


def rebuilt(metadata: dict[str, Any]) -> TokenizerFile:
    return read_tokenizer(Fields(metadata, "model.gguf"), len(metadata["tokenizer.ggml.tokens"]))


@pytest.mark.parametrize("name", PRE_OF)
def test_byte_level_bpe_gives_the_ids_of_its_source(metadata: Callable[..., dict[str, Any]], name: str) -> None:
    file = rebuilt(metadata(name))
    assert file.file_name == "tokenizer.json"
    ours, source = Tokenizer.from_buffer(file.content), Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json"))
    for text, llama_cpp in zip(TEXTS, LLAMA_CPP[name], strict=True):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == source.encode(text, add_special_tokens=False).ids == llama_cpp
        assert ours.decode(ids, skip_special_tokens=False) == source.decode(ids, skip_special_tokens=False)


def test_sentencepiece_gives_the_ids_of_its_source(metadata: Callable[..., dict[str, Any]]) -> None:
    file = rebuilt(metadata("sentencepiece"))
    assert file.file_name == "tokenizer.model"
    ours = sentencepiece.SentencePieceProcessor(model_proto=file.content)
    source = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "sentencepiece.model"))
    assert (ours.bos_id(), ours.eos_id(), ours.unk_id(), ours.pad_id()) == (1, 2, 0, -1)
    for text, llama_cpp in zip(TEXTS, LLAMA_CPP["sentencepiece"], strict=True):
        ids = ours.encode(text)
        assert ids == source.encode(text)
        assert ours.decode(ids) == source.decode(ids)
        if "<|im" not in text:  # SentencePiece never reads a control token out of a text, llama.cpp does
            assert ids == llama_cpp


def test_sentencepiece_without_a_dummy_prefix(metadata: Callable[..., dict[str, Any]]) -> None:
    file = rebuilt(metadata("sentencepiece") | {"tokenizer.ggml.add_space_prefix": False})
    ours = sentencepiece.SentencePieceProcessor(model_proto=file.content)
    assert not ours.id_to_piece(ours.encode("pump"))[0].startswith("▁")


def test_an_answer_stops_at_every_end_of_turn(metadata: Callable[..., dict[str, Any]]) -> None:
    # <|im_start|> 0, <|im_end|> 1, <|endoftext|> 2; the metadata of this file names 0 only.
    assert rebuilt(metadata("gqa-tied")).eos_ids == (0, 1, 2)
    assert rebuilt(metadata("llama3-rope") | {"tokenizer.ggml.eot_token_id": 2}).eos_ids == (0, 2, 1)
    assert rebuilt(metadata("sentencepiece")).eos_ids == (2, 4)


def test_bos_is_added_where_the_family_does(metadata: Callable[..., dict[str, Any]]) -> None:
    assert not rebuilt(metadata("gqa-tied")).adds_bos
    assert rebuilt(metadata("llama3-rope")).adds_bos
    assert not rebuilt(metadata("llama3-rope") | {"tokenizer.ggml.add_bos_token": False}).adds_bos
    assert rebuilt(metadata("sentencepiece")).adds_bos


def test_an_unknown_pre_tokenizer_lists_the_known_ones(metadata: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.ggml\.pre is 'tekken'; known: .*gpt-2.*llama-bpe.*qwen2.*smollm"
    ):
        rebuilt(metadata() | {"tokenizer.ggml.pre": "tekken"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", r"is 'bert'; supported: gpt2 .*llama"),
        ("tokenizer.ggml.tokens", None, "tokens is absent; expected a list of str"),
        ("tokenizer.ggml.token_type", [1, 2], "one type from 1 to 6 for each token"),
        ("tokenizer.ggml.merges", ["zq qz"], "do not fit together"),
        ("tokenizer.ggml.eos_token_id", 384, "is 384, past the 384 tokens"),
    ],
)
def test_damaged_metadata_is_named(metadata: Callable[..., dict[str, Any]], key: str, value: Any, message: str) -> None:
    fields = Fields(metadata() | {key: value}, "model.gguf")
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(fields, 384)


def test_as_many_tokens_as_rows(metadata: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError, match="384 tokens, but the embedding has 400 rows"):
        read_tokenizer(Fields(metadata(), "model.gguf"), 400)


def test_the_gguf_file_and_its_folder_tell_the_same_story() -> None:
    ours, folder = (open_checkpoint(CHECKPOINTS / name).tokenizer for name in ("gqa-tied.gguf", "gqa-tied"))
    assert (ours.bos_id, ours.adds_bos) == (folder.bos_id, folder.adds_bos) == (0, False)
    assert ours.eos_ids == folder.eos_ids == (1, 2)
    assert ours.chat_template == folder.chat_template is not None
    assert ours.special_tokens == folder.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_facts_are_gathered_from_every_file_of_a_folder(tmp_path: Path) -> None:
    assert open_checkpoint(CHECKPOINTS / "llama3-rope").tokenizer.adds_bos  # its post-processor says so
    template = open_checkpoint(CHECKPOINTS / "yarn-biases").tokenizer.chat_template
    assert template == (CHECKPOINTS / "yarn-biases" / "chat_template.jinja").read_text()
    folder = tmp_path / "gqa-tied"
    shutil.copytree(CHECKPOINTS / "gqa-tied", folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 1]}')
    settings = {
        "bos_token": {"content": "<|endoftext|>", "lstrip": False},
        "add_bos_token": True,
        "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}')
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer.eos_ids == (5, 1, 2)
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.chat_template) == (2, True, "y")
    assert tokenizer.special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def test_a_folder_with_a_sentencepiece_model(tmp_path: Path) -> None:
    folder = tmp_path / "sp"
    shutil.copytree(CHECKPOINTS / "gqa-tied", folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has neither tokenizer\.json nor tokenizer\.model"):
        open_checkpoint(folder)
    shutil.copy(DATA / "sentencepiece.model", folder / "tokenizer.model")
    with pytest.raises(CheckpointError, match="has token 419, but the embedding has 384 rows"):
        open_checkpoint(folder)
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        open_checkpoint(folder)


def test_added_tokens_join_a_sentencepiece_model(tmp_path: Path) -> None:
    from converters.checkpoints.huggingface_tokenizer import read_tokenizer as read_folder

    shutil.copy(DATA / "sentencepiece.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<|end|>": 420, "<s>": 1}')
    file = read_folder(tmp_path, Fields({"bos_token_id": 1, "eos_token_id": 2}, "config.json"), 421)
    assert sentencepiece.SentencePieceProcessor(model_proto=file.content).encode("a<|end|>")[-1] == 420
    assert (file.bos_id, file.adds_bos, file.eos_ids) == (1, True, (2, 4, 420))
    (tmp_path / "added_tokens.json").write_text('{"<|end|>": 430}')
    with pytest.raises(CheckpointError, match="leaves gaps after the 420 pieces"):
        read_folder(tmp_path, Fields({}, "config.json"), 421)
