"""Opens a bundle as what it is: a language model, an encoder or a translator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.bundle.trust import TrustStore
from device_runtime.update.slots import open_bundle

if TYPE_CHECKING:
    from device_runtime.bundle.folder import Bundle
    from device_runtime.engine.encoder.encoder_model import EncoderModel
    from device_runtime.engine.encoder.translator import Translator
    from device_runtime.engine.language_model import LanguageModel

    OpenedModel = LanguageModel | EncoderModel | Translator

__all__ = ["open_model", "schema_check"]


def open_model(
    path: Path | str,
    *,
    threads: int | None = None,
    verify: bool = False,
    trust: TrustStore | None = None,
    keep_bytes: int | None = None,
) -> OpenedModel:
    """Open a bundle folder, or the active bundle of a slot folder; see `LanguageModel.open`."""
    task = open_bundle(path, trust=trust).manifest.task
    if task == "generate":
        from device_runtime.engine.language_model import LanguageModel

        return LanguageModel.open(path, threads=threads, verify=verify, trust=trust, keep_bytes=keep_bytes)
    if task == "translate":
        from device_runtime.engine.encoder.translator import Translator

        return Translator.open(path, threads=threads, verify=verify, trust=trust)
    from device_runtime.engine.encoder.encoder_model import EncoderModel

    return EncoderModel.open(path, threads=threads, verify=verify, trust=trust)


def schema_check(bundle: Bundle) -> Callable[[Mapping[str, Any], int | None], None]:
    """What raises a `SchemaError` if no answer of a bundle is sure to fit a JSON schema, without opening its graph."""
    if bundle.manifest.task == "generate":
        from device_runtime.engine.structured import SchemaCompiler

        return SchemaCompiler(bundle).check
    from device_runtime.engine.encoder.answers import check_schema

    return lambda schema, max_new: check_schema(bundle.manifest, schema)
