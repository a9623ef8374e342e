"""`stonechat trace`: logits and layer outputs, to compare two readings of a network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json, require_extra
from toolkit.cli.output import show, table

__all__ = ["HELP", "add_arguments", "run"]

HELP = "write the logits (and layer outputs) of a checkpoint or a bundle for given tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat trace`."""
    parser.add_argument("source", metavar="CHECKPOINT|BUNDLE", type=Path)
    parser.add_argument("--tokens", metavar="1,2,3", type=_tokens, required=True, help="token ids")
    parser.add_argument("-o", "--output", metavar="FILE.npz", type=Path, required=True)
    parser.add_argument("--layers", action="store_true", help="also the output of every layer, by canonical name")
    parser.add_argument(
        "--against",
        metavar="OTHER",
        type=Path,
        help="compare with a checkpoint, a bundle, or a trace (.npz) of another tool",
    )
    parser.add_argument("--backend", metavar="NAME", help="of a bundle's logits (default: by profile)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Trace and save."""
    from converters.measure.trace import distances, save

    arrays = _traced(args, args.source)
    near = distances(arrays, _traced(args, args.against)) if args.against is not None else {}
    save(args.output, {"tokens": args.tokens, **arrays})
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    layers = f" and {counted(len(shapes) - 1, 'layer output')}" if args.layers else ""
    line = f"{args.output}: logits {tuple(shapes['logits'])}{layers}"
    fields = {"output": str(args.output), "arrays": shapes}
    if args.against is None:
        return show(args, fields, [line])
    lines = [(name, f"{snr_db:.1f}") for name, snr_db in near.items()]
    listing = table(lines, ("", "signal to noise, dB"), right=(1,))
    return show(args, fields | {"snr_db": {name: round(snr_db, 2) for name, snr_db in near.items()}}, [line, *listing])


def _traced(args: argparse.Namespace, source: Path) -> Any:
    """The arrays of a checkpoint, of a bundle, or of a file that holds them."""
    import numpy as np

    from converters.measure.trace import trace_bundle, trace_checkpoint
    from device_runtime.errors import ConfigurationError
    from device_runtime.update.active import open_bundle

    if source.suffix == ".npz" and source.is_file():
        try:
            with np.load(source) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{source}: no arrays of a trace: {error}.") from None
    if (source / "manifest.json").is_file():
        return trace_bundle(source, args.tokens, args.layers, args.backend)
    context, prefix = 0, []  # of the bundle that it is compared with: its prefix comes before the tokens there
    for other in (args.source, args.against):
        if other is not None and (other / "manifest.json").is_file():
            manifest = open_bundle(other).manifest
            context, prefix = manifest.context, list(manifest.prefix_tokens)
    if args.tokens[: len(prefix)] == prefix:
        prefix = []
    try:
        arrays = trace_checkpoint(source, prefix + args.tokens, args.layers, context)
    except ImportError as error:
        raise require_extra("convert", error) from None
    return {name: values[len(prefix) :] for name, values in arrays.items()}


def _tokens(text: str) -> list[int]:
    try:
        tokens = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids like 1,2,3") from None
    return tokens
