"""The tokenizer of an encoder or a translator, and the frame that it puts around a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from converters.checkpoints.fields import SAME_AS_PUBLISHED, Fields, read_json, refuse_pointer
from device_runtime.engine.encoder.vocabulary import TARGET, VOCABULARY
from device_runtime.engine.text.tokenizer_trial import try_tokenizer_content
from device_runtime.errors import CheckpointError

__all__ = ["FramedTokenizer", "read_framed_tokenizer"]


@dataclass(frozen=True)
class FramedTokenizer:
    """A tokenizer as the bundle will carry it."""

    file_name: Literal["tokenizer.json", "tokenizer.model"]
    content: bytes
    start_ids: tuple[int, ...]  # before every text: [CLS]
    end_ids: tuple[int, ...]  # after it: [SEP], </s>
    lowercases: bool = False  # whether capitals make no difference to it
    more: Mapping[str, bytes] = field(default_factory=dict)  # other files: a translator may have two vocabularies

    def framed(self, text: str) -> list[int]:
        """The tokens of a text, its frame included; of a tokenizer.json."""
        ids: list[int] = Tokenizer.from_buffer(self.content).encode(text, add_special_tokens=False).ids
        return [*self.start_ids, *ids, *self.end_ids]


def read_framed_tokenizer(folder: Path, vocabulary: int) -> FramedTokenizer:
    """Read tokenizer.json, else vocab.txt (WordPiece), source.spm with target.spm (Marian), or spiece.model (T5).

    Raises:
        CheckpointError: there is none, it is damaged, or it has more tokens than the embedding has rows.
    """
    settings = {**_optional(folder / "special_tokens_map.json"), **_optional(folder / "tokenizer_config.json")}
    if (folder / "source.spm").is_file():
        found = _marian(folder)
        highest = max(json.loads(found.more[VOCABULARY]).values())
    elif (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file():
        path = folder / "tokenizer.json"
        content = _bytes(path) if path.is_file() else _of_vocabulary(folder / "vocab.txt", settings)
        found, highest = _json(path if path.is_file() else folder / "vocab.txt", content, settings)
    elif (folder / "spiece.model").is_file():
        found, highest = _sentencepiece(folder / "spiece.model", settings)
    else:
        raise CheckpointError(
            f"{folder}: has no tokenizer.json, vocab.txt, source.spm or spiece.model. Fetch the model's tokenizer, or "
            "save it again with AutoTokenizer.from_pretrained(…).save_pretrained(…)."
        )
    if highest >= vocabulary:
        raise CheckpointError(
            f"{folder / found.file_name}: has token {highest}, but the embedding has {vocabulary} rows. "
            "Tokenizer and weights are of different models: use those of one."
        )
    return found


def _json(path: Path, content: bytes, settings: dict[str, Any]) -> tuple[FramedTokenizer, int]:
    _require_sound(path, content, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()  # settings of an export, which would cut texts without a word
        tokenizer.no_padding()
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        framed = tokenizer.encode("a", add_special_tokens=True).ids
        lower = tokenizer.encode("A", add_special_tokens=False).ids == plain
        ids = tokenizer.get_vocab(with_added_tokens=True)
    except Exception as error:  # the package raises Exception itself
        raise CheckpointError(f"{path}: damaged: {error}. {SAME_AS_PUBLISHED}") from error
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), None)
    if not plain or start is None:
        raise CheckpointError(
            f"{path}: makes {framed} of one letter, and {plain} without its frame. {SAME_AS_PUBLISHED}"
        )
    before, after = framed[:start], framed[start + len(plain) :]
    if not before and not after:  # no post-processor: the frame is in the names alone
        names = [(_text(settings.get("cls_token")),), (_text(settings.get("sep_token")),)]
        before, after = ([ids[n] for n in group if n in ids] for group in names)
    cleaned = tokenizer.to_str().encode()
    return FramedTokenizer("tokenizer.json", cleaned, tuple(before), tuple(after), lower), max(ids.values())


def _of_vocabulary(path: Path, settings: dict[str, Any]) -> bytes:
    """A tokenizer.json of BERT's vocab.txt: a token a line."""
    try:
        lines = _bytes(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error}. {SAME_AS_PUBLISHED}") from error
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    ids = {token: i for i, token in enumerate(tokens)}
    unknown = _text(settings.get("unk_token")) or "[UNK]"
    if len(ids) != len(tokens) or unknown not in ids:
        raise CheckpointError(
            f"{path}: has {len(tokens)} lines, {len(ids)} of them different, {'with' if unknown in ids else 'without'} "
            f"{unknown}; expected a token a line. {SAME_AS_PUBLISHED}"
        )
    fields = Fields(settings, str(path.parent / "tokenizer_config.json"))
    tokenizer = Tokenizer(WordPiece(ids, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=fields.flag("tokenize_chinese_chars", True),
        strip_accents=fields.flag("strip_accents") if "strip_accents" in fields else None,
        lowercase=fields.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    for name, usual in zip(names, ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), strict=True):
        settings.setdefault(name, usual)
        if (text := _text(settings[name])) in ids:
            tokenizer.add_special_tokens([text])
    return tokenizer.to_str().encode()


def _marian(folder: Path) -> FramedTokenizer:
    """Two SentencePiece models, and one table of ids for the pieces of both."""
    files = {name: folder / name for name in ("source.spm", "target.spm", "vocab.json")}
    for name, path in files.items():
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing; a Marian model has {', '.join(files)}. Fetch it.")
    vocabulary = read_json(files["vocab.json"])
    if not all(isinstance(i, int) and i >= 0 for i in vocabulary.values()) or "</s>" not in vocabulary:
        raise CheckpointError(
            f"{files['vocab.json']}: expected an id for each piece, </s> among them. {SAME_AS_PUBLISHED}"
        )
    source, target = _bytes(files["source.spm"]), _bytes(files["target.spm"])
    for path, content in ((files["source.spm"], source), (files["target.spm"], target)):
        _require_sound(path, content, "tokenizer.model")
    table = json.dumps(vocabulary, ensure_ascii=False).encode()
    more = {TARGET: target, VOCABULARY: table}
    return FramedTokenizer("tokenizer.model", source, (), (int(vocabulary["</s>"]),), more=more)


def _sentencepiece(path: Path, settings: dict[str, Any]) -> tuple[FramedTokenizer, int]:
    from sentencepiece import SentencePieceProcessor

    content = _bytes(path)
    _require_sound(path, content, "tokenizer.model")
    library = SentencePieceProcessor(model_proto=content)
    end = library.piece_to_id(_text(settings.get("eos_token")) or "</s>")
    return FramedTokenizer("tokenizer.model", content, (), (end,)), library.vocab_size() - 1


def _require_sound(path: Path, content: bytes, kind: Literal["tokenizer.json", "tokenizer.model"]) -> None:
    if wrong := try_tokenizer_content(content, kind):
        raise CheckpointError(f"{path}: damaged: {wrong}. {SAME_AS_PUBLISHED}")


def _bytes(path: Path) -> bytes:
    refuse_pointer(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
