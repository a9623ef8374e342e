"""Architectures: one file per family, mapping its configuration and tensor names onto the network of `converters`.

To add a family, write a module here that has a `FAMILY`; nothing else lists it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from importlib import import_module

from converters.architectures.family import Family
from converters.checkpoints.fields import Fields
from device_runtime.errors import ArchitectureError

__all__ = ["FAMILIES", "Family", "family_of_gguf", "family_of_huggingface"]


def _families() -> dict[str, Family]:
    modules = (import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


FAMILIES: dict[str, Family] = _families()  # by name


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
        form = family.huggingface
        if form is None or model_type != form.model_type:
            continue
        strange = [str(name) for name in classes if name not in form.classes]
        if not strange:
            return family
        raise _unknown(config.where, "architectures", ", ".join(strange), form.classes)
    known = [family.huggingface.model_type for family in FAMILIES.values() if family.huggingface]
    raise _unknown(config.where, "model_type", model_type, known)


def family_of_gguf(architecture: str, where: str) -> Family:
    """The family of a GGUF file's `general.architecture`.

    Raises:
        ArchitectureError: no family has this name.
    """
    for family in FAMILIES.values():
        if family.gguf is not None and architecture == family.gguf.architecture:
            return family
    known = [family.gguf.architecture for family in FAMILIES.values() if family.gguf]
    raise _unknown(where, "general.architecture", architecture, known)


def _unknown(where: str, key: str, found: str, known: Collection[str]) -> ArchitectureError:
    return ArchitectureError(
        f"{where}: {key} is {found!r}; supported: {', '.join(sorted(known))}. "
        "Use a model of a supported family, or describe this one in converters/architectures."
    )
