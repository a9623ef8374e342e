"""Opens a bundle as what it is: a language model, an encoder or a translator.

Nothing here needs numpy, so that the graph of a language model opens while numpy is loaded: together they are more than
half of a start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from device_runtime.bundle.manifest import TABLE
from device_runtime.engine.backends import begin_opening, open_backend
from device_runtime.engine.prompts import tokenizer_of
from device_runtime.update.active import open_bundle

if TYPE_CHECKING:
    from device_runtime.bundle.folder import Bundle
    from device_runtime.bundle.trust import TrustStore
    from device_runtime.engine.encoder.encoder_model import EncoderModel
    from device_runtime.engine.encoder.translator import Translator
    from device_runtime.engine.language_model import LanguageModel

    OpenedModel: TypeAlias = LanguageModel | EncoderModel | Translator

__all__ = ["open_language_model", "open_model", "schema_check"]


def open_language_model(
    path: Path | str,
    *,
    backend: str | None = None,
    threads: int | None = None,
    verify: bool = False,
    trust: TrustStore | None = None,
    keep_bytes: int | None = None,
) -> LanguageModel:
    """Open a bundle folder, or the active bundle of a slot folder.

    Args:
        backend: a name in `device_runtime.engine.backends.BACKENDS`; None takes the best one that is installed.
        threads: CPU threads; None takes one per core, at most 4.
        verify: check every file's hash even if it has not changed since the last check.
        trust: whose signature the bundle must have; None asks for none.
        keep_bytes: memory that kept states may take; None is a sixteenth of the machine's, at most 64 MiB.

    Raises:
        ConfigurationError: there is no bundle at `path`, or no such backend.
        SignatureError: nobody who is trusted has signed it.
        BundleError: the bundle is damaged.
        BackendError: no installed runtime can run it.
    """
    bundle = open_bundle(path, verify=verify, trust=trust)
    bundle.manifest.require_task("generate")
    # A library's tokenizer first: reading it takes and frees memory that the graph can then have. A table takes none.
    tokenizer = None if TABLE in bundle.manifest.files else tokenizer_of(bundle)
    opening = begin_opening(bundle, backend, threads)
    try:
        from device_runtime.engine.language_model import LanguageModel

        tokenizer = tokenizer or tokenizer_of(bundle)
        return LanguageModel(bundle, open_backend(bundle, backend, threads, opening), tokenizer, keep_bytes=keep_bytes)
    except BaseException:
        if opening is not None:
            opening.abandon()
        raise


def open_model(
    path: Path | str,
    *,
    threads: int | None = None,
    verify: bool = False,
    trust: TrustStore | None = None,
    keep_bytes: int | None = None,
) -> OpenedModel:
    """Open a bundle folder, or the active bundle of a slot folder; see `open_language_model`."""
    task = open_bundle(path, trust=trust).manifest.task
    if task == "generate":
        return open_language_model(path, threads=threads, verify=verify, trust=trust, keep_bytes=keep_bytes)
    if task == "translate":
        from device_runtime.engine.encoder.translator import Translator

        return Translator.open(path, threads=threads, verify=verify, trust=trust)
    from device_runtime.engine.encoder.encoder_model import EncoderModel

    return EncoderModel.open(path, threads=threads, verify=verify, trust=trust)


def schema_check(bundle: Bundle) -> Callable[[Mapping[str, Any], int | None], None]:
    """What raises a `SchemaError` if no answer of a bundle is sure to fit a JSON schema, without opening its graph."""
    if bundle.manifest.task == "generate":
        from device_runtime.engine.structured import SchemaCompiler
        from device_runtime.tasks.fixed_answers import require_fit
        from device_runtime.tasks.purpose import Purpose

        purpose = Purpose.of_manifest(bundle.manifest)
        if purpose is not None and purpose.at_once:
            return lambda schema, max_new: require_fit(purpose.name, purpose.fields, schema)
        return SchemaCompiler(bundle).check
    from device_runtime.engine.encoder.answers import check_schema

    return lambda schema, max_new: check_schema(bundle.manifest, schema)
