"""`stonechat families`: which models can be converted."""

from __future__ import annotations

import argparse

from toolkit.cli.options import add_json, require_extra
from toolkit.cli.output import rows, show

__all__ = ["HELP", "add_arguments", "run"]

HELP = "list the model families that can be converted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat families`."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """List them."""
    try:
        from converters.architectures import FAMILIES
        from converters.encoders.families import ENCODER_FAMILIES
    except ImportError as error:
        raise require_extra("convert", error) from None
    lines, fields = [], []
    for family in FAMILIES.values():
        folder, file = family.huggingface, family.gguf
        forms = [f"model_type {folder.model_type}"] if folder else []
        forms += [f"GGUF {file.architecture}"] if file else []
        text = f"{family.models} ({', '.join(forms)})"
        lines.append((family.name, f"{text}; {family.note}" if family.note else text))
        fields.append(
            {
                "name": family.name,
                "models": family.models,
                "model_type": folder.model_type if folder else None,
                "classes": list(folder.classes) if folder else [],
                "gguf_architecture": file.architecture if file else None,
                "note": family.note,
            }
        )
    for encoder in ENCODER_FAMILIES.values():
        tasks = ", ".join(sorted(set(encoder.classes.values())))
        lines.append((encoder.name, f"{encoder.models} (model_type {', '.join(encoder.model_types)}; tasks {tasks})"))
        fields += [
            {
                "name": encoder.name,
                "models": encoder.models,
                "model_type": kind,
                "classes": list(encoder.classes),
                "gguf_architecture": None,
                "note": f"tasks {tasks}",
            }
            for kind in encoder.model_types
        ]
    return show(args, {"families": fields}, rows(lines))
