"""Who may do what at the broker: mosquitto's access list.

A user's name is that of its certificate, or the one that its password belongs to. Rights go by role, user by user, and
nobody has any besides: a sensor that may write its readings may neither pose as a device nor ask one. A device is not
shown who has published a message, so a client's name is part of the topics that it writes to, and the list lets each
client write to those with its own name alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.topics import (
    ANNOUNCE,
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
    from device_runtime.fleet.policies.escalation import Escalation

__all__ = ["Access", "access_list", "is_current", "parse_list"]

VERSION = 2  # 1 had patterns that let every user write the topics of a device of its name
_MARK = f"# stonechat access list, version {VERSION}"
_ANY, _ANY_POOL = DevicePatterns("+"), PoolPatterns("+")
_OPERATOR = (
    f"write {_ANY.ota}",
    f"write {_ANY.ota_piece}",
    f"read {_ANY.ota_report}",
    f"read {_ANY.state}",
    f"read {_ANY.info}",
)


def _corrects(name: str) -> str:
    return f"write {_ANY.correct_by(name)}"


def _reads_records(name: str) -> tuple[str, ...]:
    """What devices have kept of their answers: for those who operate them."""
    return f"write {_ANY.records_by(name)}", f"read {_ANY.replies(name)}"


_HOME_ASSISTANT = (
    f"readwrite {HOME_ASSISTANT}/#",
    f"read {_ANY.state}",
    f"read {_ANY.health}",
    f"read {_ANY.links}",
)
# What version 1 gave to clients, and to Home Assistant, in other words.
_OLD_CLIENT = (f"write {_ANY.generate}", f"write {_ANY.cancel}", f"write {_ANY_POOL.generate}")
_OLD_LINKS = "read stonechat/1/+/out/link/+"


def _device(name: str) -> tuple[str, ...]:
    own = DevicePatterns(name)
    return (
        f"read {own.inputs}",
        f"write {own.outputs}",
        f"read {own.instance}",
        f"write {home_assistant_config(name)}",
        f"read {HOME_ASSISTANT_STATUS}",
        f"read {ANNOUNCE}",
    )


def _client(name: str) -> tuple[str, ...]:
    return (
        f"write {_ANY.generate_by(name)}",
        f"write {_ANY.cancel_by(name)}",
        f"write {_ANY_POOL.generate_by(name)}",
        f"read {_ANY.replies(name)}",
        f"read {_ANY_POOL.replies(name)}",
        f"read {_ANY.state}",
        f"read {_ANY.info}",
        f"read {_ANY.health}",
        f"read {_ANY.event}",
        f"read {_ANY.links}",
        f"write {ANNOUNCE}",
    )


@dataclass
class Access:
    """The users that the broker knows, and what each may do."""

    rights: dict[str, list[str]] = field(default_factory=dict)  # name -> lines such as `read plant/+/air`

    def add(self, name: str, lines: Iterable[str] = ()) -> None:
        """Know this user, with these rights."""
        known = self.rights.setdefault(name, [])
        known += [line for line in dict.fromkeys(lines) if line not in known]

    def add_device(self, name: str) -> None:
        """A device: it reads its commands, and writes its state and its answers."""
        self.add(name, _device(name))

    def add_client(self, name: str) -> None:
        """A user who asks devices."""
        self.add(name, _client(name))

    def add_dashboard(self, name: str) -> None:
        """The page: it asks devices as a client does, corrects answers, and sees how far updates are. It can order
        none."""
        self.add(name, [*_client(name), f"read {_ANY.ota_report}", _corrects(name)])

    def add_operator(self, name: str) -> None:
        """A user who updates devices over the air, and does not ask them."""
        self.add(name, (*_OPERATOR, *_reads_records(name), _corrects(name), f"write {ANNOUNCE}"))

    def add_home_assistant(self, name: str) -> None:
        """Home Assistant, which finds devices and reads what they publish."""
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
            self.add_device(name)
            lines = []
            served = [links[link] for link in device.links]
            for link in served:
                lines += [f"read {link.source}", f"write {_target(link)}"]
            for policy in (device.escalate, *(link.escalate for link in served)):
                lines += _asks(name, policy) if policy is not None else []
            if device.pool:
                pool = PoolTopics(device.pool)
                lines += [f"read {pool.generate}", f"read {pool.generate_by('+')}", f"write {pool.reply_root}/#"]
            self.add(name, lines)


def _asks(name: str, policy: Escalation) -> list[str]:
    """A device that passes questions on is a client of one other device, or of one pool."""
    to = policy.to
    if to.device is not None:
        other = DevicePatterns(to.device)
        rights = [f"write {other.generate_by(name)}", f"write {other.cancel_by(name)}"]
        return [*rights, f"read {other.replies(name)}", f"read {other.state}", f"write {ANNOUNCE}"]
    if to.pool is None:
        return []
    pool = PoolPatterns(to.pool)
    rights = [f"write {pool.generate_by(name)}", f"write {_ANY.cancel_by(name)}"]
    return [*rights, f"read {pool.replies(name)}", f"read {_ANY.state}"]


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
    blocks = [f"{_MARK}; made by `stonechat broker init`\n"]
    for name, lines in sorted(access.rights.items()):
        blocks.append("\n".join([f"user {name}", *(f"topic {line}" for line in lines), ""]))
    return "\n".join(blocks)


def is_current(text: str) -> bool:
    """Whether an access list gives rights by role; one of an earlier stonechat lets every user pose as a device."""
    return text.startswith(_MARK)


def parse_list(text: str) -> Access:
    """What an access list of ours says, so that later calls add to it. One of version 1 is brought to this version."""
    access, name = Access(), ""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            name = rest
            access.add(name)
        elif word == "topic" and name:
            access.add(name, [rest])
    return access if is_current(text) else _renewed(access)


def _renewed(old: Access) -> Access:
    """The same users with the rights of their roles.

    Version 1 did not say who is a device: it gave all users the rights of one. A device is a user with no lines of its
    own, with a pool, or with links, which both read and write; a sensor only writes, and a reader only reads.
    """
    new = Access()
    for name, lines in old.rights.items():
        kinds = {line.partition(" ")[0] for line in lines}
        if set(_OLD_CLIENT) <= set(lines):
            new.add_client(name)
            lines = [line for line in lines if line not in (*_OLD_CLIENT, _OLD_LINKS)]
        elif f"readwrite {HOME_ASSISTANT}/#" in lines:
            new.add_home_assistant(name)
            lines = [line for line in lines if line != _OLD_LINKS]
        elif not lines or ({"read", "write"} <= kinds and not set(_OPERATOR) <= set(lines)):
            new.add_device(name)
            for line in [line for line in lines if line.startswith("read stonechat/1/pool/")]:
                new.add(name, [f"{line}/+"])
        new.add(name, lines)
    return new
