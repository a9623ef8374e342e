"""GGUF files (llama.cpp): tensors in any of ggml's encodings, configuration and tokenizer in the metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from converters.architectures import family_of_gguf
from converters.architectures.family import GgufSource
from converters.checkpoints import Checkpoint
from converters.checkpoints.fields import Fields
from converters.checkpoints.gguf_header import Header, TensorInfo, read_header
from converters.checkpoints.gguf_tokenizer import read_tokenizer
from converters.checkpoints.tensors import FLOAT_ENCODINGS, Bytes, Encoding, FloatArray, StoredTensor, bind, sha256_of
from device_runtime.errors import CheckpointError

__all__ = ["ENCODINGS", "open_gguf"]

_SUFFIX = re.compile(r"[.-](I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|MXFP4\w*)$", re.IGNORECASE)
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
    header = read_header(path)
    metadata = Fields(header.metadata, str(path))
    if metadata.integer("split.count", 1, least=0) > 1:
        raise CheckpointError(
            f"{path}: one of {metadata.integer('split.count')} parts of a model; expected a whole file. "
            "Join them with `llama-gguf-split --merge FIRST_PART OUTPUT`."
        )
    family = family_of_gguf(metadata.text("general.architecture"), str(path))
    stored = {info.name: _stored(info, header, path) for info in header.tensors}
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    source = GgufSource(metadata, shapes, lambda name: stored[name].read())
    form = family.gguf
    assert form is not None
    config = form.config(source)
    bound = bind(config, stored, lambda tensor: form.source(tensor, config), str(path), unused=form.is_unused)
    tokenizer = read_tokenizer(metadata, config.vocabulary)

    def read(name: str) -> FloatArray:
        return bound[name].read()

    return Checkpoint(_name(path, metadata), family.name, config, tokenizer, sha256_of([path]), read)


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
            f"{encoding.values}. The file is damaged: fetch it again."
        )
    if math.prod(info.shape) == 0:
        raise CheckpointError(f"{path}: tensor {info.name} has the empty shape {info.shape}. Fetch the file again.")
    tensor = StoredTensor(info.name, info.shape, encoding, path, info.offset)
    if tensor.offset + tensor.size > header.file_size:
        raise CheckpointError(
            f"{path}: cut short or damaged: {header.file_size} bytes, but tensor {info.name} ends at byte "
            f"{tensor.offset + tensor.size}. Fetch the file again."
        )
    return tensor


def _name(path: Path, metadata: Fields) -> str:
    stem = _SUFFIX.sub("", path.stem)
    if stem.lower() in _NAMELESS and "general.name" in metadata:
        return metadata.text("general.name")
    return stem
