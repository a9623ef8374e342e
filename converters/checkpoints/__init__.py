"""Checkpoints: one file per format, all of them read into the same `Checkpoint`.

A reader hands over the format's own configuration and lazily read tensors; the family's file in
`converters/architectures` maps both onto canonical names (see `converters.network.tensors`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from converters.network.config import NetworkConfig
from converters.network.tensors import tensors as network_tensors  # beside the module `tensors` of this folder
from device_runtime.errors import CheckpointError, ConfigurationError, MissingExtraError

__all__ = ["Checkpoint", "TokenizerFile", "finite_weights", "open_checkpoint"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as the bundle will carry it."""

    file_name: Literal["tokenizer.json", "tokenizer.model"]  # Hugging Face tokenizers, or SentencePiece
    content: bytes
    bos_id: int | None  # first token of every sequence, where the model has one
    eos_ids: tuple[int, ...]  # any of these ends an answer
    adds_bos: bool  # plain text gets `bos_id` in front
    chat_template: str | None  # jinja2 source
    special_tokens: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token … for the template
    spaced: bool = True  # of tokenizer.model: a space goes after each control token, as before a text
    own_space: bool = False  # of tokenizer.model: a text that begins with a space gets no other one before it
    notes: tuple[str, ...] = ()  # what a user has to know of it


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was trained: configuration, tensors by canonical name, tokenizer."""

    name: str  # for people: "SmolLM2-135M-Instruct"
    architecture: str  # the family: "llama"
    config: NetworkConfig
    tokenizer: TokenizerFile
    sha256: str  # of the checkpoint's weight file(s)
    read: Callable[[str], FloatArray]  # canonical name -> float32, freshly read; nothing is kept in memory
    stored_names: Mapping[str, str] = field(default_factory=dict)  # canonical name -> as the file spells it

    def has(self, name: str) -> bool:
        """Whether the network of this checkpoint has a tensor of this canonical name."""
        return any(name == tensor.name for tensor in network_tensors(self.config))


def finite_weights(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, which refuses a tensor that is not finite when it is read.

    Its `read` raises a `CheckpointError` that names the tensor.
    """

    def read(name: str) -> FloatArray:
        values = checkpoint.read(name)
        finite = np.isfinite(values)
        if not finite.all():
            count = values.size - np.count_nonzero(finite)
            place = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise CheckpointError(
                f"{checkpoint.name}: tensor {checkpoint.stored_names.get(name, name)} ({name}) has {count} of "
                f"{values.size} values that are {values[place]} or the like, the first at {list(place)}; "
                "expected finite numbers. Such weights answer with nonsense: use another checkpoint, or another export "
                "of this one."
            )
        return values

    return replace(checkpoint, read=read)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder or a .bin file of llama2.c.

    Every tensor is checked for presence and shape first.

    Raises:
        ConfigurationError: there is nothing at `path`, or the packages of the extra `convert` are missing.
        CheckpointError: the file is truncated, or lacks a tensor, or has one of another shape.
        ArchitectureError: the family is not among those in `converters/architectures`.
    """
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder; expected a GGUF file or a Hugging Face folder.")
    if path.suffix == ".safetensors" and path.is_file():
        raise CheckpointError(
            f"{path}: weights alone; expected a folder with config.json and a tokenizer beside them. "
            f"Name the folder: {path.parent}"
        )
    # The formats' packages take a while to import, and each is needed for its own format only.
    try:
        if path.is_dir():
            from converters.checkpoints.huggingface import open_folder as reader
        elif path.suffix == ".bin":
            from converters.checkpoints.llama2c import open_llama2c as reader
        else:
            from converters.checkpoints.gguf import open_gguf as reader
    except ModuleNotFoundError as error:
        raise MissingExtraError.of(f"{path}: reading checkpoints", error.name, "convert") from error
    return reader(path)
