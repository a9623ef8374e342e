"""The tokenizer of a Hugging Face folder, whose facts are spread over up to six files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from converters.checkpoints import TokenizerFile
from converters.checkpoints.chat_template import check_template, choose_template
from converters.checkpoints.end_of_turn import ending_ids, template_ending_ids
from converters.checkpoints.fields import SAME_AS_PUBLISHED, Fields, read_json, refuse_pointer
from converters.checkpoints.llama_spaces import Spaces
from device_runtime.engine.text.tokenizer_trial import try_tokenizer_content
from device_runtime.errors import CheckpointError

__all__ = ["read_tokenizer"]

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(folder: Path, config: Fields, vocabulary: int) -> TokenizerFile:
    """Read `tokenizer.json`, else `tokenizer.model`, else `vocab.json` and `merges.txt`, and the settings beside it.

    What transformers 5 makes of these files is the measure: whether BOS goes before a text is up to the post-processor
    of a tokenizer.json, whatever `add_bos_token` says; tokens of `added_tokens_decoder` that the tokenizer lacks get
    the next ids.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or it has more tokens than the embedding has rows.
    """
    settings = _optional(folder / "special_tokens_map.json") | _optional(folder / "tokenizer_config.json")
    fields = Fields(settings, str(folder / "tokenizer_config.json"))
    more = _added(settings)
    file_name: Literal["tokenizer.json", "tokenizer.model"] = "tokenizer.json"
    spaces = Spaces.of(fields)
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        content, ids, special, adds_bos = _read_json(path, _bytes_of(path), more, vocabulary, spaces)
    elif (folder / "tokenizer.model").is_file():
        file_name = "tokenizer.model"
        content = _with_added_tokens(folder, more, vocabulary, spaces)
        ids, special = _inspect_model(content, folder / file_name)
        adds_bos = {special["<s>"]} if "<s>" in special and fields.flag("add_bos_token", False) else set()
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        path = folder / "vocab.json"
        content, ids, special, adds_bos = _read_json(path, _from_merges(folder, fields), more, vocabulary)
    else:
        raise CheckpointError(
            f"{folder}: has neither tokenizer.json nor tokenizer.model, nor vocab.json and merges.txt. "
            "Fetch one of them."
        )
    if ids and max(ids.values()) >= vocabulary:
        raise CheckpointError(
            f"{folder / file_name}: has token {max(ids.values())}, but the embedding has {vocabulary} rows. "
            "Tokenizer and weights are of different models: use those of one."
        )
    texts = {name: text for name in _SPECIAL if (text := _text_of(settings.get(name))) is not None}
    generation = _optional(folder / "generation_config.json")
    bos_id = ids.get(texts.get("bos_token", ""), _declared_id(config, vocabulary))
    by_id = {number: text for text, number in ids.items()}
    first_eos = next((n for n in _declared_eos(generation, config) if n in by_id), None)
    for name, number in [("bos_token", bos_id), ("eos_token", first_eos)]:
        if name not in texts and number in by_id:
            texts[name] = by_id[number]
    template, notes = choose_template(_templates(folder, settings), str(folder))
    notes += check_template(template, texts, str(folder))
    declared = [
        *_declared_eos(generation, config),
        ids.get(texts.get("eos_token", "")),
        *template_ending_ids(template, texts, special),
    ]
    eos_ids = ending_ids((n for n in declared if n is None or n < vocabulary), ids)
    if "eos_token" not in texts and eos_ids and eos_ids[0] in by_id:
        texts["eos_token"] = by_id[eos_ids[0]]
    return TokenizerFile(
        file_name=file_name,
        content=content,
        bos_id=bos_id,
        eos_ids=eos_ids,
        adds_bos=bos_id is not None and bos_id in adds_bos,
        chat_template=template,
        special_tokens=texts,
        spaced=spaces.legacy,
        own_space=spaces.llama or not spaces.legacy,
        notes=tuple(notes),
    )


def _declared_eos(generation: dict[str, Any], config: Fields) -> list[int]:
    return [*_ids(generation.get("eos_token_id")), *_ids(config.values.get("eos_token_id"))]


def _added(settings: dict[str, Any]) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder` in the order of their ids, then special tokens that are named elsewhere."""
    decoder = settings.get("added_tokens_decoder")
    found: dict[str, AddedToken] = {}
    if isinstance(decoder, dict):
        numbered = [(int(number), entry) for number, entry in decoder.items() if number.isdecimal()]
        for _, entry in sorted(numbered, key=lambda item: item[0]):
            if (text := _text_of(entry)) and isinstance(entry, dict):
                flags = {name: bool(entry[name]) for name in _FLAGS if name in entry}
                found.setdefault(text, AddedToken(text, **flags))
    extra = settings.get("additional_special_tokens")
    for token in (*(settings.get(name) for name in _SPECIAL), *(extra if isinstance(extra, list) else [])):
        if text := _text_of(token):
            found.setdefault(text, AddedToken(text, special=True, normalized=False))
    return list(found.values())


def _bytes_of(path: Path) -> bytes:
    refuse_pointer(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error


def _from_merges(folder: Path, settings: Fields) -> bytes:
    """A tokenizer.json of GPT-2's kind out of vocab.json and merges.txt, in which older models come (OPT, GPT-2)."""
    kind = settings.text("tokenizer_class", "GPT2Tokenizer").removesuffix("Fast")
    if kind != "GPT2Tokenizer":
        raise CheckpointError(
            f"{settings.where}: tokenizer_class is {kind!r}; vocab.json and merges.txt are read for GPT2Tokenizer. "
            "Fetch the model's tokenizer.json, or save one with transformers."
        )
    vocab = read_json(folder / "vocab.json")
    try:
        lines = _bytes_of(folder / "merges.txt").decode().split("\n")
        pairs = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
        merges = [(left, right) for left, _, right in pairs]
        tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    except Exception as error:  # The package raises Exception itself.
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt do not fit together: {error}. {SAME_AS_PUBLISHED}"
        ) from error
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=settings.flag("add_prefix_space", False))
    tokenizer.decoder = ByteLevelDecoder()
    bos = _text_of(settings.values.get("bos_token"))
    if settings.flag("add_bos_token", False) and bos in vocab:
        tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    return tokenizer.to_str().encode()


def _read_json(
    path: Path, content: bytes, more: list[AddedToken], vocabulary: int, spaces: Spaces | None = None
) -> tuple[bytes, dict[str, int], dict[str, int], set[int]]:
    """The file as the bundle gets it, ids by token, those of added tokens, and what goes in front of a text."""
    if wrong := try_tokenizer_content(content, "tokenizer.json"):
        raise CheckpointError(f"{path}: damaged: {wrong}. {SAME_AS_PUBLISHED}")
    try:
        tokenizer = Tokenizer.from_buffer(content)
        changed = tokenizer.truncation is not None or tokenizer.padding is not None
        tokenizer.no_truncation()  # settings of a training or an export, which would cut prompts
        tokenizer.no_padding()
        changed |= spaces is not None and spaces.put_into(tokenizer)
        size = tokenizer.get_vocab_size()
        missing = [token for token in more if tokenizer.token_to_id(token.content) is None][: max(0, vocabulary - size)]
        if missing:
            tokenizer.add_tokens(missing)
        if changed or missing:
            content = tokenizer.to_str().encode()
        ids = tokenizer.get_vocab(with_added_tokens=True)
        added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
        first = tokenizer.encode("", add_special_tokens=True).ids[:1]
    except Exception as error:  # The package raises Exception itself.
        raise CheckpointError(f"{path}: damaged: {error}. {SAME_AS_PUBLISHED}") from error
    return content, ids, added, set(first)


def _inspect_model(content: bytes, path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by piece, and those of control and user-defined pieces."""
    if wrong := try_tokenizer_content(content, "tokenizer.model"):
        raise CheckpointError(f"{path}: not a SentencePiece model: {wrong}. {SAME_AS_PUBLISHED}")
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    try:
        SentencePieceProcessor(model_proto=content)
        model.ParseFromString(content)
    except Exception as error:  # RuntimeError today; nothing of the package may escape.
        raise CheckpointError(f"{path}: not a SentencePiece model: {error}. {SAME_AS_PUBLISHED}") from error
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    added = (model.SentencePiece.CONTROL, model.SentencePiece.USER_DEFINED)
    return ids, {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type in added}


def _with_added_tokens(folder: Path, more: list[AddedToken], vocabulary: int, spaces: Spaces) -> bytes:
    """`tokenizer.model`, with the tokens of `added_tokens.json` and of the settings that it does not have."""
    content = _bytes_of(folder / "tokenizer.model")
    added = _optional(folder / "added_tokens.json")
    if not added and not more and spaces.prefix:
        return content
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError
        raise CheckpointError(
            f"{folder / 'tokenizer.model'}: not a SentencePiece model: {error}. {SAME_AS_PUBLISHED}"
        ) from error
    try:
        size = len(model.pieces)
        numbered = sorted((number, token) for token, number in added.items() if number >= size)
    except TypeError as error:  # ids that are no numbers
        raise CheckpointError(f"{folder}: added_tokens.json is damaged: {error}. {SAME_AS_PUBLISHED}") from error
    if [number for number, _ in numbered] != list(range(size, size + len(numbered))):
        raise CheckpointError(
            f"{folder}: added_tokens.json leaves gaps after the {size} pieces of tokenizer.model. "
            "Save the tokenizer again as tokenizer.json."
        )
    # The library finds a user-defined piece in a text whose spaces are its own mark for them.
    mark = "\u2581" if model.normalizer_spec.escape_whitespaces else " "
    known = {piece.piece for piece in model.pieces}
    special = {token.content for token in more if token.special}
    for token in [token for _, token in numbered] + [token.content for token in more]:
        piece = token.replace(" ", mark)
        if piece not in known and token not in known and len(model.pieces) < vocabulary:
            kind = model.SentencePiece.CONTROL if token in special else model.SentencePiece.USER_DEFINED
            model.pieces.add(piece=piece, score=0.0, type=kind)
            known.add(piece)
    if not spaces.prefix:
        model.normalizer_spec.add_dummy_prefix = False
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, from each of the places where one may be; the later file wins."""
    where, template = folder / "tokenizer_config.json", settings.get("chat_template")
    older = _optional(folder / "chat_template.json").get("chat_template")
    if older is not None:
        where, template = folder / "chat_template.json", older
    if isinstance(template, list):  # several, by name
        found = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    else:
        found = {"default": template} if template is not None else {}
    if not all(isinstance(item, str) for pair in found.items() for item in pair):
        raise CheckpointError(f"{where}: chat_template is no text. {SAME_AS_PUBLISHED}")
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            try:
                found[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{path}: cannot be read as UTF-8 text: {error}. {SAME_AS_PUBLISHED}") from error
    return {str(name): str(text) for name, text in found.items()}


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
