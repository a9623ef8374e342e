"""What a family is: how the configuration and the tensors of each format become those of the network.

See docs/contributing/adding-a-family.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from converters.checkpoints.fields import Fields
from converters.network.config import NetworkConfig
from converters.network.tensors import Tensor
from converters.network.weights import FloatArray
from device_runtime.errors import ArchitectureError

__all__ = ["Family", "Format", "GgufFormat", "GgufSource", "HuggingFaceFormat", "NameTable", "Source", "refused"]

# The stem of a canonical tensor (`Tensor.stem`) -> that of the format, with {i} for the layer's number:
# {"embed": "model.embed_tokens", "q": "model.layers.{i}.self_attn.q_proj"}
NameTable = Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """Where a format has a tensor of the network."""

    name: str  # the format's name of the stored tensor
    shape: tuple[int, ...] | None = None  # of the stored tensor; None: the network's
    rows: slice | None = None  # that are read of it, `start:stop` of its first axis; None: all
    part: Callable[[FloatArray], FloatArray] | None = None  # what was read -> the network's tensor; None: as it is


@dataclass(frozen=True)
class Format:
    """A family in one format of checkpoints."""

    names: NameTable
    # regular expressions of whole names that may be there without a use: buffers, or what the configuration repeats
    unused: tuple[str, ...] = ()
    # where tensors are not one to one: fused, transposed, or in another order. None: `names` says all
    find: Callable[[Tensor, NetworkConfig], Source | None] | None = None
    other: Callable[[Tensor, NetworkConfig], Source | None] | None = None  # the same, where that one is not stored
    prefix: str = ""  # that some exports put before the names, and others do not: "transformer."

    def source(self, tensor: Tensor, config: NetworkConfig, stored: Container[str] = ()) -> Source:
        """Where a tensor of the network comes from: `find`, or else one to one by `names`.

        Args:
            stored: the names that there are; where the tensor is not among them, `other` says another place.
        """
        found = None if self.find is None else self.find(tensor, config)
        found = Source(self.named(tensor)) if found is None else found
        if self.other is not None and found.name not in stored:
            other = self.other(tensor, config)
            return found if other is None or other.name not in stored else other
        return found

    def named(self, tensor: Tensor) -> str:
        """The format's name by `names`."""
        return f"{self.names[tensor.stem].format(i=tensor.layer)}.{tensor.part}"

    def is_unused(self, name: str) -> bool:
        """Whether a tensor of the format may be there without a use."""
        return any(re.fullmatch(pattern, name) for pattern in self.unused)


@dataclass(frozen=True)
class HuggingFaceFormat(Format):
    """A Hugging Face folder."""

    model_type: str = ""  # `model_type` in config.json
    classes: tuple[str, ...] = ()  # `architectures` in config.json
    # maps config.json; ArchitectureError for a variant that the network does not describe
    config: Callable[[Fields], NetworkConfig] = lambda fields: NotImplemented


@dataclass(frozen=True)
class GgufSource:
    """What a family may look at in a GGUF file."""

    metadata: Fields
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor, by GGUF name, row-major
    read: Callable[[str], FloatArray]  # a tensor by GGUF name


@dataclass(frozen=True)
class GgufFormat(Format):
    """A GGUF file."""

    architecture: str = ""  # `general.architecture`
    # maps the metadata; ArchitectureError for a variant that the network does not describe
    config: Callable[[GgufSource], NetworkConfig] = lambda source: NotImplemented
    notes: Callable[[GgufSource], list[str]] = lambda source: []  # what a user has to know of such a file


@dataclass(frozen=True)
class Family:
    """A family of models. Its module in this folder has it as `FAMILY`."""

    name: str  # as a bundle spells it
    models: str  # for people: which models these are
    huggingface: HuggingFaceFormat | None = None
    gguf: GgufFormat | None = None
    note: str = ""  # for people: what differs between the formats


def refused(family: str, where: str, key: str, found: object, expected: object) -> ArchitectureError:
    """The error for a variant that the network of a family does not describe."""
    return ArchitectureError(
        f"{where}: {key} is {str(found)[:80]}; the {family} network is described for {expected} only. "
        "Ignoring it would change what the model computes: use a checkpoint without it."
    )
