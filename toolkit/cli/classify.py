"""`stonechat classify`: texts in, labels out."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json, whole_number
from toolkit.cli.output import say_unfamiliar, show, table
from toolkit.cli.texts_in import add_texts, texts_of

__all__ = ["HELP", "add_arguments", "run"]

HELP = "choose labels for texts with a classifier, and say how sure it is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat classify`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle folder, or a packed bundle")
    add_texts(parser)
    parser.add_argument("--threads", metavar="N", type=whole_number(1, 256), help="CPU threads")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each text: its labels, how sure, the text."""
    from device_runtime.engine.encoder.encoder_model import EncoderModel
    from toolkit.packed import as_folder

    texts = texts_of(args)
    with as_folder(args.bundle) as folder, EncoderModel.open(folder, threads=args.threads) as model:
        found = [model.classify(text, truncate=args.truncate) for text in texts]
    fields = [
        {
            "text": text,
            "answer": dict(one.answer),
            "confidence": {name: round(value, 4) for name, value in one.confidence.items()},
            "probabilities": {
                name: {label: round(share, 4) for label, share in shares.items()}
                for name, shares in one.probabilities.items()
            },
            "cut": one.cut,
            **({"unfamiliar": True, "reason": "; ".join(one.unfamiliar)} if one.unfamiliar else {}),
        }
        for text, one in zip(texts, found, strict=True)
    ]
    lines = []
    for text, one in zip(texts, found, strict=True):
        sure = one.confidence
        labels = list(one.answer.values())
        if len(labels) > 1 and all(isinstance(label, bool) for label in labels):  # several that may hold
            labels = [name for name, holds in one.answer.items() if holds] or ["none"]
        lines.append((", ".join(map(str, labels)), f"{min(sure.values()):.3f}", text))
    show(args, {"texts": fields}, table(lines, right=(1,)))
    if not args.json:
        for text, one in zip(texts, found, strict=True):
            say_unfamiliar(one.unfamiliar, text if len(texts) > 1 else "")
    return 0
