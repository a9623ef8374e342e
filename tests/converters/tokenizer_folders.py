"""Folders with a tokenizer and its settings, as publishers have them (tests only)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace
from tokenizers.pre_tokenizers import Metaspace

__all__ = ["CASES", "TEXTS", "write_folder"]

DATA = Path(__file__).resolve().parents[1] / "data"
_LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_OPT = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")}
_NAMES = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}

TEXTS = ["pump <|im_start|>hello<|im_end|>x", "<|im_start|>pump", "a  b", "a<|end|>b<x y>c<gap>", "a<|new|>b"]
TEXTS += ["<|im_start|>\npump", "a<|im_end|>\n<|im_start|> b", " pump", "  pump", "<|im_start|> ", "a<unk> b"]


def _decoder(**tokens: dict[str, Any]) -> dict[str, Any]:
    return {"added_tokens_decoder": {number[1:]: token for number, token in tokens.items()}}


# name -> (tokenizer, tokenizer_config.json)
CASES: dict[str, tuple[str, dict[str, Any]]] = (
    {
        "sentencepiece": ("sentencepiece.model", _LLAMA | _NAMES),
        "sentencepiece, legacy": ("sentencepiece.model", _LLAMA | _NAMES | {"legacy": True}),
        "sentencepiece, not legacy": ("sentencepiece.model", _LLAMA | _NAMES | {"legacy": False}),
        "sentencepiece, with BOS": ("sentencepiece.model", _LLAMA | {"add_bos_token": True}),
        "sentencepiece, without BOS": ("sentencepiece.model", _LLAMA | {"add_bos_token": False}),
        "sentencepiece, added tokens": (
            "sentencepiece.model",
            _LLAMA
            | _decoder(
                _420={"content": "<|end|>", "special": True},
                _421={"content": "<x y>", "special": False, "normalized": False},
                _425={"content": "<gap>", "special": True},
            ),
        ),
        "sentencepiece, no space": ("sentencepiece.model", _LLAMA | _NAMES | {"add_prefix_space": False}),
        "sentencepiece of Gemma": ("sentencepiece.model", _LLAMA | _NAMES | {"tokenizer_class": "GemmaTokenizer"}),
        "sentencepiece, no class": ("sentencepiece.model", _NAMES),
        "added tokens": (
            "checkpoints/gqa-tied/tokenizer.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
            | _decoder(
                _390={"content": "<|new|>", "special": True},
                _391={"content": "<x y>", "special": False, "normalized": False},
            ),
        ),
        "a special token that is only named": (
            "checkpoints/gqa-tied/tokenizer.json",
            {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "additional_special_tokens": ["<|new|>"]},
        ),
        "vocab and merges": ("checkpoints/mha-untied-sharded/merges", {"tokenizer_class": "GPT2Tokenizer", **_OPT}),
        "vocab and merges, with BOS": (
            "checkpoints/mha-untied-sharded/merges",
            {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, **_OPT},
        ),
    }
    | {
        f"{source}, {cls}, legacy {legacy}": (
            source,
            _LLAMA | _NAMES | {"tokenizer_class": cls} | ({} if legacy is None else {"legacy": legacy}),
        )
        for source in ("sentencepiece.model", "of Llama 2", "of Llama 2, saved again")
        for cls in ("LlamaTokenizerFast", "PreTrainedTokenizerFast")
        for legacy in (None, True, False)
    }
    | {
        f"{folder}, {cls}, add_bos_token {adds}": (
            f"checkpoints/{folder}/tokenizer.json",
            {"tokenizer_class": cls, "bos_token": bos} | ({} if adds is None else {"add_bos_token": adds}),
        )
        for folder, bos in (("llama3-rope", "<|begin_of_text|>"), ("gqa-tied", "<|im_start|>"))
        for cls in ("LlamaTokenizer", "PreTrainedTokenizerFast", "Qwen2Tokenizer")
        for adds in (None, True, False)
    }
)


def write_folder(folder: Path, name: str) -> None:
    """The files of one case, without weights."""
    source, settings = CASES[name]
    folder.mkdir()
    if source.startswith("of Llama 2"):
        (folder / "tokenizer.json").write_text(_of_llama_2(saved_again=source != "of Llama 2"))
    elif source.endswith("merges"):
        _write_merges(folder, DATA / source)
    else:
        shutil.copy(DATA / source, folder / ("tokenizer.model" if source.endswith(".model") else "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _of_llama_2(*, saved_again: bool) -> str:
    """sentencepiece.model as a tokenizer.json: Llama 2 has the space in the normalizer, later ones in Metaspace."""
    model = SentencePieceProcessor(model_file=str(DATA / "sentencepiece.model"))
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (score, -ids[piece[:cut]], piece[:cut], piece[cut:])
        for score, piece in ((model.get_score(i), piece) for i, piece in enumerate(pieces))
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    pairs = [(left, right) for _, _, left, right in sorted(merges, reverse=True)]
    tokenizer = Tokenizer(BPE(vocab=ids, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if saved_again:
        tokenizer.pre_tokenizer = Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([Prepend("\u2581"), Replace(" ", "\u2581")])
    names = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer.to_str()


def _write_merges(folder: Path, source: Path) -> None:
    """vocab.json and merges.txt, as OPT is published, out of the tokenizer.json beside `source`."""
    document = json.loads((source.parent / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"] | {token["content"]: token["id"] for token in document["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
