"""Which JSON schemas the answers of encoders and translators fit: known from the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_runtime.bundle.manifest import Manifest
from device_runtime.errors import SchemaError

__all__ = ["check_schema"]


def check_schema(manifest: Manifest, schema: Mapping[str, Any]) -> None:
    """Raise a `SchemaError` unless all answers have the fields that `schema` wants, with values that it allows."""
    if manifest.task == "embed":
        raise SchemaError(f"{manifest.name} gives vectors, which fit no answer; take a bundle of another task.")
    if manifest.task == "translate":
        raise SchemaError(f"{manifest.name} translates, and a translation fits no schema; leave `answer` out.")
    from device_runtime.tasks.fixed_answers import require_fit
    from device_runtime.tasks.purpose import Purpose  # which needs YAML

    purpose = Purpose.of_manifest(manifest)
    require_fit(manifest.name, {} if purpose is None else purpose.fields, schema)
