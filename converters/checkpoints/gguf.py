"""GGUF files (llama.cpp): tensors in any of ggml's encodings, configuration and tokenizer in the metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from converters.architectures import family_of_gguf
from converters.architectures.family import GgufSource
from converters.checkpoints import Checkpoint
from converters.checkpoints.fields import SAME_AS_PUBLISHED, Fields, refuse_pointer
from converters.checkpoints.gguf_header import Header, TensorInfo, read_header
from converters.checkpoints.gguf_tokenizer import read_tokenizer
from converters.checkpoints.tensors import FLOAT_ENCODINGS, Bytes, Encoding, FloatArray, StoredTensor, bind, sha256_of
from device_runtime.errors import CheckpointError

__all__ = ["ENCODINGS", "open_gguf"]

_SUFFIX = re.compile(r"[.-](I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|MXFP4\w*)$", re.IGNORECASE)
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_NAMELESS = ("model", "ggml-model")  # file names that say nothing of the model


def _decoder(kind: gguf.GGMLQuantizationType) -> Callable[[Bytes], FloatArray]:
    def decode(raw: Bytes) -> FloatArray:
        # One row of all groups: the package works on sixteen rows at a time, however short they are.
        values: FloatArray = gguf.dequantize(raw.reshape(1, -1), kind)
        return values.reshape(-1)

    return decode


def _encodings() -> dict[int, Encoding]:
    """Every ggml type that can become float32, by its number."""
    encodings: dict[int, Encoding] = {}
    for kind, (values, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name in FLOAT_ENCODINGS:
            encodings[kind] = FLOAT_ENCODINGS[kind.name]
            continue
        try:  # The package has no public list of what it can dequantize.
            gguf.dequantize(np.zeros((1, size), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        encodings[kind] = Encoding(kind.name, values, size, _decoder(kind))
    return encodings


with np.errstate(all="ignore"):
    ENCODINGS = _encodings()


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file.

    Raises:
        CheckpointError: the file is damaged, lacks a tensor, or has one of another shape or of unknown encoding.
        ArchitectureError: its family is unknown, or a variant that the converter does not describe.
    """
    refuse_pointer(path)
    parts = _parts(path)
    headers = [read_header(part) for part in parts]
    first = headers[0].metadata
    metadata = Fields(first, str(path))
    family = family_of_gguf(metadata)
    stored: dict[str, StoredTensor] = {}
    for part, header in zip(parts, headers, strict=True):
        for info in header.tensors:
            if info.name in stored:
                raise CheckpointError(
                    f"{part}: tensor {info.name} is in {stored[info.name].path.name} as well. "
                    "These are not parts of one model: fetch them again."
                )
            stored[info.name] = _stored(info, header, part)
    announced = metadata.integer("split.tensors.count", len(stored), least=0)
    if announced != len(stored):
        raise CheckpointError(
            f"{path}: its {len(parts)} parts have {len(stored)} tensors, expected {announced}. Fetch the parts again."
        )
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    source = GgufSource(metadata, shapes, lambda name: stored[name].read())
    form = family.gguf
    assert form is not None
    config = form.config(source)
    bound = bind(config, stored, lambda tensor: form.source(tensor, config, stored), str(path), unused=form.is_unused)
    tokenizer = read_tokenizer(metadata, config.vocabulary)
    tokenizer = replace(tokenizer, notes=(*form.notes(source), *tokenizer.notes))

    def read(name: str) -> FloatArray:
        return bound[name].read()

    names = {name: tensor.stored.name for name, tensor in bound.items()}
    return Checkpoint(_name(parts[0], metadata), family.name, config, tokenizer, sha256_of(parts), read, names)


def _parts(path: Path) -> list[Path]:
    """The files of a model in their order: `path` alone, or all parts of what llama-gguf-split made."""
    metadata = Fields(read_header(path).metadata, str(path))
    count = metadata.integer("split.count", 1, least=0)
    if count <= 1:
        return [path]
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise CheckpointError(
            f"{path}: one of {count} parts of a model; expected a name such as model-00001-of-{count:05d}.gguf, "
            "by which the others are found. Give the parts the names that they were published with."
        )
    parts = [path.with_name(f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    if missing := [part.name for part in parts if not part.is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{path}: one of {count} parts of a model; {', '.join(missing[:3])}{more} are missing beside it. "
            "Fetch them into the same folder."
        )
    for number, part in enumerate(parts):
        refuse_pointer(part)
        own = Fields(read_header(part).metadata, str(part))
        found = own.integer("split.no", least=0), own.integer("split.count", least=0)
        if found != (number, count):
            raise CheckpointError(
                f"{part}: says that it is part {found[0] + 1} of {found[1]}, expected {number + 1} of {count}. "
                "Give the parts the names that they were published with."
            )
    return parts


def _stored(info: TensorInfo, header: Header, path: Path) -> StoredTensor:
    encoding = ENCODINGS.get(info.ggml_type)
    if encoding is None:
        known = ", ".join(encoding.name for encoding in ENCODINGS.values())
        try:
            found = gguf.GGMLQuantizationType(info.ggml_type).name
        except ValueError:
            found = f"number {info.ggml_type}"
        raise CheckpointError(
            f"{path}: tensor {info.name} has ggml type {found}; expected one of {known}. "
            "Export the model in one of these types."
        )
    if info.shape[-1] % encoding.values:
        raise CheckpointError(
            f"{path}: tensor {info.name} has rows of {info.shape[-1]} values; {encoding.name} needs a multiple of "
            f"{encoding.values}. {SAME_AS_PUBLISHED}"
        )
    if math.prod(info.shape) == 0:
        raise CheckpointError(f"{path}: tensor {info.name} has the empty shape {info.shape}. {SAME_AS_PUBLISHED}")
    tensor = StoredTensor(info.name, info.shape, encoding, path, info.offset)
    if tensor.offset + tensor.size > header.file_size:
        raise CheckpointError(
            f"{path}: cut short or damaged: {header.file_size} bytes, but tensor {info.name} ends at byte "
            f"{tensor.offset + tensor.size}. Fetch the file again."
        )
    return tensor


def _name(path: Path, metadata: Fields) -> str:
    part = _PART.fullmatch(path.name)
    stem = _SUFFIX.sub("", part["stem"] if part else path.stem)
    if stem.lower() in _NAMELESS and "general.name" in metadata:
        return metadata.text("general.name")
    return stem
