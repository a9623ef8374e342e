"""`stonechat translate`: texts in, translations out."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json, whole_number
from toolkit.cli.output import show
from toolkit.cli.texts_in import add_texts, texts_of

__all__ = ["HELP", "add_arguments", "run"]

HELP = "translate texts with a translator's bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat translate`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle folder, or a packed bundle")
    add_texts(parser)
    parser.add_argument("--to", metavar="LANGUAGE", help="for a model that writes several, as it spells them: deu")
    parser.add_argument(
        "--prefix", metavar="TEXT", default="", help='goes before each text: "translate English to German: " (T5)'
    )
    parser.add_argument("--max-new", metavar="N", type=whole_number(1), help="at most N tokens a text")
    parser.add_argument("--threads", metavar="N", type=whole_number(1, 256), help="CPU threads")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a translation a line."""
    from device_runtime.engine.encoder.translator import Translator
    from toolkit.packed import as_folder

    texts = texts_of(args)
    found = []
    with as_folder(args.bundle) as folder, Translator.open(folder, threads=args.threads) as model:
        for text in texts:
            answer = model.generate(args.prefix + text, max_new=args.max_new, to=args.to, truncate=args.truncate)
            for _ in answer:
                pass
            found.append(answer.result)
            if not args.json:
                print(answer.result.text, flush=True)
    fields = [
        {
            "text": text, "translation": one.text, "finish": one.finish, "prompt_tokens": one.prompt_tokens,
            "completion_tokens": one.completion_tokens, "tokens_per_s": round(one.tokens_per_s, 2),
        }
        for text, one in zip(texts, found, strict=True)
    ]  # fmt: skip
    return show(args, {"translations": fields}, ())
