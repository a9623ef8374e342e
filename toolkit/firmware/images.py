"""The model image that a firmware is built for: the bundle's own, or one made of its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from device_runtime.bundle.folder import Bundle, read_signature
from device_runtime.bundle.manifest import IMAGE
from device_runtime.errors import BundleError

__all__ = ["image_for"]


def image_for(
    bundle: Bundle, folder: Path, schemas: Sequence[Mapping[str, Any]] = (), *, current: bool = False
) -> Path:
    """The bundle's model image.

    A bundle that lacks it, or that is to hold other schemas, gets a new one in `folder`; with `current` one that has it
    of an older stonechat too.

    Raises:
        BundleError: the bundle is not for microcontrollers.
        ConfigurationError: it writes no text.
        GraphError: its graph has something that the C engine has no call for.
        SchemaError: a board cannot hold an answer to one of `schemas`.
    """
    if bundle.manifest.profile != "micro":
        raise BundleError(
            f"{bundle.path} has the profile {bundle.manifest.profile!r}; a microcontroller needs one that was "
            "converted with --profile micro."
        )
    bundle.manifest.require_task("generate")  # the C engine writes text
    own = bundle.path / IMAGE
    if own.is_file() and not schemas and (not current or _is_current(own, bundle)):
        return own
    from converters.emit.c.bundle import write_bundle_image  # loads the converter

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / IMAGE
    write_bundle_image(bundle, schemas, path)
    return path


def _is_current(image: Path, bundle: Bundle) -> bool:
    """Whether it says whose it is; images of before the firmware did not, and had other tables of chat roles.

    One without its tasks' calibration is made again too, unless its maker has signed it as it is.
    """
    from converters.emit.c.bundle import calibration
    from converters.emit.c.image import SectionKind, read_image

    sections = read_image(image.read_bytes(), str(image))
    if SectionKind.IDENTITY not in sections:
        return False
    signed = read_signature(bundle.path) is not None
    return signed or SectionKind.CALIBRATION in sections or not calibration(bundle.manifest)
