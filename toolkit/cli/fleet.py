"""`stonechat fleet`: who is online, with what, which links are left out, and what was answered last."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import one_line
from toolkit.cli import output
from toolkit.cli.broker_access import add_broker_access, broker_access
from toolkit.cli.options import add_json, seconds
from toolkit.cli.output import say, show, table

if TYPE_CHECKING:
    from device_runtime.client.roll_call import DeviceReport
    from device_runtime.fleet.file import Fleet
    from device_runtime.mqtt.address import BrokerAddress

__all__ = ["HELP", "add_arguments", "run"]

HELP = "list the devices of a broker: states, versions, models, pools and last answers"
_SHOWN = 200  # characters of an answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat fleet`."""
    parser.add_argument("--fleet", metavar="FLEET.yaml", type=Path, help="whose broker, and who should be there")
    parser.add_argument("--pool", metavar="GROUP", help="only the devices of this pool")
    parser.add_argument("--wait", metavar="S", type=seconds, help="listen for S seconds; health comes once a minute")
    add_broker_access(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """List them; 0 also when there are none."""
    from device_runtime.client.roll_call import WAIT_S, DeviceReport, roll_call
    from device_runtime.fleet import file as fleet_file

    fleet = fleet_file.load(args.fleet) if args.fleet is not None else None
    broker, name = _broker(args, fleet)
    found = roll_call(broker, client=name, wait_s=args.wait or WAIT_S, whole_wait=args.wait is not None)
    for device in fleet.devices if fleet else ():
        found.setdefault(device, DeviceReport(device))
    rows = [_fields(report, fleet) for report in found.values()]
    if args.pool is not None:
        rows = [row for row in rows if row["pool"] == args.pool]
    if not rows and not args.json:
        whose = f"the pool {args.pool!r} at {broker}" if args.pool else f"the broker at {broker}"
        say(f"no device is known in {whose}; start one with: stonechat serve FLEET.yaml --device ID")
    return show(args, {"devices": rows}, _text(rows) if rows else ())


def _broker(args: argparse.Namespace, fleet: Fleet | None) -> tuple[BrokerAddress, str | None]:
    if fleet is None or args.broker is not None or args.certs is not None or args.name is None:
        if fleet is not None and args.broker is None:
            args.broker = fleet.broker.url
        return broker_access(args)
    return fleet.address_for(args.name, None, args.password_file), args.name


def _fields(report: DeviceReport, fleet: Fleet | None) -> dict[str, Any]:
    """One device, as `--json` has it."""
    info, health = report.info, report.health
    planned = fleet.devices.get(report.device) if fleet else None
    models = list(info.models) if info else list(planned.models) if planned else []
    return {
        "device": report.device,
        "state": report.state.state.value if report.state else "unknown",
        "boot": report.state.boot if report.state else None,
        "version": info.version if info else None,
        "board": info.board if info else None,
        "models": models,
        "bundles": dict(info.bundles) if info and info.bundles else {},
        "not_open": dict(info.not_open) if info and info.not_open else {},
        "links_refused": dict(info.links_refused) if info and info.links_refused else {},
        "pool": info.pool if info and info.pool else planned.pool if planned else None,
        "planned": planned is not None if fleet else None,
        "answers": health.answers if health else None,
        "tps_p50": health.tps_p50 if health else None,
        "links": {
            name: answer.answer if answer.answer is not None else answer.text
            for name, answer in sorted(report.links.items())
        },
    }


def _text(rows: list[dict[str, Any]]) -> Iterator[str]:
    import json

    lines = []
    for row in rows:
        bundles = row["bundles"]
        models = ", ".join(f"{name} ({bundles[name]})" if name in bundles else name for name in row["models"])
        lines.append((row["device"], row["state"], row["version"] or "-", row["pool"] or "-", models or "-"))
    yield from table(lines, ("device", "state", "stonechat", "pool", "models"))
    for row in rows:
        for name, why in row["not_open"].items():
            yield ""
            yield from output.paragraph(f"{row['device']}: {one_line(name)} is not open. {one_line(why)}")
    refused = [(row["device"], link, why) for row in rows for link, why in row["links_refused"].items()]
    if refused:
        yield ""
        yield "links that a device leaves out, and why"
    for device, link, why in refused:
        yield from output.rows([(f"  {device} {one_line(link)}", one_line(why))])
    answers = [(row["device"], link, answer) for row in rows for link, answer in row["links"].items()]
    if answers:
        yield ""
        yield "last answers"
    for device, link, answer in answers:
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        yield from output.rows([(f"  {device} {link}", text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")])
