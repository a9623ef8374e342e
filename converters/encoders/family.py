"""What a family of encoders or translators is: how its configuration and tensors become those of the network.

A module of this folder that has a `FAMILY` is one; nothing else lists it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from converters.checkpoints.fields import Fields
from converters.checkpoints.tensors import StoredTensor
from converters.encoders.network import Config, TranslatorConfig, tensor_shapes
from converters.encoders.settings import SentenceSettings
from converters.network.config import ActivationKind
from converters.network.weights import FloatArray, ReadTensor
from device_runtime.errors import ArchitectureError, CheckpointError

__all__ = ["EncoderFamily", "Recipe", "Task", "activation", "bind", "expected", "without_prefix"]

_ACTIVATIONS: Mapping[str, ActivationKind] = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
Task = Literal["embed", "classify", "translate"]


@dataclass(frozen=True)
class Recipe:
    """Where a tensor of the network comes from."""

    stored: tuple[str, ...]  # names in the checkpoint; none: it is computed
    combine: Callable[..., FloatArray] | None = None  # the stored ones -> the network's; None: the one as it is
    shapes: tuple[tuple[int, ...], ...] | None = None  # of the stored ones; None: each the network's


@dataclass(frozen=True)
class EncoderFamily:
    """A family of models. Its module in this folder has it as `FAMILY`."""

    name: str  # as a bundle spells it
    models: str  # for people: which models these are
    model_types: tuple[str, ...]  # `model_type` in config.json
    classes: Mapping[str, Task]  # `architectures` in config.json
    # maps config.json and what sentence-transformers' files say; ArchitectureError for a variant not described
    config: Callable[[Fields, Task, SentenceSettings], Config]
    recipe: Callable[[str, Config, Fields], Recipe]
    prefixes: tuple[str, ...] = ("",)  # that all names may have: a model with a head puts one before the encoder's
    unused: tuple[str, ...] = ()  # regular expressions of names, without prefix, that may be there without a use


def expected(family: str, fields: Fields, key: str, found: object, wanted: object) -> None:
    """Raise an `ArchitectureError` if a key of the configuration is not what the network is described for."""
    if found != wanted:
        raise ArchitectureError(
            f"{fields.where}: {key} is {str(found)[:80]}; the {family} network is described for {wanted} only. "
            "Ignoring it would change what the model computes: use a checkpoint without it."
        )


def activation(family: str, fields: Fields, key: str, default: str) -> ActivationKind:
    """The activation that a configuration names."""
    found = fields.text(key, default)
    if found not in _ACTIVATIONS:
        expected(family, fields, key, found, " or ".join(_ACTIVATIONS))
    return _ACTIVATIONS[found]


def without_prefix(stored: Mapping[str, StoredTensor], prefixes: Sequence[str]) -> dict[str, StoredTensor]:
    """Tensors by name, without the prefix of the encoder within a larger model."""
    found = {}
    for name, tensor in stored.items():
        prefix = next((p for p in prefixes if p and name.startswith(p)), "")
        found[name.removeprefix(prefix)] = tensor
    return found


def bind(
    family: EncoderFamily, config: Config, fields: Fields, stored: Mapping[str, StoredTensor], where: str
) -> tuple[ReadTensor, dict[str, str]]:
    """Find every tensor of the network, and nothing that the network would leave out.

    Returns:
        How to read a tensor by canonical name, and the names that the checkpoint has for it.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        ArchitectureError: a tensor has no place in the network.
    """
    tensors = without_prefix(stored, family.prefixes)
    recipes: dict[str, Recipe] = {}
    for name, shape in tensor_shapes(config).items():
        recipe = recipes[name] = family.recipe(name, config, fields)
        shapes = recipe.shapes or (shape,) * len(recipe.stored)
        for one, wanted in zip(recipe.stored, shapes, strict=True):
            if one not in tensors:
                raise CheckpointError(
                    f"{where}: tensor {one} ({name}) is missing; expected shape {wanted}. The checkpoint is "
                    "incomplete, or its configuration is of another model: use the files of one model."
                )
            if tensors[one].shape != wanted:
                raise CheckpointError(
                    f"{where}: tensor {one} ({name}) has shape {tensors[one].shape}, expected {wanted} by the "
                    "configuration. The weights and the configuration are of different models: use those of one."
                )
    used = {one for recipe in recipes.values() for one in recipe.stored}
    left = sorted(n for n in tensors if n not in used and not any(re.fullmatch(u, n) for u in family.unused))
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise ArchitectureError(
            f"{where}: tensors without a place in the network: {', '.join(left[:3])}{more}. "
            "Leaving them out would change what the model computes; this variant is not supported."
        )

    tied = isinstance(config, TranslatorConfig) and config.tied

    def read(name: str) -> FloatArray:
        recipe = recipes["embed.weight" if tied and name == "head.weight" else name]
        values = [tensors[one].read() for one in recipe.stored]
        return values[0] if recipe.combine is None else recipe.combine(*values)

    return read, {name: " + ".join(recipe.stored) for name, recipe in recipes.items()}
