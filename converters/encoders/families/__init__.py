"""Families of encoders and translators: one file each.

To add one, write a module here that has a `FAMILY`; nothing else lists it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from converters.checkpoints.fields import Fields
from converters.encoders.family import EncoderFamily, Task
from device_runtime.errors import ArchitectureError

__all__ = ["ENCODER_FAMILIES", "family_of"]


def _families() -> dict[str, EncoderFamily]:
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    found = [import_module(f"{__name__}.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


ENCODER_FAMILIES: dict[str, EncoderFamily] = _families()  # by name


def family_of(fields: Fields) -> tuple[EncoderFamily, Task] | None:
    """The family of a config.json, and what its class is for; None if it is none of this folder's.

    Raises:
        ArchitectureError: a family of this folder, and a class of it that is not supported.
    """
    model_type = fields.text("model_type", "")
    family = next((f for f in ENCODER_FAMILIES.values() if model_type in f.model_types), None)
    if family is None:
        return None
    classes = fields.values.get("architectures", [])
    classes = classes if isinstance(classes, list) else [classes]
    strange = [str(name) for name in classes if name not in family.classes]
    if strange or not classes:
        raise ArchitectureError(
            f"{fields.where}: architectures is {', '.join(strange) or 'empty'}; of {family.models} are supported: "
            f"{', '.join(family.classes)}. Use a checkpoint of one of these."
        )
    return family, family.classes[str(classes[0])]
