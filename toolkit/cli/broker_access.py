"""Flags of the commands that talk to a broker as a client: which broker, and who one is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_runtime.mqtt.address import BrokerAddress

__all__ = ["add_broker_access", "broker_access"]

DEFAULT_BROKER = "mqtt://localhost:1883"


def add_broker_access(parser: argparse._ActionsContainer) -> None:
    """--broker, --as, --password-file and --certs"""
    parser.add_argument("--broker", metavar="URL", help=f"mqtt://[user@]host[:port] (default {DEFAULT_BROKER})")
    parser.add_argument(
        "--as", metavar="NAME", dest="name", help="who asks, as the broker knows it (default: the user)"
    )
    parser.add_argument("--password-file", metavar="FILE", type=Path, help="the user's password at the broker")
    parser.add_argument("--certs", metavar="DIR", type=Path, help="ca.crt, and NAME.crt and NAME.key of --as NAME")


def broker_access(args: argparse.Namespace) -> tuple[BrokerAddress, str | None]:
    """The broker, and the client's name there.

    Raises:
        ConfigurationError: the address, the name, the password or the certificates cannot be used.
    """
    from device_runtime.errors import ConfigurationError
    from device_runtime.mqtt.address import BrokerAddress, Certificates, read_password
    from device_runtime.mqtt.topics import check_id, is_id

    url = args.broker or DEFAULT_BROKER
    name = check_id("client", args.name) if args.name is not None else None
    known_as = name or BrokerAddress.from_url(url).user
    if args.certs is not None and known_as is None:
        raise ConfigurationError("--certs needs --as NAME, which says whose certificate it is.")
    password, certificates = read_password(args.password_file, known_as), None
    if args.certs is not None and known_as is not None:
        certificates = Certificates.of(args.certs, known_as, password=password is not None)
    broker = BrokerAddress.from_url(url, password=password, certificates=certificates, user=name)
    if name is None and broker.user is not None and is_id(broker.user):
        name = broker.user
    return broker, name
