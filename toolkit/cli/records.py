"""`stonechat records`: what the devices of a fleet have kept of their answers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from device_runtime.records.printable import counted
from toolkit.cli.broker_access import add_broker_access, broker_access
from toolkit.cli.options import add_json, seconds

__all__ = ["HELP", "add_arguments", "run"]

HELP = "gather what devices have kept of their answers, over MQTT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat records`."""
    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path)
    parser.add_argument("--device", metavar="ID", action="append", help="(default: all that keep some)")
    parser.add_argument("--examples", action="store_true", help="examples for `stonechat task harvest`, not records")
    parser.add_argument("-o", "--output", metavar="FILE.jsonl", type=Path, help="(default: print them)")
    parser.add_argument("--timeout", metavar="S", type=seconds, default=10.0, help="for each page (default 10)")
    add_broker_access(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask each device, and write what comes; 3 if one does not answer."""
    from device_runtime.bundle.work_place import whole_file
    from device_runtime.client.records import kept_records
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet.file import load
    from toolkit.cli.output import print_json, say

    fleet = load(args.fleet)
    devices = args.device or [
        name for name in fleet.devices if args.examples or (fleet.devices[name].records is not None)
    ]
    if unknown := [name for name in devices if name not in fleet.devices]:
        raise ConfigurationError(f"{args.fleet} has no device {unknown[0]!r}; it has {', '.join(fleet.devices)}.")
    if not devices:
        raise ConfigurationError(f"No device of {args.fleet} keeps records; give one `records: {{keep: 1000}}`.")
    if args.output is not None and args.output.exists():
        raise ConfigurationError(f"{args.output} is there already; name another file, or remove it first.")
    if args.broker is None:
        args.broker = fleet.broker.url
    broker, name = broker_access(args)
    kind: Literal["answers", "examples"] = "examples" if args.examples else "answers"
    asking = partial(kept_records, broker, kind=kind, client=name, timeout_s=args.timeout)
    if args.output is None:
        found, silent = _gathered(devices, asking)
        if args.json:
            print_json({"records": found, "silent": silent})
        else:
            for entry in found:
                print_json(entry)
        return 3 if silent else 0
    with whole_file(args.output) as write:  # before anybody is asked: a folder that takes no file is known at once
        found, silent = _gathered(devices, asking)
        for entry in found:
            write(json.dumps(entry, ensure_ascii=False) + "\n")
    noun = "example" if args.examples else "record"
    answered = counted(len(devices) - len(silent), "device")
    if found:
        say(f"{args.output}: {counted(len(found), noun)} of {answered}")
    else:
        say(f"{args.output} was not written: {answered} answered, with no {noun}")
    if found and silent:
        say(f"not in it: {', '.join(silent)}; ask again with --device, into another file")
    if args.json:
        print_json({"file": str(args.output) if found else None, "records": len(found), "silent": silent})
    return 3 if silent else 0


def _gathered(
    devices: Iterable[str], asking: Callable[[str], Iterable[Mapping[str, Any]]]
) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
    """What devices have kept, each entry with its device; and those that do not answer, with why."""
    from device_runtime.errors import UnreachableError
    from toolkit.cli.output import say

    found: list[Mapping[str, Any]] = []
    silent: dict[str, str] = {}
    for device in devices:
        try:
            own = list(asking(device))
        except UnreachableError as error:
            silent[device] = str(error)
            say(f"{device}: {error}")
            continue
        found.extend({**entry, "device": device} for entry in own)
    return found, silent
