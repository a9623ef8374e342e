"""A tokenizer.table gives what the library gives of the same tokenizer.json, for any prompt and any tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.emit.tokenizer_table import write_tokenizer_table
from device_runtime.bundle.manifest import TABLE
from device_runtime.engine.text.segments import Segment
from device_runtime.engine.text.table_tokenizer import TableTokenizer
from device_runtime.engine.tokenizer import Tokenizer, read_tokenizer
from device_runtime.errors import BundleError
from tests.support.tokenizer_files import TEXTS

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
FOLDERS = ["mha-untied-sharded", "gqa-tied", "llama3-rope", "yarn-biases"]  # GPT-2, SmolLM, Llama 3, Qwen 2
PARTS = [
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\x1c", "\x85", "\n\n \n"),
    *("the", "The", "pump", "running", "'s", "'LL", "'\u017f", "'re", "don't", "I'm", "'", "''", "\u017f"),
    *("1", "12345", "3.14", "\u0663\u0664", "\u00bd", "\u2167", "\u00b2", "\x01", "\U0001d7d8"),
    *("\u00e9", "e\u0301", "\u00df", "\u0434\u0430", "\u6e29\u5ea6", "\ud55c\uad6d", "\u0e2a\u0e27", "\u0928\u092e"),
    *("\U0001f642", "\U0001f469\u200d\U0001f527", "\ufb01", "\ufeff", "\u200b", "\0", "\x7f", "\u0301", "\ufdd0"),
    *("...", "---", "{}", '"', "\\", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|", "|>", "<tool>", "<0x0A>"),
]
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=6), max_size=20).map("".join)
prompts = st.lists(st.builds(Segment, texts, st.booleans()), max_size=5)


def content_of(folder: str, **changes: object) -> bytes:
    document = json.loads((CHECKPOINTS / folder / "tokenizer.json").read_bytes())
    return json.dumps(document | changes).encode()


def written(tmp_path: Path, content: bytes) -> tuple[TableTokenizer, Tokenizer, list[str]]:
    """The table's reader, the library, and a list that grows by each call for the library."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    library, asked = read_tokenizer(tmp_path / "tokenizer.json", eos_ids=(2,)), list[str]()
    assert write_tokenizer_table(tmp_path, content, library)

    def beyond() -> Tokenizer:
        asked.append("library")
        return library

    return TableTokenizer(tmp_path / TABLE, beyond), library, asked


@pytest.mark.parametrize("folder", FOLDERS)
def test_prompts_become_the_tokens_that_the_library_makes_of_them(folder: str, tmp_path: Path) -> None:
    table, library, _ = written(tmp_path, content_of(folder))
    assert list(table.names) == list(library.names) and set(table.special) == set(library.special)
    for text in TEXTS:
        assert table.encode(text) == library.encode(text)

    @given(prompts)
    def check(segments: list[Segment]) -> None:
        assert table.encode(segments) == library.encode(segments)
        for text, _ in segments:
            assert table.encode_inside(text) == library.encode_inside(text)

    check()


@pytest.mark.parametrize("folder", FOLDERS)
def test_tokens_become_the_text_that_the_library_makes_of_them(folder: str, tmp_path: Path) -> None:
    table, library, _ = written(tmp_path, content_of(folder))

    @given(st.lists(st.integers(0, table.count + 2), max_size=40))
    def check(tokens: list[int]) -> None:
        assert table.decode(tokens) == library.decode(tokens)

    check()


def test_added_tokens_that_are_no_markup_are_found_in_any_text(tmp_path: Path) -> None:
    document = json.loads(content_of("gqa-tied"))
    size = 1 + max(*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"]))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for number, text in enumerate(("degrees", "degrees Celsius", " ")):
        document["added_tokens"].append({"id": size + number, "content": text, **plain})
    table, library, asked = written(tmp_path, json.dumps(document).encode())
    for text in ("81 degrees Celsius", "degreesdegrees", "  a  degree", "<|im_start|> degrees"):
        assert table.encode(text) == library.encode(text)
        assert table.decode(table.encode_inside(text)) == text
    assert size + 1 in table.encode("81 degrees Celsius") and not asked


def test_only_what_a_table_cannot_do_goes_to_the_library(tmp_path: Path) -> None:
    for folder, text, expected in (
        ("gqa-tied", "The pump in hall 3: 81.5 °C, 温度 🙂 <|im_end|>", 0),
        ("gqa-tied", "x" * 5000, 1),  # the time to merge a word grows with the square of its length
        ("yarn-biases", "plain", 0),
        ("yarn-biases", "é", 1),  # composed by the library's version of Unicode
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        table, library, asked = written(tmp_path / folder, content_of(folder))
        assert table.encode(text) == library.encode(text)
        assert len(asked) == expected, (folder, text[:10])


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"decoder": {"type": "Fuse"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"added_tokens": [{"id": 0, "content": "<s>", "single_word": False, "lstrip": True, "rstrip": False,
                           "normalized": False, "special": True}]},
    ],
)  # fmt: skip
def test_no_table_is_written_of_what_it_would_do_differently(changes: dict[str, object], tmp_path: Path) -> None:
    content = content_of("mha-untied-sharded", **changes)
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert not write_tokenizer_table(tmp_path, content, read_tokenizer(tmp_path / "tokenizer.json"))
    assert not (tmp_path / TABLE).exists()


def test_a_damaged_table_is_refused_or_read_but_never_fails_otherwise(tmp_path: Path) -> None:
    table, library, _ = written(tmp_path, content_of("gqa-tied"))
    sound = (tmp_path / TABLE).read_bytes()

    @given(st.integers(0, len(sound) - 1), st.binary(min_size=1, max_size=8), st.booleans())
    def check(place: int, damage: bytes, cut: bool) -> None:
        damaged = sound[:place] if cut else sound[:place] + damage + sound[place + len(damage) :]
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            reader = TableTokenizer(tmp_path / "damaged", lambda: library)
        except BundleError as error:
            assert "convert the checkpoint again" in str(error)
            return
        reader.decode([*reader.encode("The pump in hall 3: 81.5 °C <|im_end|>"), 0, 1, 2, table.count - 1])

    check()
