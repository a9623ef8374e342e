"""The model image of a bundle: its graph, its tokenizer, and a golden self-test."""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.emit.c.byte_level_bpe import byte_level_table
from converters.emit.c.chat_roles import chat_roles
from converters.emit.c.image import SectionKind, read_image, write_image
from converters.emit.c.model import ModelImage, self_test_section, write_model_image
from converters.emit.c.schema import schema_section
from converters.emit.c.sentencepiece import sentencepiece_table
from converters.emit.c.tokenizer import Flag
from device_runtime.bridge.messages import MAX_FIELDS
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE, MODEL, EngineMemory, FileEntry, Manifest
from device_runtime.bundle.work_place import work_file
from device_runtime.engine.prompts import tokenizer_of
from device_runtime.engine.schema.identity import schema_identity
from device_runtime.errors import BackendMissingError, ConfigurationError, SchemaError
from device_runtime.micro.library import CEngine
from device_runtime.tasks.purpose import purposes_of

__all__ = ["add_calibration", "calibration", "renew_image", "write_bundle_image"]

_SELF_TEST_TOKENS = 8


def write_bundle_image(
    bundle: Bundle, schemas: Sequence[Mapping[str, Any]] = (), path: Path | None = None
) -> ModelImage:
    """Write `model.image` into a bundle's folder, or to `path`. The manifest is the caller's.

    It holds answers to `schemas`, and to those of the tasks that the bundle was trained for, where the board can, and
    has the temperatures that their confidence was fitted with.

    A tokenizer that the C engine has no table for is left out: the image then takes and gives tokens only. So are a
    chat template that is more than a table of roles, and the self-test where there is no C compiler to compute it with.

    Raises:
        GraphError: the graph has something that the C engine has no call for.
        SchemaError: a board cannot hold an answer to one of `schemas`, or the image has no tokenizer.
    """
    path = path or bundle.path / IMAGE
    sections = {**_text_sections(bundle), SectionKind.IDENTITY: _identity(bundle.manifest)}
    sections |= _schemas(bundle.manifest, schemas, SectionKind.TOKENIZER in sections)
    if SectionKind.SCHEMA in sections and (fitted := calibration(bundle.manifest)):
        sections[SectionKind.CALIBRATION] = fitted
    written = write_model_image(bundle.model_path, path, sections)
    try:
        engine = CEngine(path)
    except BackendMissingError:
        return written
    vocabulary, room = engine.needs.vocabulary, engine.needs.context - engine.needs.prefix
    tokens = [(7919 * i + 1) % vocabulary for i in range(min(_SELF_TEST_TOKENS, room))]
    logits = []
    for token in tokens:
        engine.feed(token)
        logits.append(engine.logits.tobytes())
    _add_section(path, SectionKind.SELF_TEST, self_test_section(tokens, logits))
    CEngine(path).self_test()
    return written


def renew_image(bundle: Bundle) -> Manifest:
    """Write a bundle's `model.image` again, and return the manifest that describes it, which is the caller's to write.

    For a bundle whose manifest has changed in what an image holds, such as the answer's schema of its task.
    """
    image = write_bundle_image(bundle)
    return replace(_with_image(bundle), engine=EngineMemory(image.arena_bytes, image.kv_bytes))


def add_calibration(bundle: Bundle) -> Manifest:
    """Put what a bundle's tasks have fitted their confidence with into its `model.image`, which is as it was otherwise.

    Returns:
        the manifest that describes it, which is the caller's to write.
    """
    with (bundle.path / IMAGE).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        sections = read_image(whole, str(bundle.path / IMAGE))
        holds_answers = SectionKind.SCHEMA in sections
        for view in sections.values():
            view.release()
    if holds_answers and (fitted := calibration(bundle.manifest)):
        _add_section(bundle.path / IMAGE, SectionKind.CALIBRATION, fitted)
    return _with_image(bundle)


def _with_image(bundle: Bundle) -> Manifest:
    data = (bundle.path / IMAGE).read_bytes()
    files = {**bundle.manifest.files, IMAGE: FileEntry(hashlib.sha256(data).hexdigest(), len(data))}
    return replace(bundle.manifest, files=files)


def _text_sections(bundle: Bundle) -> dict[SectionKind, bytes]:
    """Tokenizer and chat roles, as far as the C engine can follow them."""
    manifest = bundle.manifest
    info, template = manifest.tokenizer, manifest.chat_template
    file = bundle.path / info.file
    content = file.read_bytes()
    tokenizer = tokenizer_of(bundle)
    try:
        if file.suffix == ".json":
            packed = byte_level_table(content, tokenizer.names)
        else:
            packed = sentencepiece_table(content, tokenizer.names, own_space=info.own_space)
        sections = {SectionKind.TOKENIZER: packed.pack()}
    except ConfigurationError:
        return {}
    if template is None or (Flag.DUMMY_PREFIX in packed.flags and not info.spaced):
        return sections
    tokens = {name: ids[0] for name in tokenizer.names if len(ids := tokenizer.encode(name)) == 1}
    with suppress(ConfigurationError):
        roles = chat_roles(template, info.special_tokens)
        sections[SectionKind.CHAT] = roles.pack(tokens, info.eos_ids, manifest.prefix_tokens)
    return sections


def _identity(manifest: Manifest) -> bytes:
    """u32 number of end tokens, u32 each, the graph's SHA-256, the name."""
    ends = manifest.tokenizer.eos_ids
    sha256 = bytes.fromhex(manifest.files[MODEL].sha256)
    return struct.pack(f"<I{len(ends)}I", len(ends), *ends) + sha256 + manifest.name.encode()


def _schemas(manifest: Manifest, asked: Sequence[Mapping[str, Any]], has_tokenizer: bool) -> dict[SectionKind, bytes]:
    """The section of schemas; without a tokenizer no answer can be held to one."""
    if asked and not has_tokenizer:
        raise SchemaError(
            "The C engine has no table for this tokenizer, so a board cannot hold answers to a schema; convert "
            "without --schema and --task."
        )
    found = {schema_identity(schema): schema for schema in asked}
    for purpose in purposes_of(manifest) if has_tokenizer else ():
        with suppress(SchemaError):  # one that a board cannot hold is left to bigger machines
            schema_section([purpose.answer])
            found.setdefault(schema_identity(purpose.answer), purpose.answer)
    return {SectionKind.SCHEMA: schema_section(list(found.values()))} if found else {}


def calibration(manifest: Manifest) -> bytes:
    """What a bundle's tasks have fitted their confidence with; nothing where it is to be taken as it is.

    u32 number of schemas; for each its identity (u64), u32 number of fields, and a temperature (f32) for each of these
    in the answer's order.
    """
    entries = []
    for purpose in purposes_of(manifest):
        names = list(purpose.answer.get("properties", ()))[:MAX_FIELDS]
        fitted = [purpose.temperatures.get(name, 1.0) for name in names]
        all_come = set(names) == set(purpose.answer.get("required", ()))  # else the n-th field may be any
        if all_come and any(temperature != 1.0 for temperature in fitted):
            entries.append(
                struct.pack(f"<QI{len(fitted)}f", schema_identity(purpose.answer), len(fitted), *fitted)
            )  # fmt: skip
    return struct.pack("<I", len(entries)) + b"".join(entries) if entries else b""


def _add_section(path: Path, kind: SectionKind, data: bytes) -> None:
    """Write an image again with one section more."""
    with work_file(path) as part:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            sections = read_image(whole, str(path))
            write_image(part, {**sections, kind: data})
            for view in sections.values():
                view.release()
        part.replace(path)
