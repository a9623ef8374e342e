"""Words that are known by a sentence encoder's vectors: the vocabulary, the vectors, the map that is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs the extra [train]")
pytest.importorskip("optax", reason="needs the extra [train]")

import jax.numpy as jnp
from sentencepiece import SentencePieceProcessor

from converters.emit.c.sentencepiece import sentencepiece_table
from converters.emit.c.tokenizer import Kind
from converters.encoders.checkpoint import EncoderCheckpoint, open_encoder
from converters.encoders.network import EncoderConfig
from converters.encoders.ops_numpy import reference_sentence, reference_sentences
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.file import Network, load, loads
from toolkit.train import network
from toolkit.train.cases import Cases
from toolkit.train.optimize import Schedule, optimize
from toolkit.train.pipeline import train
from toolkit.train.weights import Settings
from toolkit.train.words import open_words, piece_vectors, word_vocabulary

ENCODER = Path(__file__).parents[2] / "data/encoders/bert-embed"
TEXTS = [" the boiler is too hot\n", " the pump is off\n"] * 4
LABELS = ["\n", "<level=none>", "<level=warn>"]
SHAPE = Network(layers=1, width=16, heads=2, ffn=32, tied=True)


@pytest.fixture(scope="module")
def encoder() -> EncoderCheckpoint:
    return open_words(ENCODER)


@pytest.fixture(scope="module")
def vocabulary(encoder: EncoderCheckpoint) -> bytes:
    return word_vocabulary(LABELS, TEXTS, 600, encoder)


def test_a_word_is_one_piece_with_its_space_and_others_are_spelt(vocabulary: bytes) -> None:
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    pieces = tokenizer.encode(" the boiler is qxz €\n", out_type=str)
    assert pieces[:3] == ["▁the", "▁boiler", "▁is"] and pieces[-1] == "\n"
    assert pieces[3:6] == ["▁q", "x", "z"] and pieces[6:-1] == ["▁", "<0xE2>", "<0x82>", "<0xAC>"]
    for text in (" the boiler is qxz €\n", LABELS[1]):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [len(tokenizer.encode(label)) for label in LABELS] == [1, 1, 1]


def test_the_same_texts_give_the_same_bytes_and_the_c_engine_reads_them(
    vocabulary: bytes, encoder: EncoderCheckpoint
) -> None:
    assert word_vocabulary(LABELS, TEXTS, 600, encoder) == vocabulary
    assert sentencepiece_table(vocabulary).kind is Kind.UNIGRAM


def test_words_have_the_encoders_vectors_and_the_rest_has_none(vocabulary: bytes, encoder: EncoderCheckpoint) -> None:
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    vectors = piece_vectors(vocabulary, encoder)
    words = vectors.any(axis=1)
    first = int(np.argmax(words))
    assert words[first:].all() and len(tokenizer.id_to_piece(first)) > 1
    assert max(map(tokenizer.piece_to_id, [*LABELS, "▁", "q", "▁q"])) < first
    np.testing.assert_allclose(np.linalg.norm(vectors[first:], axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("name", ["bert-embed", "mpnet"])
def test_texts_of_one_length_are_read_together_as_they_are_alone(name: str) -> None:
    """Sums of 32 terms in another order: 1e-5 of values around 1. MPNet adds to scores by distance."""
    encoder = open_encoder(ENCODER.parent / name)
    assert encoder is not None
    assert isinstance(encoder.config, EncoderConfig)
    texts = [encoder.tokenizer.framed(text) for text in ("pump is hot", "boiler is off", "is it hot")]
    rows = [text[:5] for text in texts]
    together = reference_sentences(encoder.config, encoder.read, rows)
    for row, found in zip(rows, together, strict=True):
        np.testing.assert_allclose(found, reference_sentence(encoder.config, encoder.read, row), atol=1e-5)


def test_the_bundle_gets_one_row_for_each_token_and_answers_alike(
    vocabulary: bytes, encoder: EncoderCheckpoint
) -> None:
    """The same sums in another order."""
    table = piece_vectors(vocabulary, encoder)
    weights = network.with_map(network.initial(SHAPE, len(table), 1), table)
    plain = network.without_map({name: np.asarray(value) for name, value in weights.items()}, table)
    assert plain["embed"].shape == (len(table), 16) and "map" not in plain
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, len(table), (3, 12)))
    found = network.forward(weights, tokens, SHAPE, table=jnp.asarray(table))
    expected = network.forward({name: jnp.asarray(value) for name, value in plain.items()}, tokens, SHAPE)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_word_that_no_case_has_is_known_by_its_neighbours(tmp_path: Path) -> None:
    """Words whose vectors point one way are alarms; the words of the test are no training's, and lie near those."""
    rng = np.random.default_rng(0)
    table = np.zeros((100, 24), np.float32)
    table[20:] = rng.normal(0, 0.2, (80, 24))
    table[20::2, 0] += 1.0
    table[21::2, 0] -= 1.0
    rows = rng.integers(20, 60, 400)
    tokens = np.stack([np.full(400, 1), rows, np.full(400, 10), np.full(400, 2)], axis=1).astype(np.int32)
    labels = (rows % 2).astype(np.int32)[:, None]
    cases = Cases(tokens, np.full((400, 3), 0.125, np.float32), np.full(400, 2, np.int32), labels, ((11, 12),))
    schedule = Schedule(steps=100, batch=16)
    found = optimize(SHAPE, 100, cases, schedule, 0, tmp_path / "w.npz", lambda step, loss: None, table=table)
    strange = np.arange(60, 100)
    asked = jnp.asarray(np.stack([np.full(40, 1), strange, np.full(40, 10)], axis=1))
    weights = {name: jnp.asarray(value) for name, value in found.items()}
    decided = network.logits(weights, network.forward(weights, asked, SHAPE)[:, 2], (11, 12)).argmax(-1)
    assert (np.asarray(decided) == strange % 2).mean() >= 0.95  # words one by one would be guessed: a half


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is not there.*stonechat get all-minilm-l6-v2 -o"):
        open_words(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="no sentence encoder with a WordPiece vocabulary"):
        open_words(tmp_path)
    with pytest.raises(ConfigurationError, match="no sentence encoder with a WordPiece vocabulary"):
        open_words(ENCODER.parent / "xlm-roberta")
    encoder = open_encoder(ENCODER)
    assert encoder is not None
    with pytest.raises(ConfigurationError, match=r"vocabulary is 400, of which .* alone are"):
        word_vocabulary(LABELS, TEXTS, 400, encoder)


@pytest.mark.parametrize("lines", ["kind: tiny\ninput: {text: 80, words: apart}", "kind: classify\ninput: {text: 80}"])
def test_a_task_file_that_cannot_have_them_says_what_they_need(lines: str) -> None:
    text = f"""task: 1
name: notes
{lines}
answer: {{type: object, additionalProperties: false, required: [a], properties: {{a: {{enum: [x, y]}}}}}}
none: {{a: x}}
examples: e.jsonl
network: {{embeddings: encoder, tied: true}}
"""
    with pytest.raises(ConfigurationError, match=r"expected `kind: classify`, `input: \{text: 240, words: apart\}`"):
        loads(text)


GENERATOR = """import argparse, json, random
parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int)
parser.add_argument("--cases", type=int)
args = parser.parse_args()
rng = random.Random(args.seed)
for _ in range(args.cases):
    hot = rng.random() < 0.5
    place = rng.choice("abcdefgh") + rng.choice("abcdefgh")
    thing = rng.choice(["pump", "boiler", "valve"])
    text = f"{thing} {rng.randint(1, 999)} of hall {place} is {'hot' if hot else 'cold'}"
    print(json.dumps({"input": {"text": text}, "answer": {"level": "alarm" if hot else "none"}}))
"""


@pytest.mark.slow  # 15 s of CPU
def test_a_task_with_an_encoders_words_becomes_a_bundle_for_any_board(tmp_path: Path) -> None:
    (tmp_path / "generate.py").write_text(GENERATOR, encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        f"""task: 1
name: notes
kind: classify
input: {{text: 60, numbers: short, words: apart}}
answer: {{type: object, additionalProperties: false, required: [level], properties: {{level: {{enum: [none, alarm]}}}}}}
none: {{level: none}}
generate: {{program: generate.py, cases: 600}}
network: {{layers: 1, width: 32, heads: 2, ffn: 32, vocabulary: 700, tied: true, embeddings: {ENCODER}}}
""",
        encoding="utf-8",
    )
    bundle = train(load(tmp_path), tmp_path / "bundle", Settings(0, 100, 16))
    assert {"model.image", "model.tflite", "tokenizer.model"} <= set(bundle.manifest.files)
    purpose = bundle.manifest.purpose
    assert purpose is not None and purpose["report"]["test"]["accuracy"] == 1.0
    answerer = Answerer.open(bundle.path)
    assert answerer.answer({"text": "PumpHot"}).answer == {"level": "alarm"}
    answerer.close()
