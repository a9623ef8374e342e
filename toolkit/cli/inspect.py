"""`stonechat inspect`: what a bundle is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json
from toolkit.cli.output import rows
from toolkit.cli.owed import json_is_printed
from toolkit.quality_text import quality_rows

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show what a bundle holds, after checking every file's hash"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat inspect`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle folder, or a packed bundle")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the manifest, shortened for people or whole as JSON."""
    from device_runtime.update.active import open_bundle
    from toolkit.packed import as_folder

    with as_folder(args.bundle) as folder:
        manifest = open_bundle(folder, verify=True).manifest
    if args.json:
        print(manifest.to_json(), end="")
        json_is_printed()
        return 0
    graph, tokenizer = manifest.graph, manifest.tokenizer
    count = len(manifest.prefix_tokens)
    lines = [
        ("name", f"{manifest.name}, version {manifest.version}"),
        ("architecture", f"{manifest.architecture}, {counted(graph.layers, 'layer')}, vocabulary {graph.vocabulary:,}"),
        ("profile", manifest.profile),
        ("context", f"{manifest.context} positions, cache windows {', '.join(map(str, graph.windows))}"),
        ("prefix", f"{counted(count, 'token')} already in the cache"),
        ("tokenizer", f"{tokenizer.file}, ends at {', '.join(map(str, tokenizer.eos_ids)) or 'no token'}"),
        ("chat template", "yes" if manifest.chat_template else "no: give plain prompts"),
    ]
    if manifest.encoder is not None:
        lines = _encoder_lines(manifest)
    if instruction := manifest.instruction:
        lines.append(("instruction", instruction if len(instruction) <= 80 else f"{instruction[:79]}…"))
    lines += quality_rows(manifest.quality)
    if arena := manifest.arena:
        lines.append(
            (
                "arena",
                f"{arena.total_bytes:,} bytes in TFLite Micro: head {arena.head_bytes:,}, tail {arena.tail_bytes:,}, "
                f"of which kv_cache {arena.kv_cache_bytes:,}; pointers had {arena.pointer_bytes} bytes",
            )
        )
    lines += [
        ("source", f"{manifest.source['name']}, sha256 {manifest.source['sha256'][:16]}…"),
        ("converter", f"stonechat {manifest.converter}"),
        *((name, f"{entry.size_bytes:,} bytes, sha256 {entry.sha256[:16]}…") for name, entry in manifest.files.items()),
    ]
    print(*rows(lines), sep="\n")
    return 0


def _encoder_lines(manifest: Manifest) -> list[tuple[str, str]]:
    """Of an encoder, a classifier or a translator."""
    graph, info = manifest.graph, manifest.encoder
    assert info is not None
    lines = [
        ("name", f"{manifest.name}, version {manifest.version}"),
        ("task", manifest.task),
        ("architecture", f"{manifest.architecture}, {counted(graph.layers, 'layer')}, vocabulary {graph.vocabulary:,}"),
        ("profile", manifest.profile),
        ("texts", f"up to {manifest.context} tokens, padded to {', '.join(map(str, graph.windows))}"),
    ]
    if manifest.task == "embed":
        lines.append(("vectors", f"{info.values} values"))
        prompts = ", ".join(f"{name} {text!r}" for name, text in info.prompts.items()) or "none"
        default = f"; {info.default_prompt} goes before every text" if info.default_prompt else ""
        lines.append(("prompts", f"{prompts}{default}"))
    if manifest.purpose is not None:
        fields = manifest.purpose["answer"]["properties"]
        lines += [(f"answers {name}", ", ".join(map(str, schema["enum"]))) for name, schema in fields.items()]
    return lines
