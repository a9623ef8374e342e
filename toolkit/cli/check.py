"""`stonechat check`: find the faults of a fleet file before a device does."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json

__all__ = ["HELP", "add_arguments", "run"]

HELP = "check a fleet file without connecting to anything"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat check`."""
    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Report every fault of the file, and of what its devices ask of the bundles that are on this machine."""
    import json

    from device_runtime.bundle import MANIFEST, Bundle
    from device_runtime.errors import ConfigurationError
    from device_runtime.mqtt import fleet
    from device_runtime.structured import SchemaCompiler
    from device_runtime.update.slots import resolve

    plan = fleet.load(args.fleet)
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
    if args.json:
        print(json.dumps({"file": str(args.fleet), **counts, "bundles_elsewhere": elsewhere}))
        return 0
    words = [f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items()]
    print(f"{args.fleet}: {', '.join(words)}; no faults")
    for name, missing in elsewhere.items():
        print(f"the bundle of {name} is not on this machine ({missing}); what links ask of it was not checked")
    return 0
