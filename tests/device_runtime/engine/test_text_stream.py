"""Tokens become pieces of text: joined they are the text, and no piece has half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_runtime.engine.text_stream import TextStream
from device_runtime.engine.tokenizer import Tokenizer, read_tokenizer
from device_runtime.errors import BundleError

DATA = Path(__file__).parent.parent.parent / "data"
FILES = [
    *sorted((DATA / "checkpoints").glob("*/tokenizer.json")),
    DATA / "sentencepiece.model",
]
TOKENIZERS = {file.parent.name if file.suffix == ".json" else file.name: read_tokenizer(file) for file in FILES}
VOCABULARY = {name: 384 if name != "sentencepiece.model" else 420 for name in TOKENIZERS}
texts = st.text(max_size=60) | st.text(st.sampled_from("a b  \n\t.é温🙂👩‍🔧\ufffd▁<|tool>"), max_size=40)
every_tokenizer = pytest.mark.parametrize("name", sorted(TOKENIZERS))


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in tokens), stream.flush()]


@every_tokenizer
@given(text=texts)
@example(text=" leading space")
@example(text="  two")
@example(text="a\ufffd")
@example(text="👩‍🔧 ")
def test_pieces_joined_are_the_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode(text)
    joined = "".join(pieces(tokenizer, tokens))
    assert joined == tokenizer.decode(tokens)
    if not any(special in text for special in ("<|", "<s>", "</s>", "<unk>", "<tool>")) and name in (
        "gqa-tied",
        "mha-untied-sharded",
    ):  # byte-level and without a normalizer: nothing is lost
        assert joined == text


@every_tokenizer
@given(data=st.data())
def test_any_tokens_stream_to_what_they_decode_to(name: str, data: st.DataObject) -> None:
    """Tokens that no encoder makes, as a model may: lone bytes, control tokens in the middle."""
    tokens = data.draw(st.lists(st.integers(0, VOCABULARY[name] - 1), max_size=30))
    tokenizer = TOKENIZERS[name]
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


@every_tokenizer
def test_a_character_of_many_tokens_comes_whole(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode("x🙂y")
    assert len(tokens) > 4  # the emoji is not in these vocabularies
    assert [piece for piece in pieces(tokenizer, tokens) if piece] in (["x", "🙂", "y"], ["x", "🙂y"])


def test_what_never_becomes_whole_comes_at_the_end() -> None:
    tokenizer = TOKENIZERS["gqa-tied"]
    tokens = tokenizer.encode("x🙂")[:-1]
    *early, last = pieces(tokenizer, tokens)
    assert "".join(early) == "x"
    assert set(last) == {"\ufffd"}


def test_a_stream_can_go_on_after_a_flush() -> None:
    tokenizer = TOKENIZERS["gqa-tied"]
    stream = TextStream(tokenizer)
    for token in tokenizer.encode("x🙂")[:-1]:
        stream.push(token)
    stream.flush()
    assert "".join(map(stream.push, tokenizer.encode("ab"))) == "ab"


def test_names_of_control_tokens_become_those_tokens() -> None:
    for name in ("gqa-tied", "sentencepiece.model"):
        tokens = TOKENIZERS[name].encode("<|im_start|>user<|im_end|>")
        start = TOKENIZERS[name].encode("<|im_start|>")
        end = TOKENIZERS[name].encode("<|im_end|>")
        assert len(start) == len(end) == 1
        assert tokens[0] == start[0] and tokens[-1] == end[0]
        assert TOKENIZERS[name].decode(tokens).strip() == "user"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_a_damaged_tokenizer_is_refused_by_name(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(b"\x00not a tokenizer")
    with pytest.raises(BundleError, match=file):
        read_tokenizer(path)
