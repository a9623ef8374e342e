"""`stonechat trace`: logits and layer outputs, to compare two readings of a network."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json, require_extra
from toolkit.cli.output import show

__all__ = ["HELP", "add_arguments", "run"]

HELP = "write the logits (and layer outputs) of a checkpoint or a bundle for given tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat trace`."""
    parser.add_argument("source", metavar="CHECKPOINT|BUNDLE", type=Path)
    parser.add_argument("--tokens", metavar="1,2,3", type=_tokens, required=True, help="token ids")
    parser.add_argument("-o", "--output", metavar="FILE.npz", type=Path, required=True)
    parser.add_argument("--layers", action="store_true", help="also the output of every layer, by canonical name")
    parser.add_argument("--backend", metavar="NAME", help="of a bundle's logits (default: by profile)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Trace and save."""
    from converters.measure.trace import save, trace_bundle, trace_checkpoint

    if (args.source / "manifest.json").is_file():
        arrays = trace_bundle(args.source, args.tokens, args.layers, args.backend)
    else:
        try:
            arrays = trace_checkpoint(args.source, args.tokens, args.layers)
        except ImportError as error:
            raise require_extra("convert", error) from None
    save(args.output, {"tokens": args.tokens, **arrays})
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    layers = f" and {len(shapes) - 1} layer outputs" if args.layers else ""
    line = f"{args.output}: logits {tuple(shapes['logits'])}{layers}"
    return show(args, {"output": str(args.output), "arrays": shapes}, [line])


def _tokens(text: str) -> list[int]:
    try:
        tokens = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids like 1,2,3") from None
    return tokens
