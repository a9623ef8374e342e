"""`stonechat broker init`: keys, access list and configuration of a broker that trusts nobody without a certificate."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import add_json, require_extra, whole_number

__all__ = ["HELP", "add_arguments", "run"]

HELP = "make the keys, the access list and the configuration of a mosquitto broker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat broker init`."""
    parser.add_argument("action", choices=["init"])
    parser.add_argument("folder", metavar="DIR", type=Path, help="made if needed; run again to add to it")
    parser.add_argument(
        "--host", metavar="NAME", action="append", default=[], help="the broker's name or address (repeatable)"
    )
    parser.add_argument("--fleet", metavar="FLEET.yaml", type=Path, help="its devices, and what their links need")
    parser.add_argument("--device", metavar="ID", action="append", default=[], help="a device (repeatable)")
    parser.add_argument("--client", metavar="NAME", action="append", default=[], help="who may ask (repeatable)")
    parser.add_argument(
        "--sensor", metavar="NAME=TOPIC", action="append", default=[], help="who may write there (repeatable)"
    )
    parser.add_argument("--home-assistant", metavar="NAME", action="append", default=[], help="a Home Assistant")
    parser.add_argument(
        "--days", metavar="N", type=whole_number(1), default=825, help="certificates last (default 825)"
    )
    parser.add_argument("--port", metavar="N", type=whole_number(1, 65535), help="default 8883")
    parser.add_argument(
        "--path", metavar="DIR", type=Path, help="where the files will lie on the broker's machine (default: DIR)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Make what is missing; what is there stays."""
    import json

    from device_runtime.errors import ConfigurationError
    from device_runtime.mqtt import fleet
    from device_runtime.mqtt.topics import check_filter, check_id
    from toolkit.broker.access import Access, access_list, configuration, parse_list

    try:
        from toolkit.broker.certificates import Authority
    except ImportError as error:
        raise require_extra("broker", error) from None

    acl = args.folder / "acl"
    access = parse_list(acl.read_text(encoding="utf-8")) if acl.is_file() else Access()
    if args.fleet:
        access.add_fleet(fleet.load(args.fleet))
    for device in args.device:
        access.add(check_id("device", device))
    for name in args.client:
        access.add_client(check_id("client", name))
    for name in args.home_assistant:
        access.add_home_assistant(check_id("client", name))
    for sensor in args.sensor:
        name, equals, topic = sensor.partition("=")
        if not equals:
            raise ConfigurationError(f"--sensor is {sensor!r}; expected NAME=TOPIC, such as boiler=plant/+/boiler.")
        access.add_sensor(check_id("client", name), check_filter(topic))
    for reserved in ("ca", "broker"):
        if reserved in access.rights:
            raise ConfigurationError(f"{reserved!r} is the name of one of the broker's own files; choose another.")
    first = not (args.folder / "broker.crt").is_file()
    if first and not args.host:
        raise ConfigurationError("Say under which name clients reach the broker: --host broker.local (or its address).")
    args.folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(args.folder, args.host[0] if args.host else args.folder.name)
    if args.host and not first:
        (args.folder / "broker.crt").unlink()  # a certificate for other names
    if args.host:
        authority.issue("broker", args.days, args.host)
    issued = [name for name in access.rights if authority.issue(name, args.days)]
    acl.write_text(access_list(access), encoding="utf-8")
    path, config = Path(args.path or args.folder).absolute(), args.folder / "mosquitto.conf"
    if args.path or args.port or not config.is_file():
        config.write_text(configuration(path, args.port or 8883), encoding="utf-8")
    if args.json:
        print(json.dumps({"folder": str(args.folder), "issued": issued, "known": sorted(access.rights)}))
        return 0
    print(f"{args.folder}: certificates for {', '.join(issued) or 'nobody new'}; {len(access.rights)} known in all")
    print(f"start the broker: mosquitto -c {path}/mosquitto.conf")
    print("give each its own NAME.key, NAME.crt and ca.crt; ca.key stays here")
    return 0
