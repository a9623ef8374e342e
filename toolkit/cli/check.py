"""`stonechat check`: find the faults of a fleet file, or whether a bundle fits a board, before a device does."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from toolkit.cli.options import add_json, percent

__all__ = ["HELP", "add_arguments", "run"]

HELP = "check a fleet file, or whether a bundle fits a board"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat check`."""
    parser.add_argument("path", metavar="FLEET.yaml|BUNDLE", type=Path, help="a bundle may be packed; nothing is run")
    parser.add_argument("--board", metavar="ID", help="the board to hold the bundle against, or a board file's path")
    parser.add_argument("--baseline", metavar="FILE", type=Path, help="fail when it costs more than this file says")
    parser.add_argument("--allow", metavar="PERCENT", type=percent, default=0.0, help="how much more (default 0)")
    parser.add_argument("--update-baseline", action="store_true", help="write the baseline anew")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Tell a bundle from a fleet file by what the path is."""
    from device_runtime.errors import ConfigurationError

    if args.update_baseline and args.baseline is None:
        raise ConfigurationError("--update-baseline needs --baseline FILE, the file to write.")
    if args.path.is_dir() or _is_zip(args.path):
        if args.board is None:
            what = "a folder" if args.path.is_dir() else "a packed bundle"
            raise ConfigurationError(
                f"{args.path} is {what}; say for which board: --board ID (`stonechat boards list`)."
            )
        from toolkit.cli.fit_report import check_bundle

        return check_bundle(args)
    if args.board is not None or args.baseline is not None:
        what = "is no bundle" if args.path.exists() else "is no bundle: it does not exist"
        raise ConfigurationError(
            f"{args.path} {what}; --board and --baseline ask for one: its folder, or the .zip that "
            "`stonechat bundle pack` writes."
        )
    return _check_fleet(args)


def _is_zip(path: Path) -> bool:
    """By its name, so that a damaged one is reported as such, or by how it begins."""
    if path.suffix == ".zip" or not path.is_file():
        return path.is_file()
    with suppress(OSError), path.open("rb") as file:
        return file.read(2) == b"PK"
    return False


def _check_fleet(args: argparse.Namespace) -> int:
    """Report every fault of the file, and of what its devices ask of the bundles that are on this machine."""
    import json

    from device_runtime.bundle.folder import Bundle
    from device_runtime.bundle.manifest import MANIFEST
    from device_runtime.engine.structured import SchemaCompiler
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet import file as fleet
    from device_runtime.update.slots import resolve

    plan = fleet.load(args.path)
    elsewhere, faults = {}, []
    for device in plan.devices:
        try:
            for name, model in plan.models_of(device).items():
                path = resolve(Path(model.bundle))
                if not (path / MANIFEST).is_file():
                    elsewhere[name] = str(path)
                    continue
                bundle = Bundle.open(path)
                plan.check_model(device, name, bundle.manifest, SchemaCompiler(bundle).check)
        except ConfigurationError as error:
            faults.append(str(error))
    if faults:
        raise ConfigurationError("\n".join(faults))
    counts = {"models": len(plan.models), "devices": len(plan.devices), "links": len(plan.links)}
    served = {name for device in plan.devices.values() for name in device.links}
    unserved = [link.name for link in plan.links if link.name not in served]
    if args.json:
        found = {"file": str(args.path), **counts, "bundles_elsewhere": elsewhere, "links_unserved": unserved}
        print(json.dumps(found))
        return 0
    words = [f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items()]
    print(f"{args.path}: {', '.join(words)}; no faults")
    for name, missing in elsewhere.items():
        print(f"the bundle of {name} is not on this machine ({missing}); what links ask of it was not checked")
    for name in unserved:
        print(f"the link {name} is in the `links` of no device; nobody listens to its readings")
    return 0
