"""Architectures: one file per family, mapping its configuration and tensor names onto the network of `converters`.

A family is a module with the names of `Family`. To add one, write the module and list it in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from converters.architectures import llama
from converters.checkpoints.fields import Fields
from converters.network.decoder import NetworkConfig
from device_runtime.errors import ArchitectureError

__all__ = ["FAMILIES", "Family", "GgufSource", "family_of_gguf", "family_of_huggingface"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GgufSource:
    """What a family may look at in a GGUF file."""

    metadata: Fields
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor, by GGUF name, row-major
    read: Callable[[str], FloatArray]  # a tensor by GGUF name


class Family(Protocol):
    """What the module of a family has."""

    @property
    def NAME(self) -> str:
        """The family's name, as a bundle spells it."""

    @property
    def HUGGINGFACE_MODEL_TYPE(self) -> str:
        """`model_type` in config.json."""

    @property
    def HUGGINGFACE_CLASSES(self) -> Collection[str]:
        """`architectures` in config.json."""

    @property
    def GGUF_ARCHITECTURE(self) -> str:
        """`general.architecture` in a GGUF file."""

    @property
    def GGUF_UNUSED(self) -> Collection[str]:
        """GGUF tensors that `config_from_gguf` has read, or that repeat what the configuration says."""

    def config_from_huggingface(self, config: Fields) -> NetworkConfig:
        """Map config.json; ArchitectureError for a variant that the network does not describe."""

    def config_from_gguf(self, source: GgufSource) -> NetworkConfig:
        """Map GGUF metadata; ArchitectureError for a variant that the network does not describe."""

    def huggingface_name(self, canonical: str) -> str:
        """The name of a tensor in a Hugging Face checkpoint."""

    def huggingface_unused(self, name: str, config: NetworkConfig) -> bool:
        """Whether a Hugging Face tensor merely repeats what the configuration says."""

    def gguf_name(self, canonical: str) -> str:
        """The name of a tensor in a GGUF file."""

    def from_gguf(self, canonical: str, tensor: FloatArray, config: NetworkConfig) -> FloatArray:
        """Undo what the export to GGUF did to the order of a tensor's rows."""


FAMILIES: Mapping[str, Family] = {llama.NAME: llama}


def family_of_huggingface(config: Fields) -> Family:
    """The family of a config.json.

    Raises:
        ArchitectureError: no family has this `model_type`, or this class of it.
    """
    model_type = config.text("model_type", "")
    classes = config.values.get("architectures", [])
    if not isinstance(classes, list):
        classes = [classes]
    for family in FAMILIES.values():
        if model_type != family.HUGGINGFACE_MODEL_TYPE:
            continue
        strange = [str(name) for name in classes if name not in family.HUGGINGFACE_CLASSES]
        if not strange:
            return family
        raise _unknown(config.where, "architectures", ", ".join(strange), family.HUGGINGFACE_CLASSES)
    known = [family.HUGGINGFACE_MODEL_TYPE for family in FAMILIES.values()]
    raise _unknown(config.where, "model_type", model_type, known)


def family_of_gguf(architecture: str, where: str) -> Family:
    """The family of a GGUF file's `general.architecture`.

    Raises:
        ArchitectureError: no family has this name.
    """
    for family in FAMILIES.values():
        if architecture == family.GGUF_ARCHITECTURE:
            return family
    known = [family.GGUF_ARCHITECTURE for family in FAMILIES.values()]
    raise _unknown(where, "general.architecture", architecture, known)


def _unknown(where: str, key: str, found: str, known: Collection[str]) -> ArchitectureError:
    return ArchitectureError(
        f"{where}: {key} is {found!r}; supported: {', '.join(sorted(known))}. "
        "Use a model of a supported family, or describe this one in converters/architectures."
    )
