"""Who may do what at the broker: mosquitto's access list.

A user's name is that of its certificate, or the one that its password belongs to. A line that begins with `pattern`
holds for every user, with %u in place of the name, so a device reads its own commands and writes its own answers and
nobody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_runtime.fleet.file import Fleet

__all__ = ["Access", "access_list", "parse_list", "target"]

_PATTERNS = """\
# Every device: its commands in, its word out.
pattern read stonechat/1/%u/in/#
pattern write stonechat/1/%u/out/#
pattern write homeassistant/device/%u/config
pattern read homeassistant/status
# Every client: the answers to its own requests.
pattern read stonechat/1/+/out/reply/%u/#
pattern read stonechat/1/pool/+/reply/%u/#
"""
_CLIENT = (
    "write stonechat/1/+/in/generate",
    "write stonechat/1/+/in/cancel",
    "write stonechat/1/pool/+/generate",
    "read stonechat/1/+/out/state",
    "read stonechat/1/+/out/info",
    "read stonechat/1/+/out/health",
    "read stonechat/1/+/out/event",
    "read stonechat/1/+/out/link/+",
)
_OPERATOR = (
    "write stonechat/1/+/in/ota",
    "write stonechat/1/+/in/ota/piece",
    "read stonechat/1/+/out/ota",
    "read stonechat/1/+/out/state",
    "read stonechat/1/+/out/info",
)
_HOME_ASSISTANT = (
    "readwrite homeassistant/#",
    "read stonechat/1/+/out/state",
    "read stonechat/1/+/out/health",
    "read stonechat/1/+/out/link/+",
)
_TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)


@dataclass
class Access:
    """Whom the broker knows, and what they may do beyond what everyone may."""

    rights: dict[str, list[str]] = field(default_factory=dict)  # name -> lines such as `read plant/+/air`

    def add(self, name: str, lines: Iterable[str] = ()) -> None:
        """Know this user, with these rights."""
        known = self.rights.setdefault(name, [])
        known += [line for line in dict.fromkeys(lines) if line not in known]

    def add_client(self, name: str) -> None:
        """Somebody who asks devices."""
        self.add(name, _CLIENT)

    def add_operator(self, name: str) -> None:
        """Somebody who updates devices over the air, and does not ask them."""
        self.add(name, _OPERATOR)

    def add_home_assistant(self, name: str) -> None:
        """Home Assistant, which finds devices and reads what they say."""
        self.add(name, _HOME_ASSISTANT)

    def add_sensor(self, name: str, topic: str) -> None:
        """Something that writes readings to one topic or filter."""
        self.add(name, [f"write {topic}"])

    def add_reader(self, name: str, topic: str) -> None:
        """Something that reads one topic or filter, such as a flow that passes readings on."""
        self.add(name, [f"read {topic}"])

    def add_fleet(self, fleet: Fleet) -> None:
        """All devices of a fleet file: what their links read and write, and their pools."""
        links = {link.name: link for link in fleet.links}
        for name, device in fleet.devices.items():
            lines = []
            for link in (links[link] for link in device.links):
                lines += [f"read {link.source}", f"write {target(link.to)}"]
            if device.pool:
                lines += [
                    f"read stonechat/1/pool/{device.pool}/generate",
                    f"write stonechat/1/pool/{device.pool}/reply/#",
                ]
            self.add(name, lines)


def target(template: str) -> str:
    """The filter of all topics that a link's `to` can become: a level with something to fill in is `+`."""
    filled = _TEMPLATE.sub("\0", template)
    return "/".join("+" if "\0" in level else level for level in filled.split("/"))


def access_list(access: Access) -> str:
    """For mosquitto's `acl_file`."""
    blocks = [_PATTERNS]
    for name, lines in sorted(access.rights.items()):
        blocks.append("\n".join([f"user {name}", *(f"topic {line}" for line in lines), ""]))
    return "\n".join(blocks)


def parse_list(text: str) -> Access:
    """What an access list of ours says, so that later calls add to it."""
    access, name = Access(), ""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            name = rest
            access.add(name)
        elif word == "topic" and name:
            access.add(name, [rest])
    return access
