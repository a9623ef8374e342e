"""Tokenizers out of GGUF metadata give the ids of the tokenizers that went in, and of llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from converters.checkpoints import TokenizerFile, open_checkpoint
from converters.checkpoints.fields import Fields
from converters.checkpoints.gguf_header import read_header
from converters.checkpoints.gguf_tokenizer import read_tokenizer
from converters.checkpoints.huggingface_tokenizer import read_tokenizer as read_folder
from device_runtime.engine.tokenizer import read_tokenizer as read_tokenizer_file
from device_runtime.errors import CheckpointError
from tests.converters.tokenizer_folders import CASES, write_folder
from tests.converters.tokenizer_folders import TEXTS as FOLDER_TEXTS
from tests.support.tokenizer_files import (
    MORE_PRE,
    PRE_OF,
    TEXTS,
    small_sentencepiece,
    write_bpe_gguf,
    write_sentencepiece_gguf,
)

DATA = Path(__file__).parent.parent / "data"
CHECKPOINTS = DATA / "checkpoints"
SHORT = "{{ messages[0].content }}"  # a template
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


@pytest.mark.parametrize("pre", MORE_PRE)
def test_every_pre_tokenizer_cuts_text_where_llama_cpp_does(pre: str, tmp_path: Path) -> None:
    name, path = MORE_PRE[pre], tmp_path / "vocabulary.gguf"
    write_bpe_gguf(path, CHECKPOINTS / name, pre)
    ours = Tokenizer.from_buffer(rebuilt(read_header(path).metadata).content)
    for text, llama_cpp in zip(TEXTS, LLAMA_CPP[f"{name} as {pre}"], strict=True):
        assert ours.encode(text, add_special_tokens=False).ids == llama_cpp, text


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
        CheckpointError, match=r"tokenizer\.ggml\.pre is 'poro-chat'; known: .*gpt-2.*llama-bpe.*qwen2.*smollm"
    ):
        rebuilt(metadata() | {"tokenizer.ggml.pre": "poro-chat"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", r"is 'bert'; supported: gpt2 .*llama"),
        ("tokenizer.ggml.tokens", None, "tokens is absent; expected a list of str"),
        ("tokenizer.ggml.token_type", [1, 2], "one type from 1 to 6 for each token"),
        ("tokenizer.ggml.merges", ["zq qz"], "do not fit together"),
        ("tokenizer.ggml.eos_token_id", 384, "is 384, past the 384 tokens"),
        ("tokenizer.ggml.bos_token_id", 1000, "is 1000, past the 384 tokens"),
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
        "chat_template": [
            {"name": "tool_use", "template": "x"},
            {"name": "default", "template": SHORT},
        ],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}')
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer.eos_ids == (5, 1, 2)
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (
        2,
        False,
    )  # its tokenizer.json adds none, whatever the settings say
    assert tokenizer.chat_template == SHORT
    assert tokenizer.notes[0] == "of its chat templates, 'default' is used, and 'tool_use' not"
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
    shutil.copy(DATA / "sentencepiece.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<|end|>": 420, "<s>": 1}')
    file = read_folder(tmp_path, Fields({"bos_token_id": 1, "eos_token_id": 2}, "config.json"), 421)
    assert sentencepiece.SentencePieceProcessor(model_proto=file.content).encode("a<|end|>")[-1] == 420
    assert (file.bos_id, file.adds_bos, file.eos_ids) == (1, False, (2, 4, 420))
    (tmp_path / "added_tokens.json").write_text('{"<|end|>": 430}')
    with pytest.raises(CheckpointError, match="leaves gaps after the 420 pieces"):
        read_folder(tmp_path, Fields({}, "config.json"), 421)


FOLDERS = json.loads((DATA / "folder_tokens.json").read_text())  # by make_folder_tokens.py, with transformers


@pytest.mark.parametrize("case", CASES)
def test_a_folder_gives_the_tokens_of_transformers(case: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", case)
    file = read_folder(tmp_path / "folder", Fields({}, "config.json"), 430)
    (tmp_path / file.file_name).write_bytes(file.content)
    tokenizer = read_tokenizer_file(tmp_path / file.file_name, spaced=file.spaced, own_space=file.own_space)
    expected = FOLDERS[case]
    assert [tokenizer.encode(text) for text in FOLDER_TEXTS] == expected["texts"]
    plain = tokenizer.encode("pump")
    assert ([file.bos_id, *plain] if file.adds_bos else plain) == expected["with_bos"]


def test_a_post_processor_without_its_token_is_refused(tmp_path: Path) -> None:
    """The library panics, which is no Exception, when it puts the token around a text."""
    document = json.loads((CHECKPOINTS / "gqa-tied" / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<none>", "type_id": 0}}]
    document["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged: .*no entry found for key"):
        read_folder(tmp_path, Fields({}, "config.json"), 384)


def test_settings_of_a_training_do_not_cut_prompts(tmp_path: Path) -> None:
    """Truncation and padding are saved with a tokenizer.json, and the library applies them."""
    source = Tokenizer.from_file(str(CHECKPOINTS / "gqa-tied" / "tokenizer.json"))
    source.enable_truncation(4)
    source.enable_padding(length=9)
    source.save(str(tmp_path / "tokenizer.json"))
    file = read_folder(tmp_path, Fields({}, "config.json"), 384)
    document = json.loads(file.content)
    assert (document["truncation"], document["padding"]) == (None, None)
    text = "The pump in hall 3 runs at 81.5 °C"
    for content in (file.content, (tmp_path / "tokenizer.json").read_bytes()):  # an older bundle has it as it was
        (tmp_path / "tokenizer.json").write_bytes(content)
        tokenizer = read_tokenizer_file(tmp_path / "tokenizer.json")
        assert tokenizer.decode(tokenizer.encode(text)) == text


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TestTheEndOfATurn:
    @pytest.mark.parametrize("name", ["gqa-tied", "sentencepiece"])
    @pytest.mark.parametrize("type_", [1, 3, 4])  # normal, control, user-defined
    def test_it_is_what_the_template_ends_a_turn_with(
        self, metadata: Callable[..., dict[str, Any]], name: str, type_: int
    ) -> None:
        """Whatever the token's type, and whatever its name: `<|im_start|>` plays the part of an unknown one here."""
        values = metadata(name)
        tokens, types = values["tokenizer.ggml.tokens"], list(values["tokenizer.ggml.token_type"])
        end = tokens.index("<|im_start|>")
        types[end] = type_
        template = CHATML.replace("<|im_start|>", "### ").replace("<|im_end|>", "<|im_start|>")
        ids = {
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.chat_template": template,
            "tokenizer.ggml.token_type": types,
        }
        file = rebuilt(values | ids)
        assert end in file.eos_ids

    @pytest.mark.parametrize("type_", [1, 4])
    def test_a_known_name_ends_it_without_a_template(self, metadata: Callable[..., dict[str, Any]], type_: int) -> None:
        values = metadata("gqa-tied")
        types = list(values["tokenizer.ggml.token_type"])
        types[1] = type_
        file = rebuilt(values | {"tokenizer.ggml.token_type": types})
        assert 1 in file.eos_ids
        assert Tokenizer.from_buffer(file.content).encode("a<|im_end|>").ids[-1] == 1

    def test_in_a_folder_too(self, tmp_path: Path) -> None:
        document = json.loads((CHECKPOINTS / "gqa-tied" / "tokenizer.json").read_text())
        for token in document["added_tokens"]:
            token["special"] = False
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        settings = {"chat_template": CHATML.replace("im_end", "im_start")}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        assert 0 in read_folder(tmp_path, Fields({"eos_token_id": 2}, "config.json"), 384).eos_ids


class TestTemplates:
    def named(self, folder: Path, templates: object) -> TokenizerFile:
        shutil.copy(CHECKPOINTS / "gqa-tied" / "tokenizer.json", folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
        return read_folder(folder, Fields({}, "config.json"), 384)

    def test_several_without_a_default_are_named(self, tmp_path: Path) -> None:
        templates = [{"name": name, "template": CHATML} for name in ("rag", "tool_use")]
        with pytest.raises(CheckpointError, match="templates for rag, tool_use, and none is called `default`"):
            self.named(tmp_path, templates)
        assert self.named(tmp_path, templates[:1]).chat_template == CHATML

    def test_those_of_a_gguf_file_as_well(self, metadata: Callable[..., dict[str, Any]]) -> None:
        values = metadata("gqa-tied")
        more = {"tokenizer.chat_template.rag": "{{ messages[0].content }}"}
        assert rebuilt(values | more | {"tokenizer.chat_template": CHATML}).notes == (
            "of its chat templates, 'default' is used, and 'rag' not",
        )
        with pytest.raises(CheckpointError, match="none is called `default`"):
            rebuilt(values | more | {"tokenizer.chat_template.tool_use": CHATML})

    def test_a_file_of_its_own_is_the_default(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text(CHATML)
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("x")
        file = self.named(tmp_path, "y")
        assert file.chat_template == CHATML and "'rag' not" in file.notes[0]

    @pytest.mark.parametrize(
        "template, words",
        [
            ("{{ raise_exception('nobody may speak') }}", "nobody may speak"),
            ("{% for m in messages %}", "not valid jinja2"),
            ("{{ bos_token }}", "leaves the message out"),
            ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
        ],
    )
    def test_one_that_cannot_render_a_message_is_refused(self, template: str, words: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=f"every request would fail.*{words}"):
            self.named(tmp_path, template)

    def test_one_that_takes_no_system_message_is_noted(self, tmp_path: Path) -> None:
        refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
        assert any("takes no system message" in note for note in self.named(tmp_path, refusing).notes)
        assert self.named(tmp_path, CHATML).notes == ()


class TestVocabulariesAsTheyAre:
    def test_user_defined_pieces_with_spaces_are_found(self, metadata: Callable[..., dict[str, Any]]) -> None:
        values = metadata("sentencepiece")
        tokens, types = list(values["tokenizer.ggml.tokens"]), values["tokenizer.ggml.token_type"]
        place = types.index(4)  # <tool>
        tokens[place] = "< a tool >"
        content = rebuilt(values | {"tokenizer.ggml.tokens": tokens}).content
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        ids = processor.encode("see< a tool >here")
        assert place in ids and processor.decode(ids) == "see< a tool >here"

    def test_pieces_of_type_unknown_pad_a_vocabulary(self, metadata: Callable[..., dict[str, Any]]) -> None:
        """llama.cpp's vocabulary of phi-3 has 53 of them."""
        values = metadata("sentencepiece")
        more = [f"<|placeholder{i}|>" for i in range(53)]
        changed = {
            "tokenizer.ggml.tokens": values["tokenizer.ggml.tokens"] + more,
            "tokenizer.ggml.scores": values["tokenizer.ggml.scores"] + [-1000.0] * 53,
            "tokenizer.ggml.token_type": values["tokenizer.ggml.token_type"] + [2] * 53,
        }
        ours = sentencepiece.SentencePieceProcessor(model_proto=rebuilt(values | changed).content)
        source = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "sentencepiece.model"))
        assert ours.unk_id() == 0
        assert [ours.encode(text) for text in TEXTS] == [source.encode(text) for text in TEXTS]

    @pytest.mark.parametrize("key", ["padding", "unknown", "bos", "eos"])
    def test_an_id_that_stands_for_none_is_none(self, metadata: Callable[..., dict[str, Any]], key: str) -> None:
        values = metadata("gqa-tied") | {f"tokenizer.ggml.{key}_token_id": 4_294_967_295}
        assert rebuilt(values).file_name == "tokenizer.json"
        values = metadata("gqa-tied") | {"tokenizer.ggml.padding_token_id": 100_000}  # nothing is computed with it
        assert "pad_token" not in rebuilt(values).special_tokens

    def test_rows_of_the_embedding_beyond_the_tokenizer_have_no_text(self) -> None:
        for path in (DATA / "sentencepiece.model", CHECKPOINTS / "gqa-tied" / "tokenizer.json"):
            tokenizer = read_tokenizer_file(path)
            tokens = tokenizer.encode("pump")
            assert tokenizer.decode([*tokens, 500, 100_000]) == tokenizer.decode(tokens)
