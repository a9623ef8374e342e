"""What belongs to the site: the addresses and names to which readings may go without a permission.

A name alone proves nothing, so it is looked at twice: when a fleet file is read, by its ending, and at each connection,
by the addresses that it has then. A connection goes to an address that was looked at, not to the name again.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Sequence

from device_runtime.errors import OffSiteError, UnreachableError

__all__ = ["connect", "is_local_address", "is_local_name"]

_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",  # RFC 1918, RFC 3927
        "::1/128", "fc00::/7", "fe80::/10",  # RFC 4193, RFC 4291
    )
)  # fmt: skip
# RFC 6762, RFC 8375, RFC 6761, ICANN's resolution 2024.07.29.06, and what routers call their network
_ENDINGS = ("local", "home.arpa", "localhost", "internal", "lan", "home", "localdomain", "intranet")


def is_local_address(address: str) -> bool:
    """Whether an IP address is one of this machine, of a private network or of the link."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found.version == network.version and found in network for network in _NETWORKS)


def is_local_name(host: str) -> bool:
    """Whether a host is on the site as far as it can be seen without asking for its address: an address of the site, a
    name without a dot, or one that ends as names of local networks do."""
    host = host.strip("[]").rstrip(".").lower()
    if not host:
        return False
    if ":" in host or host.replace(".", "").isdigit():
        return is_local_address(host)
    return "." not in host or any(host.endswith(f".{ending}") for ending in _ENDINGS)


def connect(host: str, port: int, end_s: float, *, off_site: bool) -> socket.socket:
    """Connect to one of a host's addresses.

    Args:
        end_s: when to give up, on the monotonic clock.
        off_site: whether an address outside of the site will do.

    Raises:
        OffSiteError: the host has only addresses outside of the site.
        UnreachableError: there is no such host, or it does not answer.
    """
    addresses = _addresses(host, port)
    allowed = [found for found in addresses if off_site or is_local_address(found[1][0])]
    if not allowed:
        shown = ", ".join(dict.fromkeys(found[1][0] for found in addresses))
        raise OffSiteError(
            f"{host} has the address {shown}, outside of this site; `allow: off-site` would permit it, over https."
        )
    reason = ""
    for family, address in allowed:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            reason = "there was no time left"
            break
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.settimeout(left_s)
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            made.close()
            reason = error.strerror or str(error)
        else:
            return made
    raise UnreachableError(f"{host}:{port} cannot be reached: {reason}.")


def _addresses(host: str, port: int) -> Sequence[tuple[int, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnreachableError(f"{host} has no address: {error.strerror}.") from None
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]
