"""Write tests/fuzz/corpus/whole_image/: a tiny network's image with every kind of section.

    .venv/bin/python scripts/image_corpus.py

Tokenizer, chat roles, schemas and identity are those of a converted checkpoint; the network around them is small enough
for a corpus.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from converters.emit.c.bundle import write_bundle_image
from converters.emit.c.image import SectionKind, read_image
from converters.emit.c.model import self_test_section, write_model_image
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE
from device_runtime.engine.schema.identity import schema_identity
from device_runtime.micro.library import CEngine
from tests.support.micro_bundles import micro_bundle, random_network

TESTS = Path(__file__).parents[1] / "tests"
CHECKPOINT = TESTS / "data" / "checkpoints" / "gqa-tied"
SCHEMAS = [
    {
        "type": "object", "required": ["level", "count"], "additionalProperties": False,
        "properties": {"level": {"enum": ["low", "high"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    },
    {"type": "object", "required": ["why"], "properties": {"why": {"type": "string", "maxLength": 9}}},
]  # fmt: skip
WORDS = (SectionKind.TOKENIZER, SectionKind.CHAT, SectionKind.SCHEMA, SectionKind.IDENTITY)


def main() -> None:
    """Convert, and put the two together."""
    out = TESTS / "fuzz" / "corpus" / "whole_image"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        donor = convert(open_checkpoint(CHECKPOINT), folder / "donor", Options("micro", context=32, fast=True))
        write_bundle_image(Bundle.open(donor.path), SCHEMAS)
        sections = {kind: bytes(part) for kind, part in read_image((donor.path / IMAGE).read_bytes()).items()}
        sections = {kind: sections[kind] for kind in WORDS}
        fitted = [struct.pack("<QI2f", schema_identity(s), 2, 1.5, 0.7) for s in SCHEMAS]
        sections[SectionKind.CALIBRATION] = struct.pack("<I", len(fitted)) + b"".join(fitted)
        vocabulary = CEngine(donor.path / IMAGE).needs.vocabulary
        network = random_network(
            vocabulary=vocabulary,
            layers=1,
            width=16,
            heads=2,
            kv_heads=1,
            head_dim=8,
            ffn_width=16,
            prefix_tokens=(0, 1),
        )
        bundle = micro_bundle(folder / "small", network, context=40)
        path = out / "all-sections"
        write_model_image(bundle.model_path, path, sections)
        engine = CEngine(path)
        tokens, logits = [1, 2, 3], []
        for token in tokens:
            engine.feed(token)
            logits.append(engine.logits.tobytes())
        sections[SectionKind.SELF_TEST] = self_test_section(tokens, logits)
        write_model_image(bundle.model_path, path, sections)
        CEngine(path).self_test()
        print({kind.name: len(part) for kind, part in read_image(path.read_bytes()).items()}, path.stat().st_size)


if __name__ == "__main__":
    main()
