"""lwIP for a firmware that is on MQTT by itself: where its sources lie, and which of its files are compiled.

lwIP 2.1 (BSD-3-Clause; Adam Dunkels and others) is Debian's source package `lwip`; its binary packages are for a host.
`scripts/setup_lwip.sh` fetches it with apt into build/lwip.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import BackendMissingError, ConfigurationError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import check_id

__all__ = ["Network", "find_lwip", "lwip_sources", "network_of"]

VARIABLE = "STONECHAT_LWIP"
_DEFAULT = Path("build") / "lwip"
_CORE = "altcp altcp_alloc altcp_tcp def inet_chksum init ip mem memp netif pbuf stats tcp tcp_in tcp_out timeouts udp"
_IPV4 = "acd dhcp etharp icmp ip4 ip4_addr ip4_frag"
_FILES = (
    *(f"core/{name}.c" for name in _CORE.split()),
    *(f"core/ipv4/{name}.c" for name in _IPV4.split()),
    "netif/ethernet.c",
    "apps/mqtt/mqtt.c",
)
_ONLY_IN_LATER = ("core/ipv4/acd.c",)  # address conflict detection is a file of its own from 2.2 on


@dataclass(frozen=True)
class Network:
    """How a board is on MQTT by itself."""

    lwip: Path  # its sources, the folder with `src`
    device: str  # its id in the fleet
    address: str  # of the broker, IPv4
    port: int
    user: str | None = None
    password: str | None = None


def network_of(url: str, device: str, lwip: Path | None, password: str | None) -> Network:
    """Where a board is to connect to.

    Raises:
        ConfigurationError: it cannot: a name in place of an address, TLS, a user without a password.
        BackendMissingError: lwIP's sources are not here.
    """
    check_id("device", device)
    broker = BrokerAddress.from_url(url, password=password)
    if broker.tls or not url.startswith("mqtt://"):
        raise ConfigurationError(
            f"{url}: a board by itself speaks MQTT without TLS and without WebSockets; give mqtt://ADDRESS:PORT of a "
            "listener that only boards can reach, or put `stonechat bridge` between."
        )
    parts = broker.host.split(".")
    if len(parts) != 4 or not all(part.isdigit() and int(part) < 256 for part in parts):
        raise ConfigurationError(f"{url}: a board looks up no names; give the broker's IPv4 address in place of it.")
    if (broker.user is None) != (password is None):
        raise ConfigurationError(f"{url}: a user and a password belong together; give both or neither.")
    return Network(find_lwip(lwip), device, broker.host, broker.port, broker.user, password)


def find_lwip(folder: Path | None = None) -> Path:
    """lwIP's sources: `folder`, what STONECHAT_LWIP names, or build/lwip.

    Raises:
        BackendMissingError: they are not there.
    """
    found = folder or Path(os.environ.get(VARIABLE, str(_DEFAULT)))
    if not (found / "src" / "apps" / "mqtt" / "mqtt.c").is_file():
        raise BackendMissingError(
            f"lwIP's sources are not in {found}; fetch them with scripts/setup_lwip.sh, or with `apt-get source lwip`, "
            f"and name the folder that has `src` in it with --lwip or {VARIABLE}."
        )
    return found


def lwip_sources(folder: Path) -> list[Path]:
    """What a firmware compiles of lwIP."""
    return [folder / "src" / name for name in _FILES if name not in _ONLY_IN_LATER or (folder / "src" / name).is_file()]
