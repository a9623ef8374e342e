"""What the files of sentence-transformers beside a checkpoint say: pooling, the limit of tokens, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.checkpoints.fields import Fields, read_json
from converters.encoders.network import Pooling
from device_runtime.errors import ArchitectureError, CheckpointError

__all__ = ["SentenceSettings", "read_settings"]

_POOLING: Mapping[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_E5 = {"query": "query: ", "passage": "passage: "}


@dataclass(frozen=True)
class SentenceSettings:
    """Of a checkpoint without such files: mean pooling, normalized."""

    pooling: Pooling = "mean"
    normalized: bool = True
    max_tokens: int | None = None  # max_seq_length: the longest text, its frame included; None: not said
    prompts: Mapping[str, str] = field(default_factory=dict)  # what goes before a text, by what the text is for
    default_prompt: str | None = None  # the name of the one that goes before every text
    lowercase: bool = False  # texts are put into small letters first
    notes: tuple[str, ...] = ()


def read_settings(folder: Path, name: str) -> SentenceSettings:
    """Read modules.json and what it names.

    Args:
        name: of the model; the E5 family says its prompts on its page only.

    Raises:
        ArchitectureError: a module or a pooling that is not supported.
        CheckpointError: a file is damaged.
    """
    prompts, default = _prompts(folder, name)
    if not (folder / "modules.json").is_file():
        note = "has no modules.json of sentence-transformers; the mean of all tokens is taken, normalized"
        return SentenceSettings(prompts=prompts, default_prompt=default, notes=(note,))
    pooling: Pooling = "mean"
    normalized = False
    for module in _modules(folder):
        kind = str(module.get("type", "")).split(".")[-1]
        if kind == "Pooling":
            pooling = _pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer":
            raise ArchitectureError(
                f"{folder / 'modules.json'}: the module {kind or module!r:.60} is not supported; supported: "
                "Transformer, Pooling, Normalize. Leaving it out would change the embeddings."
            )
    limit = _optional(folder / "sentence_bert_config.json")
    most = limit.integer("max_seq_length") if "max_seq_length" in limit else None
    return SentenceSettings(pooling, normalized, most, prompts, default, limit.flag("do_lower_case", False))


def _optional(path: Path) -> Fields:
    return Fields(read_json(path) if path.is_file() else {}, str(path))


def _modules(folder: Path) -> list[Mapping[str, Any]]:
    import json

    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}. Fetch the file again.") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path}: holds no list of modules. Fetch the file again.")
    return modules


def _pooling(path: Path) -> Pooling:
    fields = Fields(read_json(path), str(path))
    chosen = [key for key, value in fields.values.items() if key.startswith("pooling_mode_") and value is True]
    newer = fields.values.get("pooling_mode")  # of sentence-transformers 5
    if isinstance(newer, str):
        chosen = [f"pooling_mode_{newer}_token{'' if newer == 'cls' else 's'}"]
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise ArchitectureError(
            f"{path}: pooling {', '.join(chosen) or 'of no kind'} is not supported; supported: "
            f"{', '.join(_POOLING)}, one of them alone."
        )
    return _POOLING[chosen[0]]


def _prompts(folder: Path, name: str) -> tuple[Mapping[str, str], str | None]:
    fields = _optional(folder / "config_sentence_transformers.json")
    found = fields.values.get("prompts", {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise CheckpointError(
            f"{fields.where}: prompts is {found!r:.60}; expected texts by name. Fetch the file again."
        )
    prompts = {key: text for key, text in found.items() if text}
    default = fields.values.get("default_prompt_name")
    if default is not None and default not in prompts:
        default = None
    if not prompts and "e5" in name.lower().replace("_", "-").split("-"):
        prompts = dict(_E5)
    return prompts, default
