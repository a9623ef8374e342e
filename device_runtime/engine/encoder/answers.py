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
    from device_runtime.tasks.examples import answer_faults
    from device_runtime.tasks.purpose import Purpose  # which needs YAML

    purpose = Purpose.of_manifest(manifest)
    fields = {} if purpose is None else purpose.fields
    properties = schema.get("properties", {})
    properties = properties if isinstance(properties, Mapping) else {}
    for name in dict.fromkeys((*properties, *schema.get("required", ()))):
        if name not in fields:
            has = ", ".join(map(repr, fields))
            raise SchemaError(f"{manifest.name} answers with {has}; {name!r} is none of its fields.")
        known = {"properties": {name: wanted}} if isinstance(wanted := properties.get(name), Mapping) else None
        beyond = [v for v in fields[name] or () if known and answer_faults({name: v}, known, whole=False)]
        if beyond:
            raise SchemaError(f"{manifest.name} may answer {name} {beyond[0]!r}, which the schema does not allow.")
