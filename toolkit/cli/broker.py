"""`stonechat broker`: keys, passwords, access list and configuration of a broker that lets in only whom it knows."""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json, require_extra, whole_number
from toolkit.cli.output import rows, say, show

if TYPE_CHECKING:
    from toolkit.broker.access import Access
    from toolkit.broker.site import Site

__all__ = ["HELP", "add_arguments", "run"]

HELP = "make the keys, the access list and the configuration of a mosquitto broker"
_DAYS = 825
_MOST_DAYS = 36_500  # a hundred years; with a million the date would be none
_LABEL = r"[a-zA-Z0-9_](?:[a-zA-Z0-9_-]*[a-zA-Z0-9_])?"
_HOST_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `stonechat broker`, and their flags."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, what: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=what, description=what[:1].upper() + what[1:] + ".", allow_abbrev=False)
        added.set_defaults(action=name)
        return added

    _add_init(action("init", "make a broker's folder, or add to it"))
    listing = action("list", "list the broker's users, what each may do, and when certificates expire")
    _add_folder(listing)
    listing.add_argument(
        "--soon", metavar="DAYS", type=whole_number(0), default=30, help="mark what expires within so long (default 30)"
    )
    revoke = action("revoke", "take certificate, password and rights from a user")
    _add_folder(revoke)
    revoke.add_argument("names", metavar="NAME", nargs="+", help="a device, client or sensor")
    renew = action("renew", "make a new certificate, or a new password, in place of the old one")
    _add_folder(renew)
    renew.add_argument("names", metavar="NAME", nargs="*", help="a device, client, sensor, or `broker` itself")
    renew.add_argument(
        "--expiring", metavar="DAYS", type=whole_number(0), help="instead of names: certificates that expire by then"
    )
    _add_days(renew)
    for parser in (listing, revoke, renew):
        add_json(parser)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder that `stonechat broker init` made")


def _add_days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--days",
        metavar="N",
        type=whole_number(1, _MOST_DAYS),
        default=_DAYS,
        help=f"certificates last (default {_DAYS})",
    )


def _host_name(text: str) -> str:
    """An argparse type: how clients reach a machine, as a certificate has it."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        name = text.encode("idna").decode()  # bücher.local is xn--bcher-kva.local there
    except UnicodeError:  # an empty label, or one that is too long
        name = ""
    if not _HOST_NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name or address of a machine; expected such as broker.local or 192.168.1.5, without "
            "mqtt:// and a port"
        )
    return name


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="made if needed; run again to add to it")
    parser.add_argument(
        "--host",
        metavar="NAME",
        type=_host_name,
        action="append",
        default=[],
        help="the broker's name or address (repeatable)",
    )
    parser.add_argument("--fleet", metavar="FLEET.yaml", type=Path, help="its devices, and what their links need")
    parser.add_argument("--device", metavar="ID", action="append", default=[], help="a device (repeatable)")
    parser.add_argument("--client", metavar="NAME", action="append", default=[], help="who may ask (repeatable)")
    parser.add_argument(
        "--sensor", metavar="NAME=TOPIC", action="append", default=[], help="who may write there (repeatable)"
    )
    parser.add_argument(
        "--reader", metavar="NAME=TOPIC", action="append", default=[], help="who may read there (repeatable)"
    )
    parser.add_argument(
        "--operator", metavar="NAME", action="append", default=[], help="who may update devices (repeatable)"
    )
    parser.add_argument(
        "--dashboard", metavar="NAME", action="append", default=[], help="a dashboard: sees all, asks, updates nothing"
    )
    parser.add_argument("--home-assistant", metavar="NAME", action="append", default=[], help="a Home Assistant")
    parser.add_argument(
        "--passwords", action="store_true", help="those named here get passwords, for what has no client certificates"
    )
    parser.add_argument(
        "--certificates", action="store_true", help="they get certificates (the default); with --passwords both"
    )
    _add_days(parser)
    parser.add_argument("--port", metavar="N", type=whole_number(1, 65535), help="default 8883")
    parser.add_argument(
        "--password-port",
        metavar="N",
        type=whole_number(1, 65535),
        help="for passwords, where there are certificates too (default 8884)",
    )
    parser.add_argument(
        "--path", metavar="DIR", type=Path, help="where the files will lie on the broker's machine (default: DIR)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Do what the action says; secrets go to files and nowhere else."""
    try:
        import cryptography  # noqa: F401  # before anything is made
    except ImportError as error:
        raise require_extra("sign", error) from None
    return {"init": _init, "list": _list, "revoke": _revoke, "renew": _renew}[args.action](args)


def _init(args: argparse.Namespace) -> int:
    """Make what is missing; what is there stays."""
    from device_runtime.errors import ConfigurationError
    from toolkit.broker.certificates import SERVER
    from toolkit.broker.site import RESERVED, Site, read_access

    access = read_access(args.folder)
    named = _named(args, access)
    for reserved in RESERVED:
        if reserved in access.rights:
            raise ConfigurationError(f"{reserved!r} is the name of one of the broker's own files; choose another.")
    if not args.host and not (args.folder / "broker.crt").is_file():
        raise ConfigurationError("Say under which name clients reach the broker: --host broker.local (or its address).")
    site = Site(args.folder, args.host[0] if args.host else args.folder.name)
    site.access = access
    if args.host:
        site.authority.issue(SERVER, args.days, args.host)
    asked = args.passwords or args.certificates
    passwords = args.passwords if asked else site.by_password_alone()
    certificates = args.certificates if asked else not passwords
    made = {}
    for name in access.rights:
        if (asked and name in named) or not site.knows(name):
            made[name] = site.give(name, certificate=certificates, password=passwords, days=args.days)
    site.save_access()
    if site.configure(args.path, args.port, args.password_port):
        say(f"mosquitto.conf was rewritten; the previous one is {args.folder}/mosquitto.conf.old")
    return _report_init(args, site, {name: what for name, what in made.items() if what})


def _named(args: argparse.Namespace, access: Access) -> set[str]:
    """Add everyone whom the flags name to the access list; returns their names."""
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet import file as fleet
    from device_runtime.mqtt.topics import check_filter, check_id

    named = {check_id("device", name) for name in args.device}
    for name in args.device:
        access.add_device(name)
    if args.fleet:
        plan = fleet.load(args.fleet)
        access.add_fleet(plan)
        named |= plan.devices.keys()
    for name in args.client:
        access.add_client(check_id("client", name))
    for name in args.operator:
        access.add_operator(check_id("client", name))
    for name in args.dashboard:
        access.add_dashboard(check_id("client", name))
    for name in args.home_assistant:
        access.add_home_assistant(check_id("client", name))
    for flag, texts, add in (
        ("--sensor", args.sensor, access.add_sensor),
        ("--reader", args.reader, access.add_reader),
    ):
        for text in texts:
            name, equals, topic = text.partition("=")
            if not equals:
                raise ConfigurationError(f"{flag} is {text!r}; expected NAME=TOPIC, such as boiler=plant/+/boiler.")
            add(check_id("client", name), check_filter(topic))
            named.add(name)
    return named | {*args.client, *args.operator, *args.dashboard, *args.home_assistant}


def _report_init(args: argparse.Namespace, site: Site, made: dict[str, list[str]]) -> int:
    kinds = {kind: [name for name, what in made.items() if kind in what] for kind in ("certificate", "password")}
    known = sorted(site.access.rights)
    fields = {
        "folder": str(args.folder), "issued": kinds["certificate"], "passwords": kinds["password"], "known": known,
    }  # fmt: skip
    return show(args, fields, _after_init(args.folder, site, kinds, len(known)))


def _after_init(folder: Path, site: Site, kinds: dict[str, list[str]], known: int) -> Iterator[str]:
    parts = [f"{kind}s for {', '.join(names)}" for kind, names in kinds.items() if names]
    yield f"{folder}: {'; '.join(parts) or 'nobody new'}; {known} known in all"
    path = site.path()
    ports = [f"{kind} on port {port}" for kind, port in site.ports().items()]
    yield f"start the broker: mosquitto -c {path}/mosquitto.conf ({', '.join(ports)})"
    yield f"on its machine {path} needs {', '.join(site.broker_files())}"
    if kinds["certificate"]:
        yield "give each its own NAME.key, NAME.crt and ca.crt; ca.key stays here"
    if kinds["password"]:
        yield "give each what its own NAME.password says, and ca.crt; ca.key stays here"


def _list(args: argparse.Namespace) -> int:
    from toolkit.broker.site import Site

    entries = Site(args.folder).entries()
    lines: list[tuple[str, str]] = []
    for entry in entries:
        how = []
        if entry.expires is not None:
            left = entry.days_left or 0
            mark = (
                " (expired)"
                if left < 0
                else f" (in {counted(left, 'day')}: soon)"
                if entry.expires_within(args.soon)
                else ""
            )
            how.append(f"certificate until {entry.expires:%Y-%m-%d}{mark}")
        if entry.password:
            how.append("password")
        lines.append((entry.name, ", ".join(how) or "nothing to get in with"))
        lines += [("", f"  {right}") for right in entry.rights]
    fields = {"folder": str(args.folder), "entries": [entry.fields(args.soon) for entry in entries]}
    return show(args, fields, rows(lines))


def _revoke(args: argparse.Namespace) -> int:
    from device_runtime.errors import ConfigurationError
    from toolkit.broker.certificates import SERVER
    from toolkit.broker.site import Site

    site = Site(args.folder)
    if SERVER in args.names:
        raise ConfigurationError("the broker's own certificate is not revoked but replaced: `stonechat broker renew`.")
    site.check_names(args.names)
    gone = {name: site.revoke(name) for name in args.names}
    if site.configure():  # a folder of an earlier release, whose mosquitto.conf names no list of revoked certificates
        say(f"mosquitto.conf was rewritten; the previous one is {args.folder}/mosquitto.conf.old")
    lines = [f"{name}: took {', '.join(what)}" for name, what in gone.items()]
    there = site.path()
    if there != args.folder.absolute():
        lines.append(f"copy {', '.join(site.broker_files())} to {there} on the broker's machine")
    lines.append("restart mosquitto: a reload keeps the connections that revoked certificates have opened")
    return show(args, {"folder": str(args.folder), "revoked": gone}, lines)


def _renew(args: argparse.Namespace) -> int:
    from device_runtime.errors import ConfigurationError
    from toolkit.broker.certificates import SERVER
    from toolkit.broker.site import Site

    if bool(args.names) == (args.expiring is not None):
        raise ConfigurationError("Say whose: either names, or --expiring DAYS.")
    site = Site(args.folder)
    site.check_names(args.names, besides=[SERVER])
    made = {name: site.renew(name, args.days) for name in args.names}
    if args.expiring is not None:
        for entry in site.entries():
            if entry.expires_within(args.expiring):
                site.authority.renew(entry.name, args.days)
                made[entry.name] = ["certificate"]
    lines = [f"{name}: new {' and '.join(what)}" for name, what in made.items()]
    if not made:
        lines.append(f"no certificate expires within {counted(args.expiring, 'day')}")
    if any("certificate" in what for name, what in made.items() if name != SERVER):
        lines.append("the old certificates stay valid until they expire; `stonechat broker revoke` ends them at once")
    if any("password" in what for what in made.values()):
        lines.append("the old passwords end when mosquitto has the new file `passwords` and reloads (SIGHUP)")
    if SERVER in made:
        lines.append("mosquitto shows the new certificate when it has broker.crt and broker.key and reloads (SIGHUP)")
    return show(args, {"folder": str(args.folder), "renewed": made}, lines)
