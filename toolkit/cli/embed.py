"""`stonechat embed`: texts in, vectors out."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json, whole_number
from toolkit.cli.output import show, table
from toolkit.cli.texts_in import add_texts, texts_of

__all__ = ["HELP", "add_arguments", "run"]

HELP = "turn texts into vectors with a sentence encoder, or find the label that is nearest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat embed`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle folder, or a packed bundle")
    add_texts(parser)
    parser.add_argument("--prompt", metavar="NAME", help="what the texts are for, such as query or passage (E5)")
    parser.add_argument(
        "--nearest", metavar="LABEL", action="append", default=[],
        help="print which of these each text is nearest to, and the cosine (repeatable)",
    )  # fmt: skip
    parser.add_argument("--threads", metavar="N", type=whole_number(1, 256), help="CPU threads")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a vector a line, as JSON; or the nearest labels."""
    import json

    from device_runtime.engine.encoder.encoder_model import EncoderModel
    from toolkit.packed import as_folder

    texts = texts_of(args)
    with as_folder(args.bundle) as folder, EncoderModel.open(folder, threads=args.threads) as model:
        if args.nearest:
            found = model.nearest(texts, args.nearest, prompt_name=args.prompt, truncate=args.truncate)
            pairs = [(text, label, round(cosine, 4)) for text, (label, cosine) in zip(texts, found, strict=True)]
            fields = [{"text": text, "label": label, "cosine": cosine} for text, label, cosine in pairs]
            lines = [(label, f"{cosine:.3f}", text) for text, label, cosine in pairs]
            return show(args, {"nearest": fields}, table(lines, right=(1,)))
        vectors = model.embed(texts, prompt_name=args.prompt, truncate=args.truncate)
    numbers = [[round(float(value), 6) for value in vector] for vector in vectors]
    return show(args, {"width": vectors.shape[1], "embeddings": numbers}, map(json.dumps, numbers))
