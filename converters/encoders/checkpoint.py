"""Opens a folder with an encoder or a translator: configuration, tensors by canonical name, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoints.fields import Fields, read_json
from converters.checkpoints.huggingface import read_safetensors, weight_files
from converters.checkpoints.tensors import StoredTensor, sha256_of
from converters.encoders.families import family_of
from converters.encoders.family import Task, bind
from converters.encoders.labels import answer_of
from converters.encoders.network import Config, TranslatorConfig
from converters.encoders.settings import SentenceSettings, read_settings
from converters.encoders.tokenizers import FramedTokenizer, read_framed_tokenizer
from converters.network.weights import FloatArray, ReadTensor
from device_runtime.errors import ArchitectureError, CheckpointError

__all__ = ["EncoderCheckpoint", "open_encoder"]


_BUFFER = re.compile(r".*(position_ids|token_type_ids)")  # of whole numbers, which no network reads


@dataclass(frozen=True)
class EncoderCheckpoint:
    """A model as it was trained."""

    name: str  # for people: "all-MiniLM-L6-v2"
    architecture: str  # the family: "bert"
    task: Task
    config: Config
    tokenizer: FramedTokenizer
    settings: SentenceSettings
    answer: Mapping[str, Any] | None  # the JSON schema of a classifier's answers
    banned_ids: tuple[int, ...]  # that a translation never has
    end_ids: tuple[int, ...]  # any of these ends a translation
    pad_id: int
    sha256: str  # of the weight file(s)
    read: ReadTensor  # canonical name -> float32, freshly read
    stored_names: Mapping[str, str]
    notes: tuple[str, ...]  # what a user has to know


def open_encoder(path: Path) -> EncoderCheckpoint | None:
    """Open a Hugging Face folder; None if it holds neither an encoder nor a translator.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing or has another shape.
        ArchitectureError: a variant that the converter does not describe.
    """
    if not (path / "config.json").is_file():
        return None
    fields = Fields(read_json(path / "config.json"), str(path / "config.json"))
    found = family_of(fields)
    if found is None:
        return None
    family, task = found
    name = path.resolve().name
    settings = read_settings(path, name) if task == "embed" else SentenceSettings()
    config = family.config(fields, task, settings)
    files = weight_files(path)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_safetensors(file, lambda name: _BUFFER.fullmatch(name) is not None):
            stored[tensor.name] = tensor
    read, names = bind(family, config, fields, stored, str(path))
    tokenizer = read_framed_tokenizer(path, config.vocabulary)
    if isinstance(config, TranslatorConfig) and not tokenizer.end_ids:
        raise CheckpointError(f"{path}: its tokenizer puts no end token after a text; a translator's has one.")
    if settings.lowercase and not tokenizer.lowercases:
        raise ArchitectureError(
            f"{path / 'sentence_bert_config.json'}: do_lower_case is true, and the tokenizer keeps capitals. "
            "Set it in the tokenizer's normalizer instead: `BertNormalizer(lowercase=True)`."
        )
    generation = Fields(_optional(path / "generation_config.json"), str(path / "generation_config.json"))
    ends = generation.values.get("eos_token_id", fields.values.get("eos_token_id"))
    pad = fields.integer("pad_token_id", 0, least=0)
    return EncoderCheckpoint(
        name, family.name, task, config, tokenizer, settings,
        answer_of(fields) if task == "classify" else None,
        _banned(generation, fields),
        tuple(_ids(ends)) or tokenizer.end_ids,
        pad, sha256_of(files), _finite(name, read), names, settings.notes,
    )  # fmt: skip


def _banned(generation: Fields, fields: Fields) -> tuple[int, ...]:
    words = generation.values.get("bad_words_ids", fields.values.get("bad_words_ids", []))
    single = [word[0] for word in words if isinstance(word, list) and len(word) == 1] if isinstance(words, list) else []
    return tuple(_ids(single))


def _ids(value: object) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return [n for n in found if isinstance(n, int) and not isinstance(n, bool) and n >= 0]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _finite(name: str, read: ReadTensor) -> ReadTensor:
    def checked(tensor: str) -> FloatArray:
        values = read(tensor)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{name}: tensor {tensor} has values that are not finite. Such weights answer with nonsense: use "
                "another checkpoint, or another export of this one."
            )
        return values

    return checked
