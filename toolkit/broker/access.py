"""Who may do what at the broker: mosquitto's access list.

A user's name is that of its certificate, or the one that its password belongs to. A line that begins with `pattern`
holds for every user, with %u in place of the name, so a device reads its own commands and writes its own answers and
nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.topics import (
    HOME_ASSISTANT,
    HOME_ASSISTANT_STATUS,
    DevicePatterns,
    PoolPatterns,
    PoolTopics,
    home_assistant_config,
)

if TYPE_CHECKING:
    from device_runtime.fleet.file import Fleet
    from device_runtime.fleet.links import Link

__all__ = ["Access", "access_list", "parse_list"]

_OWN, _ANY, _ANY_POOL = DevicePatterns("%u"), DevicePatterns("+"), PoolPatterns("+")
_PATTERNS = f"""\
# Every device: subscribe to its commands, publish its state and answers.
pattern read {_OWN.inputs}
pattern write {_OWN.outputs}
pattern write {home_assistant_config(_OWN.device)}
pattern read {HOME_ASSISTANT_STATUS}
# Every client: the answers to its own requests.
pattern read {_ANY.replies("%u")}
pattern read {_ANY_POOL.replies("%u")}
"""
_CLIENT = (
    f"write {_ANY.generate}",
    f"write {_ANY.cancel}",
    f"write {_ANY_POOL.generate}",
    f"read {_ANY.state}",
    f"read {_ANY.info}",
    f"read {_ANY.health}",
    f"read {_ANY.event}",
    f"read {_ANY.link('+')}",
)
_OPERATOR = (
    f"write {_ANY.ota}",
    f"write {_ANY.ota_piece}",
    f"read {_ANY.ota_report}",
    f"read {_ANY.state}",
    f"read {_ANY.info}",
)
_HOME_ASSISTANT = (
    f"readwrite {HOME_ASSISTANT}/#",
    f"read {_ANY.state}",
    f"read {_ANY.health}",
    f"read {_ANY.link('+')}",
)


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
                lines += [f"read {link.source}", f"write {_target(link)}"]
            if device.pool:
                pool = PoolTopics(device.pool)
                lines += [f"read {pool.generate}", f"write {pool.reply_root}/#"]
            self.add(name, lines)


def _target(link: Link) -> str:
    from device_runtime.fleet.links import shape  # jinja2 takes a while to load

    to = shape(link)
    if to is None:
        raise ConfigurationError(
            f"link {link.name!r}: where its answers go cannot be known from {link.to!r}. "
            "Write `to` without other statements than `if`, and with as many levels in each of its branches."
        )
    return to


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
