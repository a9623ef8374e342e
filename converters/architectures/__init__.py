"""Architectures: one file per family, mapping its configuration and tensor names onto the network of `converters`.

To add a family, write a module here that has a `FAMILY`; nothing else lists it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from importlib import import_module

from converters.architectures.family import Family
from converters.architectures.kinds import kind_of
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
    known = {family.huggingface.model_type: family for family in FAMILIES.values() if family.huggingface}
    if model_type in known:
        form = known[model_type].huggingface
        assert form is not None
        strange = [str(name) for name in classes if name not in form.classes]
        if not strange:
            return known[model_type]
        raise _unknown(config.where, "architectures", ", ".join(strange), form.classes)
    raise _unknown(config.where, "model_type", model_type, known, kind_of(config.values))


def family_of_gguf(metadata: Fields) -> Family:
    """The family of a GGUF file's `general.architecture`.

    Raises:
        ArchitectureError: no family has this name.
    """
    architecture = metadata.text("general.architecture")
    for family in FAMILIES.values():
        if family.gguf is not None and architecture == family.gguf.architecture:
            return family
    known = [family.gguf.architecture for family in FAMILIES.values() if family.gguf]
    own = {key.removeprefix(f"{architecture}."): value for key, value in metadata.values.items()}
    raise _unknown(metadata.where, "general.architecture", architecture, known, kind_of(own))


def _unknown(where: str, key: str, found: str, known: Collection[str], kind: str = "") -> ArchitectureError:
    what = f" ({kind})" if kind else ""
    return ArchitectureError(
        f"{where}: {key} is {found!r}{what}; supported: {', '.join(sorted(known))}. "
        "Use a model of a supported family (`stonechat families` lists them), or describe this one in "
        "converters/architectures."
    )
