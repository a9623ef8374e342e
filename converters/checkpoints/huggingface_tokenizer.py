"""The tokenizer of a Hugging Face folder, whose facts are spread over up to six files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer

from converters.checkpoints import TokenizerFile
from converters.checkpoints.end_of_turn import ending_ids
from converters.checkpoints.fields import Fields, read_json
from device_runtime.errors import CheckpointError

__all__ = ["read_tokenizer"]

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(folder: Path, config: Fields, vocabulary: int) -> TokenizerFile:
    """Read `tokenizer.json`, else `tokenizer.model`, and what the files beside it say of special tokens.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or it has more tokens than the embedding has rows.
    """
    settings = _optional(folder / "special_tokens_map.json") | _optional(folder / "tokenizer_config.json")
    fields = Fields(settings, str(folder / "tokenizer_config.json"))
    file_name: Literal["tokenizer.json", "tokenizer.model"] = "tokenizer.json"
    if (folder / "tokenizer.json").is_file():
        content = _bytes_of(folder / "tokenizer.json")
        ids, special, adds_bos = _inspect_json(content, folder / "tokenizer.json")
    elif (folder / "tokenizer.model").is_file():
        file_name = "tokenizer.model"
        content = _with_added_tokens(folder)
        ids, special = _inspect_model(content, folder / file_name)
        adds_bos = {special["<s>"]} if "<s>" in special else set()  # what transformers' LlamaTokenizer does
    else:
        raise CheckpointError(f"{folder}: has neither tokenizer.json nor tokenizer.model. Fetch one of them.")
    if ids and max(ids.values()) >= vocabulary:
        raise CheckpointError(
            f"{folder / file_name}: has token {max(ids.values())}, but the embedding has {vocabulary} rows. "
            "Tokenizer and weights are of different models: fetch both again."
        )
    texts = {name: text for name in _SPECIAL if (text := _text_of(settings.get(name))) is not None}
    generation = _optional(folder / "generation_config.json")
    bos_id = ids.get(texts.get("bos_token", ""), _declared_id(config, vocabulary))
    declared = [
        *_ids(generation.get("eos_token_id")),
        *_ids(config.values.get("eos_token_id")),
        ids.get(texts.get("eos_token", "")),
    ]
    by_id = {number: text for text, number in ids.items()}
    eos_ids = ending_ids((n for n in declared if n is None or n < vocabulary), special)
    for name, number in [("bos_token", bos_id), ("eos_token", eos_ids[0] if eos_ids else None)]:
        if name not in texts and number in by_id:
            texts[name] = by_id[number]
    return TokenizerFile(
        file_name=file_name,
        content=content,
        bos_id=bos_id,
        eos_ids=eos_ids,
        adds_bos=bos_id is not None and fields.flag("add_bos_token", bos_id in adds_bos),
        chat_template=_chat_template(folder, settings),
        special_tokens=texts,
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error


def _inspect_json(content: bytes, path: Path) -> tuple[dict[str, int], dict[str, int], set[int]]:
    """Ids by token, those of special tokens, and what the post-processor puts in front of a text."""
    try:
        tokenizer = Tokenizer.from_buffer(content)
        ids = tokenizer.get_vocab(with_added_tokens=True)
        special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        first = tokenizer.encode("", add_special_tokens=True).ids[:1]
    except Exception as error:  # The package raises Exception itself.
        raise CheckpointError(f"{path}: damaged: {error}. Fetch the file again.") from error
    return ids, special, set(first)


def _inspect_model(content: bytes, path: Path) -> tuple[dict[str, int], dict[str, int]]:
    try:
        model = SentencePieceProcessor(model_proto=content)
        ids = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    except Exception as error:  # RuntimeError today; nothing of the package may escape.
        raise CheckpointError(f"{path}: not a SentencePiece model: {error}. Fetch the file again.") from error
    return ids, {piece: i for piece, i in ids.items() if model.is_control(i) or piece.startswith("<|")}


def _with_added_tokens(folder: Path) -> bytes:
    """`tokenizer.model`, with the pieces of `added_tokens.json` that come after its own."""
    content = _bytes_of(folder / "tokenizer.model")
    added = _optional(folder / "added_tokens.json")
    if not added:
        return content
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    try:
        model.ParseFromString(content)
        more = sorted((number, token) for token, number in added.items() if number >= len(model.pieces))
    except Exception as error:  # protobuf's DecodeError, or ids that are no numbers
        raise CheckpointError(
            f"{folder}: tokenizer.model or added_tokens.json is damaged: {error}. Fetch both."
        ) from error
    if [number for number, _ in more] != list(range(len(model.pieces), len(model.pieces) + len(more))):
        raise CheckpointError(
            f"{folder}: added_tokens.json leaves gaps after the {len(model.pieces)} pieces of tokenizer.model. "
            "Save the tokenizer again as tokenizer.json."
        )
    for _, token in more:
        model.pieces.add(piece=token, score=0.0, type=model.SentencePiece.USER_DEFINED)
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read as UTF-8 text: {error}. Fetch it again.") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: chat_template is no text. Fetch the file again.")
    return template


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text_of(token: object) -> str | None:
    """A special token is a string, or an object with its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _declared_id(config: Fields, vocabulary: int) -> int | None:
    number = next(_ids(config.values.get("bos_token_id")), None)
    return number if number is not None and number < vocabulary else None


def _ids(value: object) -> Iterator[int]:
    """One id or a list of them."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            yield number
