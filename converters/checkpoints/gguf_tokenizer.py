"""The tokenizer in a GGUF file's metadata, rebuilt as the file that it was exported from.

`tokenizer.ggml.model` "gpt2" is byte-level BPE and becomes `tokenizer.json` (Hugging Face tokenizers);
"llama" is SentencePiece and becomes `tokenizer.model` (its ModelProto).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer

from converters.checkpoints import TokenizerFile
from converters.checkpoints.chat_template import check_template, choose_template
from converters.checkpoints.end_of_turn import END_OF_TURN, ending_ids, template_ending_ids
from converters.checkpoints.fields import SAME_AS_PUBLISHED, Fields
from device_runtime.engine.text.tokenizer_trial import try_tokenizer_content
from device_runtime.errors import CheckpointError

__all__ = ["PRE_TOKENIZERS", "read_tokenizer"]

# tokenizer.ggml.token_type; SentencePiece numbers its pieces the same way.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(digits: str) -> list[dict[str, Any]]:
    """GPT-4's regular expression, with runs of digits cut as `digits` says."""
    pattern = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}{_REST}"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(False)]


_GPT2 = [_byte_level(True)]
_SMOLLM = [{"type": "Digits", "individual_digits": True}, _byte_level(True)]


def _by_case(digits: str, contractions: str = "") -> list[dict[str, Any]]:
    """GPT-4o's regular expression: a word ends where capitals begin."""
    before, capitals, small = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    end = f"{contractions}?" if contractions else ""
    words = f"{before}{capitals}*{small}+{end}|{before}{capitals}+{small}*{end}"
    pattern = rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(False)]


_LLAMA3 = _split(r"\p{N}{1,3}")
_QWEN2 = _split(r"\p{N}")

# tokenizer.ggml.pre -> how text is cut before the merges
PRE_TOKENIZERS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "olmo": _GPT2,  # GPT-NeoX and Pythia
    "exaone4": _GPT2,
    "dbrx": _LLAMA3,  # Phi-4, Granite 4
    "smaug-bpe": _LLAMA3,  # SmolLM3
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "gpt-4o": _by_case(r"\p{N}{1,3}", _CONTRACTIONS),  # Phi-4 mini
    "tekken": _by_case(r"\p{N}"),  # Mistral Nemo
}
_TAKES_WHOLE_WORDS = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "pixtral",
    "tekken",
)  # a word in the vocabulary skips the merges; BOS by default
_NORMALIZES = ("qwen2", "deepseek-r1-qwen")  # to NFC

_ADDED = (_CONTROL, _USER_DEFINED)
_UNUSED_IDS = ("unknown", "padding")  # nothing is computed with them
_TEMPLATE = "tokenizer.chat_template"
_BRACKETED = re.compile(r"[<\[]\S+[>\]]")
_ID_KEYS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(metadata: Fields, vocabulary: int) -> TokenizerFile:
    """Rebuild the tokenizer of a model with `vocabulary` rows.

    Raises:
        CheckpointError: no tokenizer, one of an unknown kind or with an unknown pre-tokenizer, or a damaged one.
    """
    kind = metadata.text("tokenizer.ggml.model", "absent")
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{metadata.where}: tokenizer.ggml.model is {kind!r}; "
            "supported: gpt2 (byte-level BPE), llama (SentencePiece). "
            "Use a checkpoint of the model in Hugging Face form."
        )
    tokens = _list(metadata, "tokenizer.ggml.tokens", str)
    if len(tokens) != vocabulary:
        raise _damaged(metadata, f"{len(tokens)} tokens, but the embedding has {vocabulary} rows")
    types = _list(metadata, "tokenizer.ggml.token_type", int, [_NORMAL] * len(tokens))
    if len(types) != len(tokens) or not set(types) <= set(range(1, 7)):
        raise _damaged(metadata, "tokenizer.ggml.token_type does not have one type from 1 to 6 for each token")
    ids = {name: _id(metadata, key, len(tokens)) for name, key in _ID_KEYS.items()}
    special_tokens = {name: tokens[number] for name, number in ids.items() if number is not None}
    template, notes = choose_template(_templates(metadata), metadata.where)
    notes += check_template(template, special_tokens, metadata.where)
    added = {token: i for i, (token, type_) in enumerate(zip(tokens, types, strict=True)) if type_ in _ADDED}
    by_text = {token: i for i, token in enumerate(tokens) if token in END_OF_TURN}
    named = {
        token: i for i, token in enumerate(tokens) if template and _BRACKETED.fullmatch(token) and token in template
    }
    ends = [ids["eos_token"], _id(metadata, "eot", len(tokens)), _id(metadata, "eom", len(tokens))]
    ends += template_ending_ids(template, special_tokens, {**named, **added, **by_text})
    eos_ids = ending_ids(ends, by_text)
    # What ends a turn is no text, whatever its type in the file.
    types = [_CONTROL if i in eos_ids and type_ in (_NORMAL, _USER_DEFINED) else type_ for i, type_ in enumerate(types)]
    if kind == "gpt2":
        pre = _pre_tokenizer(metadata)
        adds_bos = metadata.flag("tokenizer.ggml.add_bos_token", pre in _TAKES_WHOLE_WORDS)
        content = _byte_level_bpe(metadata, tokens, types, pre)
    else:
        adds_bos = metadata.flag("tokenizer.ggml.add_bos_token", True)
        content = _sentencepiece(metadata, tokens, types)
    return TokenizerFile(
        file_name="tokenizer.json" if kind == "gpt2" else "tokenizer.model",
        content=content,
        bos_id=ids["bos_token"],
        eos_ids=eos_ids,
        adds_bos=adds_bos and ids["bos_token"] is not None,
        chat_template=template,
        special_tokens=special_tokens,
        notes=tuple(notes),
    )


def _templates(metadata: Fields) -> dict[str, str]:
    """Chat templates by name; the one without a name is the default."""
    found = {}
    for key in metadata.values:
        if key == _TEMPLATE:
            found["default"] = metadata.text(key)
        elif key.startswith(f"{_TEMPLATE}."):
            found[key.removeprefix(f"{_TEMPLATE}.")] = metadata.text(key)
    return found


def _pre_tokenizer(metadata: Fields) -> str:
    pre = metadata.text("tokenizer.ggml.pre", "absent")
    if pre not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{metadata.where}: tokenizer.ggml.pre is {pre!r}; known: {', '.join(sorted(PRE_TOKENIZERS))}. "
            "Another one would cut text in the wrong places: use a checkpoint in Hugging Face form, "
            "or one exported by a current llama.cpp."
        )
    return pre


def _byte_level_bpe(metadata: Fields, tokens: Sequence[str], types: Sequence[int], pre: str) -> bytes:
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise _damaged(metadata, f"token {twice!r} is there twice")
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": type_ == _CONTROL,
        }
        for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ in (_CONTROL, _USER_DEFINED) and token
    ]
    steps = PRE_TOKENIZERS[pre]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in _NORMALIZES else None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        # BOS is the runtime's business (TokenizerFile.adds_bos), so nothing is added here.
        "post_processor": _byte_level(True),
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _TAKES_WHOLE_WORDS,
            "vocab": vocab,
            "merges": _list(metadata, "tokenizer.ggml.merges", str),
        },
    }
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    if wrong := try_tokenizer_content(content, "tokenizer.json"):
        raise _damaged(metadata, f"its vocabulary and merges do not fit together: {wrong}")
    try:
        Tokenizer.from_buffer(content)
    except Exception as error:  # The package raises Exception itself.
        raise _damaged(metadata, f"its vocabulary and merges do not fit together: {error}") from error
    return content


def _sentencepiece(metadata: Fields, tokens: Sequence[str], types: Sequence[int]) -> bytes:
    scores = _list(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise _damaged(metadata, f"{len(scores)} scores for {len(tokens)} tokens")
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    unknown = _unknown_piece(metadata, types)
    for i, (token, type_, score) in enumerate(zip(tokens, types, scores, strict=True)):
        if type_ == _UNKNOWN and i != unknown:  # padding of the vocabulary; SentencePiece takes one piece of this type
            type_ = _UNUSED
        if (
            type_ == _USER_DEFINED
        ):  # llama.cpp finds them in the text, SentencePiece in the text with its mark for spaces
            token = token.replace(" ", "\u2581")
        model.pieces.add(piece=token, score=score, type=type_)
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = _BYTE in types
    for name, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]:
        number = _id(metadata, key, len(tokens))
        if name == "unk" and unknown is not None:
            number = unknown  # the type decides in SentencePiece, and some files name another
        setattr(trainer, f"{name}_id", -1 if number is None else number)
        if number is not None:
            setattr(trainer, f"{name}_piece", tokens[number])
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    normalizer.remove_extra_whitespaces = metadata.flag("tokenizer.ggml.remove_extra_whitespaces", False)
    normalizer.escape_whitespaces = True
    if "tokenizer.ggml.precompiled_charsmap" in metadata:
        charsmap = _list(metadata, "tokenizer.ggml.precompiled_charsmap", int)
        normalizer.precompiled_charsmap = bytes(value & 0xFF for value in charsmap)
    content: bytes = model.SerializeToString(deterministic=True)
    if wrong := try_tokenizer_content(content, "tokenizer.model"):
        raise _damaged(metadata, f"SentencePiece refuses its pieces: {wrong}")
    try:
        SentencePieceProcessor(model_proto=content)
    except Exception as error:  # RuntimeError today; nothing of the package may escape.
        raise _damaged(metadata, f"SentencePiece refuses its pieces: {error}") from error
    return content


def _unknown_piece(metadata: Fields, types: Sequence[int]) -> int | None:
    """The piece for what no other piece spells: the declared one, if its type fits, else the first of this type."""
    declared = _id(metadata, "unknown", len(types))
    if declared is not None and types[declared] == _UNKNOWN:
        return declared
    return types.index(_UNKNOWN) if _UNKNOWN in types else None


def _id(metadata: Fields, name: str, count: int) -> int | None:
    """A special token's id; None where the file has none, or one that llama.cpp overlooks as well."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in metadata:
        return None
    number = metadata.integer(key, least=-1)
    if number in (-1, 0xFFFFFFFF) or (number >= count and name in _UNUSED_IDS):
        return None
    if number >= count:
        raise _damaged(metadata, f"{key} is {number}, past the {count} tokens")
    return number


def _list(metadata: Fields, key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    values = metadata.values.get(key, default)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        found = "absent" if values is None else "of another kind"
        raise _damaged(metadata, f"{key} is {found}; expected a list of {kind.__name__}")
    return values


def _damaged(metadata: Fields, what: str) -> CheckpointError:
    return CheckpointError(f"{metadata.where}: damaged tokenizer: {what}. {SAME_AS_PUBLISHED}")
