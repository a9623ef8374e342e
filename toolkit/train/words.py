"""A vocabulary of whole words: those of a task's texts, and the commonest of a sentence encoder's.

A network that knows a word by an encoder's vector for it knows words that no example has. So the vocabulary is a
SentencePiece unigram model that is written, not trained: each word is one piece with its space, and parts of words
spell the others. See docs/guides/train.md, "Words that no example has".
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from converters.encoders.checkpoint import EncoderCheckpoint, open_encoder
from converters.encoders.network import EncoderConfig
from converters.encoders.ops_numpy import reference_sentences
from converters.encoders.quality import kept
from device_runtime.errors import ConfigurationError

__all__ = ["open_words", "piece_vectors", "word_vocabulary"]

_SPACE = "\u2581"  # as SentencePiece writes it
_CONTROL, _UNKNOWN, _NORMAL, _USER_DEFINED, _BYTE = 3, 2, 1, 4, 6  # ModelProto.SentencePiece.Type
_PARTS = 0.15  # of the pieces, parts of words
_TASK_WORDS = 0.7  # of the words, at most; the rest are the encoder's
_SELDOM = 3  # times that a word is in the task's texts to be a piece
_CHARACTERS = [chr(code) for code in range(33, 127)]  # that spell what no piece does
_TOGETHER = 64  # words that are read at once
_WORD = re.compile(r"[a-z]{2,}")
_MANY = 20_000.0  # how often the encoder's commonest word would be in the task's texts


def word_vocabulary(symbols: Sequence[str], texts: Iterable[str], size: int, encoder: EncoderCheckpoint) -> bytes:
    """A SentencePiece model of `size` pieces at most.

    Args:
        symbols: texts that are one token each.
        texts: prompts of the task, whose words are apart.

    Raises:
        ConfigurationError: `size` is too small for bytes, characters and some words.
    """
    counts = Counter(word for text in texts for word in text.split())
    characters = sorted({c for word in counts for c in word if c.isprintable()} | set(_CHARACTERS))
    room = size - 3 - 256 - len(symbols) - 2 * len(characters) - 1
    if room < 100:
        raise ConfigurationError(
            f"network: vocabulary is {size}, of which bytes, symbols and characters alone are {size - room}; "
            "expected 2000 or more."
        )
    parts, words = _encoder_words(encoder)
    own = [word for word, n in counts.most_common() if n >= _SELDOM and len(word) > 1]
    own = own[: int(room * (1 - _PARTS) * _TASK_WORDS)]
    parts = parts[: int(room * _PARTS)]
    words = [word for word in words if word not in set(own)][: room - len(own) - len(parts)]
    total = sum(counts.values()) + _MANY * math.log(len(words) + 2)
    scored = {_SPACE + word: float(counts[word]) for word in own}
    scored |= {_SPACE + word: _MANY / (10 + place) for place, word in enumerate(words)}
    scored |= {part: _MANY / (100 + place) for place, part in enumerate(parts)}

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time

    def add(text: str, kind: int, score: float = 0.0) -> None:
        model.pieces.add(piece=text, score=score, type=kind)

    add("<unk>", _UNKNOWN)
    add("<s>", _CONTROL)
    add("</s>", _CONTROL)
    for byte in range(256):
        add(f"<0x{byte:02X}>", _BYTE)
    for symbol in symbols:
        add(symbol, _USER_DEFINED)
    for place, character in enumerate([_SPACE, *characters, *(_SPACE + c for c in characters)]):
        add(character, _NORMAL, -14.0 - place / 1000 if len(character) == 1 else -10.0 - place / 1000)
    for text, count in scored.items():
        add(text, _NORMAL, math.log(max(count, 0.5) / total))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.UNIGRAM, len(model.pieces), True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer.name, normalizer.add_dummy_prefix = "identity", False
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    return bytes(model.SerializeToString(deterministic=True))


def piece_vectors(
    vocabulary: bytes, encoder: EncoderCheckpoint, progress: Callable[[float], None] = lambda share: None
) -> npt.NDArray[np.float32]:
    """The encoder's vector for each piece, (pieces, size): of length 1, around their mean; zeros of what is no word.

    Args:
        vocabulary: as `word_vocabulary` makes it; its words come last.
    """
    assert isinstance(encoder.config, EncoderConfig)
    model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary)  # type: ignore[attr-defined]
    texts = [piece.piece.lstrip(_SPACE) if piece.type == _NORMAL else "" for piece in model.pieces]
    first = next(i for i, text in enumerate(texts) if len(text) > 1)
    frame, tokenizer = encoder.tokenizer, Tokenizer.from_buffer(encoder.tokenizer.content)
    encoded = tokenizer.encode_batch(texts[first:], add_special_tokens=False)
    read, rows = kept(encoder.read), [[*frame.start_ids, *found.ids, *frame.end_ids] for found in encoded]
    vectors = np.zeros((len(rows), encoder.config.width), np.float32)
    done = 0
    for length in sorted({len(row) for row in rows}):
        places = [i for i, row in enumerate(rows) if len(row) == length]
        for start in range(0, len(places), _TOGETHER):
            some = places[start : start + _TOGETHER]
            vectors[some] = reference_sentences(encoder.config, read, [rows[i] for i in some])
            progress((done := done + len(some)) / len(rows))
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    return np.concatenate([np.zeros((first, vectors.shape[1]), np.float32), vectors.astype(np.float32)])


def open_words(folder: Path) -> EncoderCheckpoint:
    """The encoder of a task's `embeddings`.

    Raises:
        ConfigurationError: it is not there, or is no sentence encoder with a WordPiece vocabulary.
    """
    folder = Path(os.path.normpath(folder))  # without the `..` of a task file's path
    if not folder.is_dir():
        raise ConfigurationError(
            f"network: embeddings is {folder}, which is not there; expected a sentence encoder's folder. "
            f"`stonechat get all-minilm-l6-v2 -o {folder}` fetches one (83 MB)."
        )
    encoder = open_encoder(folder)
    if encoder is None or encoder.task != "embed" or not all(_encoder_words(encoder)):
        raise ConfigurationError(
            f"network: embeddings is {folder}, which is no sentence encoder with a WordPiece vocabulary; expected one "
            "such as all-MiniLM-L6-v2."
        )
    return encoder


def _encoder_words(encoder: EncoderCheckpoint) -> tuple[list[str], list[str]]:
    """Parts of words, and words; the commonest first, as such vocabularies are numbered."""
    if encoder.tokenizer.file_name != "tokenizer.json":
        return [], []
    places: dict[str, int] = Tokenizer.from_buffer(encoder.tokenizer.content).get_vocab(with_added_tokens=False)
    pieces = sorted(places, key=lambda piece: places[piece])
    parts = [piece[2:] for piece in pieces if piece.startswith("##") and _WORD.fullmatch(piece[2:])]
    return parts, [piece for piece in pieces if _WORD.fullmatch(piece)]
