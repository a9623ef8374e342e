"""Hugging Face folders: `config.json`, safetensors files (one or several) and a tokenizer.

A safetensors file is 8 bytes of header length, a JSON header that gives each tensor's dtype, shape and byte
range, and the data. It is read here directly: the `safetensors` package offers numpy no bfloat16.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.architectures import family_of_huggingface
from converters.architectures.family import HuggingFaceFormat
from converters.checkpoints import Checkpoint
from converters.checkpoints.fields import SAME_AS_PUBLISHED, Fields, read_json, refuse_pointer
from converters.checkpoints.huggingface_tokenizer import read_tokenizer
from converters.checkpoints.tensors import FLOAT_ENCODINGS, BoundTensor, FloatArray, StoredTensor, bind, sha256_of
from converters.network.config import NetworkConfig
from device_runtime.errors import ArchitectureError, CheckpointError
from device_runtime.records.printable import counted

__all__ = ["open_folder", "read_safetensors", "weight_files"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MOST_HEADER = 100_000_000  # bytes; the format's own limit


def open_folder(path: Path) -> Checkpoint:
    """Open a Hugging Face folder.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing or has another shape.
        ArchitectureError: its family is unknown, or a variant that the converter does not describe.
    """
    if not (path / "config.json").is_file():
        inside = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"Name the GGUF file in it: {path / inside[0]}" if inside else "Fetch the whole folder again."
        raise CheckpointError(f"{path}: has no config.json; expected a Hugging Face folder. {hint}")
    fields = Fields(read_json(path / "config.json"), str(path / "config.json"))
    _refuse_encoder(fields)
    family = family_of_huggingface(fields)
    form = family.huggingface
    assert form is not None
    config = form.config(fields)
    bound, files, notes = _weights(path, config, form)
    tokenizer = read_tokenizer(path, fields, config.vocabulary)

    def read(name: str) -> FloatArray:
        return bound[name].read()

    tokenizer = replace(tokenizer, notes=(*notes, *tokenizer.notes))
    stored = {name: tensor.stored.name for name, tensor in bound.items()}
    return Checkpoint(path.resolve().name, family.name, config, tokenizer, sha256_of(files), read, stored)


def _weights(
    path: Path, config: NetworkConfig, form: HuggingFaceFormat
) -> tuple[dict[str, BoundTensor], list[Path], tuple[str, ...]]:
    """Where each tensor lies, the files that were read, and what there is to say of others.

    With a whole file and an index side by side, one of them is left over from another save. transformers takes the
    whole file; the index is taken where the whole file is not the network's.
    """
    single = path / _WEIGHTS
    if not single.is_file():
        files = _indexed_files(path)
        return _bound(path, files, config, form), files, ()
    if not (path / _INDEX).is_file():
        return _bound(path, [single], config, form), [single], ()
    try:
        bound = _bound(path, [single], config, form)
        return bound, [single], (f"{_INDEX} is not read: {_WEIGHTS} has all tensors",)
    except CheckpointError as error:
        try:
            files = _indexed_files(path)
            bound = _bound(path, files, config, form)
        except CheckpointError:
            raise error from None
        return bound, files, (f"{_WEIGHTS} is not read: it does not fit the network, and the files of {_INDEX} do",)


def _bound(path: Path, files: list[Path], config: NetworkConfig, form: HuggingFaceFormat) -> dict[str, BoundTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_safetensors(file):
            name = tensor.name.removeprefix(form.prefix)
            if name in stored:
                raise CheckpointError(
                    f"{file}: tensor {tensor.name} is in {stored[name].path.name} as well. "
                    "Files of two saves are mixed: remove those that do not belong to the model."
                )
            stored[name] = tensor
    bound = bind(
        config,
        stored,
        lambda tensor: form.source(tensor, config, stored),
        str(path),
        unused=form.is_unused,
    )
    embedding = bound["embed.weight"].stored
    head = stored.get(f"{form.names['head']}.weight") if config.head.tied and "head" in form.names else None
    if head is not None and not head.same_bytes(embedding):
        raise CheckpointError(
            f"{path}: tie_word_embeddings is true, but {head.name} differs from {embedding.name}. "
            "Set tie_word_embeddings to false in config.json if the model has a head of its own."
        )
    return bound


def _refuse_encoder(fields: Fields) -> None:
    """Raise an `ArchitectureError` for a checkpoint that `stonechat convert` takes, and that writes no text."""
    from converters.encoders.families import family_of  # which reads checkpoints itself

    if found := family_of(fields):
        family, task = found
        raise ArchitectureError(
            f"{fields.where}: a {family.name} checkpoint of the task {task}; expected one that writes text. "
            "`stonechat convert` and `stonechat eval BUNDLE --against` take it; this command does not."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the whole one, else those that the index names.

    Raises:
        CheckpointError: there are none, or the index is damaged.
    """
    single = folder / _WEIGHTS
    return [single] if single.is_file() else _indexed_files(folder)


def read_safetensors(path: Path, skip: Callable[[str], bool] = lambda name: False) -> list[StoredTensor]:
    """The tensors of one safetensors file; reads the header only.

    Args:
        skip: whether a tensor of this name is left out, whatever its dtype: a buffer.

    Raises:
        CheckpointError: it is damaged or cut short, or has a dtype other than F64, F32, F16 and BF16.
    """
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (size,)
            if length > min(size - 8, _MOST_HEADER):
                raise CheckpointError(
                    f"{path}: cut short or damaged: {size} bytes, and its header alone would take {length}. "
                    "Fetch the file again."
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its header is not JSON: {error}. {SAME_AS_PUBLISHED}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object. {SAME_AS_PUBLISHED}")
    header.pop("__metadata__", None)
    return [_stored(path, name, entry, 8 + length, size) for name, entry in header.items() if not skip(name)]


def _stored(path: Path, name: str, entry: Any, base: int, size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(value) is int and value >= 0 for value in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tensor {name} has the damaged entry {entry!r:.80}. {SAME_AS_PUBLISHED}"
        ) from error
    encoding = FLOAT_ENCODINGS.get(dtype) if isinstance(dtype, str) else None
    if encoding is None:
        raise CheckpointError(
            f"{path}: tensor {name} has dtype {dtype!r:.40}; expected one of {', '.join(FLOAT_ENCODINGS)}. "
            "Use the checkpoint that this one was quantized from."
        )
    if not whole or begin > end or math.prod(shape) * encoding.size != end - begin or not math.prod(shape):
        raise CheckpointError(f"{path}: tensor {name} has the damaged entry {entry!r:.80}. {SAME_AS_PUBLISHED}")
    if base + end > size:
        raise CheckpointError(
            f"{path}: cut short: {size} bytes, but tensor {name} ends at byte {base + end}. Fetch the file again."
        )
    return StoredTensor(name, shape, encoding, path, base + begin)


def _indexed_files(folder: Path) -> list[Path]:
    """The files that the index names."""
    if not (folder / _INDEX).is_file():
        raise CheckpointError(
            f"{folder}: has neither {_WEIGHTS} nor {_INDEX}. Fetch the model's safetensors files; "
            "a pytorch_model.bin has to be saved again with save_pretrained(…, safe_serialization=True)."
        )
    index = read_json(folder / _INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / _INDEX}: has no weight_map. {SAME_AS_PUBLISHED}")
    names = set(weight_map.values()) if all(isinstance(v, str) for v in weight_map.values()) else {""}
    for name in sorted(names):
        if not name or Path(name).name != name:
            raise CheckpointError(f"{folder / _INDEX}: names the file {name!r}, expected one in the same folder.")
        if not (folder / name).is_file():
            count = sum(file == name for file in weight_map.values())
            raise CheckpointError(
                f"{folder}: {name} is missing; the index places {counted(count, 'tensor')} in it. Fetch that file."
            )
    return [folder / name for name in sorted(names)]
