"""The C tokenizer gives what `tokenizers` and `sentencepiece` give, for any text and any tokens."""

from __future__ import annotations

import ctypes
import io
import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from converters.emit.c.byte_level_bpe import byte_level_table
from converters.emit.c.sentencepiece import sentencepiece_table
from device_runtime.engine.text.segments import Segment
from device_runtime.engine.tokenizer import read_tokenizer
from device_runtime.errors import ConfigurationError
from tests.support.c_programs import SANITIZED, compile_program, run, sources_of
from tests.support.c_tokenizer import CTokenizer, Refused, tokenizer_library
from tests.support.tokenizer_files import TEXTS
from toolkit.train.words import open_words, word_vocabulary

TESTS = Path(__file__).parents[2]
CHECKPOINTS = TESTS / "data" / "checkpoints"
CORPUS = TESTS / "fuzz" / "corpus" / "tokenizer"
WORD_TOO_LONG = 13  # sc_status.h
FOLDERS = ["mha-untied-sharded", "gqa-tied", "llama3-rope", "yarn-biases"]  # GPT-2, SmolLM, Llama 3, Qwen 2
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2581", "\n\n \n"]
PARTS = [
    *("the", "The", "pump", "running", "'s", "'LL", "'\u017f", "'re", "don't", "I'm", "'", "''"),
    *("1", "12345", "3.14", "\u0663\u0664", "\u00bd", "\u2167", "\u00b2"),
    *("\u00e9", "e\u0301", "\u00df", "\u0434\u0430", "\u6e29\u5ea6", "\ud55c\uad6d", "\u0e2a\u0e27", "\u0928\u092e"),
    *("\U0001f642", "\U0001f469\u200d\U0001f527", "\ufb01", "\ufeff", "\u200b", "\0", "\x7f", "\u0301"),
    *("...", "---", "{}", '"', "\\", "<|im_start|>", "<|im_end|>", "<tool>", "<s>", "</s>", "<unk>", "<0x0A>"),
]
texts = st.lists(st.sampled_from([*SPACES, *PARTS, *SPACES]) | st.text(max_size=6), max_size=30).map("".join)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return tokenizer_library(tmp_path_factory.mktemp("c"))


@cache
def byte_level(folder: str) -> Tokenizer:
    """The oracle: the names of special tokens in a text stay text."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def trained(model_type: str, **options: object) -> bytes:
    """A small SentencePiece model of its kind."""
    model = io.BytesIO()
    settings = {
        "vocab_size": 400,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<tool>"],
        "control_symbols": ["<|im_start|>", "<|im_end|>"],
        "minloglevel": 2,
        "hard_vocab_limit": False,
        **options,
    }
    lines = iter(([*TEXTS[:6], "the pump is running", "pumps are running hot"]) * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, model_type=model_type, **settings
    )
    return model.getvalue()


def without_unknown(content: bytes) -> bytes:
    """As Gemma's GGUF files have it: `<unk>` is a control token, and no piece is of the unknown type."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    for piece in model.pieces:
        if piece.type == 2:
            piece.type = 3
    return model.SerializeToString(deterministic=True)


SENTENCEPIECE: dict[str, Callable[[], bytes]] = {
    "bpe": lambda: trained("bpe", split_digits=True, allow_whitespace_only_pieces=True),
    "bpe, no unknown piece": lambda: without_unknown(trained("bpe", add_dummy_prefix=False)),
    "bpe, unknown tokens": lambda: trained("bpe", byte_fallback=False),
    "bpe, nmt_nfkc": lambda: trained("bpe", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True),
    "bpe, pieces of several words": lambda: trained("bpe", split_by_whitespace=False, add_dummy_prefix=False),
    "unigram": lambda: trained("unigram"),
    "unigram, unknown tokens": lambda: trained("unigram", byte_fallback=False, add_dummy_prefix=False),
    "unigram, nmt_nfkc": lambda: trained(
        "unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, byte_fallback=False
    ),
    "unigram, written": lambda: word_vocabulary(
        ["\n", "<level=none>"], [f" {text}\n" for text in TEXTS], 800, open_words(TESTS / "data/encoders/bert-embed")
    ),
    "unigram, pieces of several words": lambda: trained("unigram", split_by_whitespace=False),
}


@cache
def model_of(name: str) -> bytes:
    return SENTENCEPIECE[name]()


def table_of(name: str) -> bytes:
    """The table of a small model."""
    if name in SENTENCEPIECE:
        return sentencepiece_table(model_of(name)).pack()
    return byte_level_table((CHECKPOINTS / name / "tokenizer.json").read_bytes()).pack()


@pytest.fixture(scope="module")
def fuzz_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target of `make fuzz`, which runs each of its arguments once, under the sanitizers."""
    folder = TESTS / "fuzz"
    out = tmp_path_factory.mktemp("fuzz") / "tokenizer"
    files = [folder / "tokenizer.c", folder / "replay.c", *sources_of("tokenizer", "runtime/utf8.c")]
    return compile_program(out, *files, flags=SANITIZED["native"], engine=False)


@pytest.mark.parametrize("folder", FOLDERS)
def test_byte_level_bpe_encodes_as_tokenizers_does(library: ctypes.CDLL, folder: str) -> None:
    oracle = byte_level(folder)
    tokenizer = CTokenizer(library, table_of(folder))

    @given(texts, st.sampled_from([1, 3, 1000]))
    def check(text: str, chunk: int) -> None:
        assert tokenizer.encode(text, chunk) == oracle.encode(text, add_special_tokens=False).ids

    check()
    for text in TEXTS:
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("folder", FOLDERS)
def test_byte_level_bpe_decodes_as_tokenizers_does(library: ctypes.CDLL, folder: str) -> None:
    oracle = byte_level(folder)
    tokenizer = CTokenizer(library, table_of(folder))

    @given(st.lists(st.integers(0, oracle.get_vocab_size() - 1), max_size=40))
    def check(tokens: list[int]) -> None:
        assert "".join(tokenizer.pieces(tokens)) == oracle.decode(tokens, skip_special_tokens=True)

    check()


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_encodes_as_the_library_does(library: ctypes.CDLL, name: str) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model_of(name))
    tokenizer = CTokenizer(library, table_of(name))

    @given(texts, st.sampled_from([1, 3, 1000]))
    def check(text: str, chunk: int) -> None:
        assert tokenizer.encode(text, chunk) == oracle.encode(text)

    check()
    for text in TEXTS:
        assert tokenizer.encode(text) == oracle.encode(text)


@pytest.mark.parametrize("name", ["bpe", "bpe, unknown tokens", "unigram"])
def test_a_text_that_begins_with_a_space_gets_no_other_one(library: ctypes.CDLL, name: str, tmp_path: Path) -> None:
    """Where the bundle says so, in C as on a device with Python."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model_of(name))
    oracle = read_tokenizer(path, own_space=True)
    tokenizer = CTokenizer(library, sentencepiece_table(model_of(name), own_space=True).pack())

    @given(st.sampled_from(["", " ", "\u2581"]), texts)
    def check(first: str, text: str) -> None:
        text = re.sub("[\ufdd0-\ufdef]", "", first + text)  # characters of ours, which no text has
        assert tokenizer.encode(text) == oracle.encode([Segment(text, False)])

    check()
    assert tokenizer.encode(" pump") == tokenizer.encode("pump") == tokenizer.encode("\u2581pump")


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_decodes_as_the_library_does(library: ctypes.CDLL, name: str) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model_of(name))
    tokenizer = CTokenizer(library, table_of(name))

    @given(st.lists(st.integers(0, oracle.vocab_size() - 1), max_size=40))
    def check(tokens: list[int]) -> None:
        assert "".join(tokenizer.pieces(tokens)) == oracle.decode(tokens)

    check()


@pytest.mark.parametrize("name", ["bpe", "gqa-tied"])
def test_a_character_waits_until_all_its_tokens_are_there(library: ctypes.CDLL, name: str) -> None:
    tokenizer = CTokenizer(library, table_of(name))
    text = "\U0001f64a"  # in no training text: one token for each of its four bytes
    tokens = tokenizer.encode(text)
    assert tokenizer.pieces(tokens)[-5:] == ["", "", "", text, ""]
    mark = "\ufffd" if name == "gqa-tied" else "\ufffd" * 3  # as each library has it
    assert tokenizer.pieces(tokens[:-1])[-4:] == ["", "", "", mark]


@pytest.mark.parametrize("name", ["bpe", "gqa-tied"])
def test_bytes_that_are_no_text_become_replacement_characters(library: ctypes.CDLL, name: str) -> None:
    tokenizer = CTokenizer(library, table_of(name))

    @given(st.binary(max_size=40))
    def check(data: bytes) -> None:
        assert tokenizer.encode(data, 1) == tokenizer.encode(data.decode(errors="replace"))

    check()


@pytest.mark.parametrize("name", ["bpe", "unigram", "gqa-tied", "yarn-biases"])
def test_a_text_never_becomes_a_control_token(library: ctypes.CDLL, name: str) -> None:
    tokenizer = CTokenizer(library, table_of(name))
    text = "hello<|im_end|>\n<|im_start|>system\n<|endoftext|></s><s>"
    if name in SENTENCEPIECE:
        model = sentencepiece.SentencePieceProcessor(model_proto=model_of(name))
        control = {token for token in range(model.vocab_size()) if model.is_control(token)}
    else:
        control = {n for n, token in byte_level(name).get_added_tokens_decoder().items() if token.special}
    assert control and not control & set(tokenizer.encode(text))


@pytest.mark.parametrize("name", ["bpe", "unigram", "gqa-tied", "yarn-biases"])
def test_a_word_that_does_not_fit_into_the_memory_is_refused_and_never_cut(library: ctypes.CDLL, name: str) -> None:
    tokenizer = CTokenizer(library, table_of(name))
    word, work = "a" * 90, 11 * 100
    assert tokenizer.encode(f"{word} {word}", work=work) == tokenizer.encode(f"{word} {word}")
    with pytest.raises(Refused, match=str(WORD_TOO_LONG)):
        tokenizer.encode("a" * 110, work=work)


@pytest.mark.parametrize("name", ["bpe", "unigram", "gqa-tied", "yarn-biases"])
def test_a_table_is_read_at_any_address_and_refused_when_it_is_cut(library: ctypes.CDLL, name: str) -> None:
    table = table_of(name)
    CTokenizer(library, table + b"what comes after it in flash")
    for size in (0, 3, 111, 112, len(table) // 2, len(table) - 4):
        with pytest.raises(Refused):
            CTokenizer(library, table[:size])


def test_damaged_tables_stay_inside_of_their_memory(fuzz_target: Path, tmp_path: Path) -> None:
    dice = random.Random(5)
    files = sorted(CORPUS.iterdir())
    text = "The pump's 12 \u00e9 e\u0301 \U0001f642 <tool> <s>".encode() + bytes(range(256))
    for name in ("bpe, nmt_nfkc", "unigram", "gqa-tied", "yarn-biases"):
        table = bytearray(table_of(name))
        for number in range(25):
            damaged = bytearray(table)
            for _ in range(dice.choice([0, 1, 1, 2, 8])):
                # Half of the damage goes into the header and the small parts, where it matters most.
                place = dice.randrange(112) if dice.random() < 0.3 else dice.randrange(len(damaged))
                damaged[place] = dice.choice([0, 1, 255, dice.randrange(256)])
            file = tmp_path / f"{name}-{number}"
            file.write_bytes(len(damaged).to_bytes(4, "little") + damaged + text)
            files.append(file)
    status, out = run(fuzz_target, *files)
    assert (status, int(out)) == (0, len(files))


def changed(**changes: object) -> bytes:
    """A byte-level tokenizer.json with other settings."""
    document = json.loads((CHECKPOINTS / "gqa-tied" / "tokenizer.json").read_text(encoding="utf-8"))
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = document
        for key in outer:
            place = place[int(key) if isinstance(place, list) else key]
        place[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "NFKC"}}, "the normalizer NFKC"),
        ({"model__byte_fallback": True}, "byte_fallback"),
        ({"model__type": "WordPiece"}, "a WordPiece model"),
        ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "the pre-tokenizer Whitespace"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "space before the text"),
        ({"pre_tokenizer": None}, "the pre-tokenizer none"),
        ({"model__merges": [["e", "\u0120"]]}, "which makes no token"),
    ],
)
def test_what_the_c_code_cannot_do_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        byte_level_table(changed(**changes)).pack()


def test_sentencepiece_models_that_it_cannot_do_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="words or characters"):
        sentencepiece_table(trained("char"))
    with pytest.raises(ConfigurationError, match="spaces at the ends of words"):
        sentencepiece_table(trained("bpe", treat_whitespace_as_suffix=True))
