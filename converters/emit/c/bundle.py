"""The model image of a bundle: its graph, its tokenizer, and a golden self-test."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

from converters.emit.c.byte_level_bpe import byte_level_table
from converters.emit.c.chat_roles import chat_roles
from converters.emit.c.image import SectionKind, read_image, write_image
from converters.emit.c.model import ModelImage, self_test_section, write_model_image
from converters.emit.c.sentencepiece import sentencepiece_table
from converters.emit.c.tokenizer import Flag
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE
from device_runtime.engine.prompts import tokenizer_of
from device_runtime.errors import BackendMissingError, ConfigurationError
from device_runtime.micro.library import CEngine

__all__ = ["write_bundle_image"]

_SELF_TEST_TOKENS = 8


def write_bundle_image(bundle: Bundle) -> ModelImage:
    """Write `model.image` into a bundle's folder. The manifest is the caller's.

    A tokenizer that the C engine has no table for is left out: the image then takes and gives tokens only. So are a
    chat template that is more than a table of roles, and the self-test where there is no C compiler to compute it with.

    Raises:
        GraphError: the graph has something that the C engine has no call for.
    """
    path = bundle.path / IMAGE
    sections = _text_sections(bundle)
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


def _text_sections(bundle: Bundle) -> dict[SectionKind, bytes]:
    """Tokenizer and chat roles, as far as the C engine can follow them."""
    manifest = bundle.manifest
    info, template = manifest.tokenizer, manifest.chat_template
    file = bundle.path / info.file
    table = byte_level_table if file.suffix == ".json" else sentencepiece_table
    tokenizer = tokenizer_of(bundle)
    try:
        packed = table(file.read_bytes(), tokenizer.names)
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


def _add_section(path: Path, kind: SectionKind, data: bytes) -> None:
    """Write an image again with one section more."""
    part = path.with_name(f".{path.name}")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        sections = read_image(whole, str(path))
        write_image(part, {**sections, kind: data})
        for view in sections.values():
            view.release()
    part.replace(path)
