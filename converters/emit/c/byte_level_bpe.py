"""`tokenizer.json` of byte-level BPE (GPT-2's and its successors') into the table of the C engine."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from converters.emit.c.character_classes import character_classes
from converters.emit.c.composition import composition_tables
from converters.emit.c.tokenizer import Cut, Flag, Kind, TokenizerTable, refuse
from device_runtime.errors import ConfigurationError

__all__ = ["byte_level_table", "may_have_table"]

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4_CUTS = {_GPT4.replace("DIGITS", r"\p{N}{1,3}"): Cut.GPT4_THREE, _GPT4.replace("DIGITS", r"\p{N}"): Cut.GPT4_ONE}


def byte_level_table(content: bytes, names: Collection[str] = ()) -> TokenizerTable:
    """The table of a `tokenizer.json`.

    Args:
        names: spellings of tokens that are markup although the file does not say so: no text becomes one of them.

    Raises:
        ConfigurationError: it uses something that the C engine does not do; the message names it.
    """
    document = json.loads(content)
    model = document["model"]
    cut, flags = _kind(document)
    byte_of = {character: byte for byte, character in _byte_characters().items()}

    added = {entry["id"]: entry for entry in document.get("added_tokens", [])}
    controls = [number for number, entry in added.items() if entry.get("special")]
    users = [
        number for number, entry in added.items() if not entry.get("special") and entry.get("content") not in names
    ]
    for number in users:
        _check_user_token(added[number], Flag.NFC in flags)
    vocabulary: Mapping[str, int] = model["vocab"]
    count = max([*vocabulary.values(), *added], default=-1) + 1
    texts = [b""] * count
    for token, number in vocabulary.items():
        texts[number] = _bytes(token, byte_of)
    matched = [number for number in vocabulary.values() if number not in added]
    of_text = {texts[number]: number for number in matched}
    if len(of_text) != len(matched):
        raise refuse("two tokens with the same bytes", "each token once")
    for number, entry in added.items():
        texts[number] = b"" if entry.get("special") else _bytes(entry["content"], byte_of)
    splits, ranks = _merges(model["merges"], vocabulary, texts, of_text)
    byte_ids = [of_text.get(bytes([byte])) for byte in range(256)]
    if None in byte_ids and model.get("unk_token"):
        missing = byte_ids.index(None)
        raise refuse(f"an unknown token and none for the byte {missing:#04x}", "a token for each byte")
    return TokenizerTable(
        kind=Kind.BYTE_LEVEL_BPE,
        cut=cut,
        flags=flags,
        texts=texts,
        matched=matched,
        controls=controls,
        users=users,
        byte_ids=byte_ids,
        splits=splits,
        ranks=ranks,
        classes=character_classes(),
        composition=composition_tables() if Flag.NFC in flags else (b"", b""),
    )


@lru_cache(maxsize=8)
def may_have_table(content: bytes) -> bool:
    """Whether a tokenizer.json is of a kind that has a table. What single tokens do may still forbid it."""
    try:
        _kind(json.loads(content))
    except ConfigurationError:
        return False
    return True


def _kind(document: Mapping[str, Any]) -> tuple[Cut, Flag]:
    """How words are found, and what else is special."""
    model, normalizer, flags = document["model"], document.get("normalizer"), Flag(0)
    _check_model(model)
    if normalizer is not None:
        if normalizer.get("type") != "NFC":
            raise refuse(f"the normalizer {normalizer.get('type')}", "none, or NFC")
        flags |= Flag.NFC
    if model.get("ignore_merges"):
        flags |= Flag.WHOLE_WORDS
    return _cut(document.get("pre_tokenizer")), flags


def _check_model(model: Mapping[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise refuse(f"tokenizer.json with a {model.get('type')} model", "byte-level BPE, or a tokenizer.model")
    if model.get("byte_fallback"):
        raise refuse(
            "SentencePiece's pieces in a tokenizer.json (byte_fallback)", "byte-level BPE, or the tokenizer.model"
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refuse(f"a BPE model with {name} {model[name]!r}", f"one without {name}")


def _cut(pre_tokenizer: Mapping[str, Any] | None) -> Cut:
    """Which of the known ways to cut text this is."""
    steps = [pre_tokenizer] if pre_tokenizer is not None else []
    if steps and steps[0]["type"] == "Sequence":
        steps = list(steps[0]["pretokenizers"])
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            raise refuse("a pre-tokenizer that puts a space before the text", "add_prefix_space: false")
    kinds = [step["type"] for step in steps]
    expression = bool(steps) and steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and expression:
        return Cut.GPT2
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and expression:
        return Cut.GPT2_DIGITS
    if kinds == ["Split", "ByteLevel"] and not expression:
        step = steps[0]
        cut = _GPT4_CUTS.get(step["pattern"].get("Regex", ""))
        if cut is not None and step.get("behavior") == "Isolated" and not step.get("invert"):
            return cut
        raise refuse(f"the pre-tokenizer's expression {step['pattern']}", "GPT-2's, SmolLM's, Llama 3's or Qwen 2's")
    raise refuse(f"the pre-tokenizer {' and '.join(kinds) or 'none'}", "GPT-2's, SmolLM's, Llama 3's or Qwen 2's")


def _check_user_token(entry: Mapping[str, Any], normalizes: bool) -> None:
    for name in ("single_word", "lstrip", "rstrip"):
        if entry.get(name):
            raise refuse(f"the added token {entry['content']!r} with {name}", "added tokens that match as they are")
    if normalizes and entry.get("normalized") and not entry["content"].isascii():
        raise refuse(f"the added token {entry['content']!r}, which is matched after normalization", "normalized: false")


def _merges(
    merges: Sequence[Any], vocabulary: Mapping[str, int], texts: Sequence[bytes], of_text: Mapping[bytes, int]
) -> tuple[list[list[int]], list[int] | None]:
    """Of each token, where its merges cut it, and the ranks if they are not the order of the ids."""
    splits: list[list[int]] = [[] for _ in texts]
    order: list[int] = []  # tokens, as merges make them first
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        whole = texts[vocabulary[left]] + texts[vocabulary[right]]
        token = of_text.get(whole)
        size = len(texts[vocabulary[left]])
        if token is None or not 0 < size < len(whole):
            raise refuse(f"the merge of {left!r} and {right!r}, which makes no token", "merges that make a token")
        if size > 255:
            raise refuse(f"a merge whose left half has {size} bytes", "at most 255")
        if splits[token] and (order[-1] != token or size in splits[token]):
            raise refuse(f"merges of {left + right!r} that are apart", "all merges of a token one after the other")
        if not splits[token]:
            order.append(token)
        splits[token].append(size)
    if any(len(s) > 255 for s in splits):
        raise refuse("a token with more than 255 merges", "at most 255")
    if order == sorted(order):
        return splits, None
    ranks = [0] * len(texts)
    for rank, token in enumerate(order):
        ranks[token] = rank
    return splits, ranks


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _bytes(token: str, byte_of: Mapping[str, int]) -> bytes:
    """A token's bytes, as the decoder makes them: one that is not spelt in those characters is taken as it is."""
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()
