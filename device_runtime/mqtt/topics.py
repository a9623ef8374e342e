"""Topic names: building, parsing and the rule for reply topics.

    stonechat/1/<device>/in/{generate,cancel}/<client>   commands of one client, never retained
    stonechat/1/<device>/in/{generate,cancel}            the same, at brokers that do not know their users
    stonechat/1/<device>/in/records[/<client>]           queries for what is kept of answers
    stonechat/1/<device>/in/correct[/<client>]           right answers in place of wrong ones
    stonechat/1/<device>/in/ota                          updates, never retained
    stonechat/1/<device>/in/ota/piece                    parts of an update
    stonechat/1/<device>/out/{state,info,health,event}   what the device says of itself
    stonechat/1/<device>/out/ota                         how far an update is
    stonechat/1/<device>/out/instance                    which process is the device
    stonechat/1/<device>/out/link/<name>                 what a link has answered last
    stonechat/1/<device>/out/link/<name>/<place>         the same, for one of the topics that it reads
    stonechat/1/<device>/out/reply/<client>/<session>    answers
    stonechat/1/announce                                 asks all devices, or one, to say again that they are there
    stonechat/1/pool/<group>/generate[/<client>]         work that several devices share
    stonechat/1/pool/<group>/reply/<client>/<session>    answers to that work

A subscriber cannot know who has published. So a client's name is part of the topic, where the access list of a broker
vouches for it: NAME alone may write to `…/generate/NAME`.

Ids (devices, groups, clients, sessions) are `[a-z0-9-]`, 1 to 64 characters; `pool` is no device id.
Topic filters follow MQTT 5.0, section 4.7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from device_runtime.errors import ConfigurationError

__all__ = [
    "ANNOUNCE",
    "HOME_ASSISTANT",
    "HOME_ASSISTANT_STATUS",
    "ID",
    "ROOT",
    "DevicePatterns",
    "DeviceTopics",
    "PoolPatterns",
    "PoolTopics",
    "TopicParts",
    "check_filter",
    "check_id",
    "check_topic",
    "home_assistant_config",
    "is_id",
    "matches",
    "parse",
    "unshared",
]

ROOT = "stonechat/1"
ANNOUNCE = f"{ROOT}/announce"
HOME_ASSISTANT = "homeassistant"  # the root of its discovery
HOME_ASSISTANT_STATUS = f"{HOME_ASSISTANT}/status"  # says `online` when Home Assistant has started
MAX_TOPIC_BYTES = 65_535  # MQTT 5.0, section 1.5.4

ID = re.compile(r"[a-z0-9-]{1,64}")
_COMMANDS = frozenset({"generate", "cancel", "ota", "records", "correct"})
_OUTPUTS = frozenset({"state", "info", "health", "event", "ota", "instance"})


def home_assistant_config(device: str) -> str:
    """Where Home Assistant looks for what a device is."""
    return f"{HOME_ASSISTANT}/device/{device}/config"


def is_id(text: str) -> bool:
    """Whether `text` can name a device, a group, a client or a session."""
    return ID.fullmatch(text) is not None


def check_id(what: str, text: str) -> str:
    """`text`, if it can name a `what`.

    Raises:
        ConfigurationError: it cannot.
    """
    if not is_id(text):
        raise ConfigurationError(
            f"{text!r} cannot name a {what}: an id has 1 to 64 characters from a-z, 0-9 and '-'. Choose another."
        )
    if what == "device" and text == "pool":
        raise ConfigurationError("'pool' cannot name a device: stonechat/1/pool/ is where pools live. Choose another.")
    return text


class _Replies:
    """What a device and a pool have in common: a tree of reply topics."""

    @property
    def reply_root(self) -> str:
        """All reply topics lie below this level."""
        raise NotImplementedError

    def reply(self, client: str, session: str) -> str:
        """The topic on which `client` receives the answers of one `session`."""
        return f"{self.reply_root}/{check_id('client', client)}/{check_id('session', session)}"

    def replies(self, client: str) -> str:
        """The filter of everything that `client` receives."""
        return f"{self.reply_root}/{check_id('client', client)}/+"

    def allows_reply(self, topic: str) -> bool:
        """Whether an answer may go to `topic`.

        The device may publish where its clients may not. If it answered wherever a request points, a client could
        write to any topic through it (a "confused deputy"). So answers stay in this tree.
        """
        return self.client_of(topic) is not None

    def client_of(self, topic: str) -> str | None:
        """The client whose reply topic this is; None if it is no reply topic of this tree."""
        root, _, rest = topic.partition(f"{self.reply_root}/")
        client, _, session = rest.partition("/")
        return client if root == "" and is_id(client) and is_id(session) else None


@dataclass(frozen=True)
class DeviceTopics(_Replies):
    """The topics of one device."""

    device: str  # its id

    def __post_init__(self) -> None:
        check_id("device", self.device)

    @property
    def generate(self) -> str:
        """Requests come in here."""
        return f"{ROOT}/{self.device}/in/generate"

    @property
    def cancel(self) -> str:
        """Requests are taken back here."""
        return f"{ROOT}/{self.device}/in/cancel"

    def generate_by(self, client: str) -> str:
        """Requests of one client come in here; `+` is any."""
        return f"{self.generate}/{client}"

    def cancel_by(self, client: str) -> str:
        """The cancel commands of one client; `+` is any."""
        return f"{self.cancel}/{client}"

    @property
    def records(self) -> str:
        """Queries for what the device has kept of its answers come in here."""
        return f"{ROOT}/{self.device}/in/records"

    def records_by(self, client: str) -> str:
        """The queries of one client; `+` is any."""
        return f"{self.records}/{client}"

    @property
    def correct(self) -> str:
        """Corrections of answers come in here."""
        return f"{ROOT}/{self.device}/in/correct"

    def correct_by(self, client: str) -> str:
        """The corrections of one client; `+` is any."""
        return f"{self.correct}/{client}"

    @property
    def ota(self) -> str:
        """Updates are ordered here."""
        return f"{ROOT}/{self.device}/in/ota"

    @property
    def ota_piece(self) -> str:
        """Parts of an update come in here."""
        return f"{ROOT}/{self.device}/in/ota/piece"

    @property
    def ota_report(self) -> str:
        """How far an update is, and what it needs."""
        return f"{ROOT}/{self.device}/out/ota"

    @property
    def state(self) -> str:
        """Retained: what the device is doing, or that it is lost."""
        return f"{ROOT}/{self.device}/out/state"

    @property
    def info(self) -> str:
        """Retained: what the device is and can."""
        return f"{ROOT}/{self.device}/out/info"

    @property
    def health(self) -> str:
        """How the device is, once a minute."""
        return f"{ROOT}/{self.device}/out/health"

    @property
    def instance(self) -> str:
        """Retained: which process is the device, so that a second one is noticed."""
        return f"{ROOT}/{self.device}/out/instance"

    def link(self, name: str, place: str | None = None) -> str:
        """Retained: the last answer of a link, wherever else it went.

        Args:
            place: an id for one of the topics that the link reads; None is whichever came last.
        """
        topic = f"{ROOT}/{self.device}/out/link/{check_id('link', name)}"
        return topic if place is None else f"{topic}/{check_id('place', place)}"

    @property
    def event(self) -> str:
        """What went wrong, for the operator of the fleet."""
        return f"{ROOT}/{self.device}/out/event"

    @property
    def reply_root(self) -> str:
        """All reply topics lie below this level."""
        return f"{ROOT}/{self.device}/out/reply"


@dataclass(frozen=True)
class PoolTopics(_Replies):
    """The topics of a pool: devices that share the same work."""

    group: str  # its id

    def __post_init__(self) -> None:
        check_id("group", self.group)

    @property
    def generate(self) -> str:
        """Requests go in here; the broker hands each to one device."""
        return f"{ROOT}/pool/{self.group}/generate"

    def generate_by(self, client: str) -> str:
        """Requests of one client; `+` is any."""
        return f"{self.generate}/{client}"

    @property
    def shared(self) -> tuple[str, str]:
        """What a device subscribes to (MQTT 5.0, section 4.8.2)."""
        return f"$share/{self.group}/{self.generate}", f"$share/{self.group}/{self.generate_by('+')}"

    @property
    def reply_root(self) -> str:
        """All reply topics lie below this level."""
        return f"{ROOT}/pool/{self.group}/reply"


class DevicePatterns(DeviceTopics):
    """The topics of any device (`+`), or of the device of a user's name (`%u`): for the access list of a broker."""

    def __post_init__(self) -> None:
        pass  # what is in place of an id is the access list's own

    @property
    def inputs(self) -> str:
        """All that a device reads."""
        return f"{ROOT}/{self.device}/in/#"

    @property
    def outputs(self) -> str:
        """All that a device writes."""
        return f"{ROOT}/{self.device}/out/#"

    @property
    def latest_of_links(self) -> str:
        """The last answer of each link, from whichever of its topics that was."""
        return f"{ROOT}/{self.device}/out/link/+"

    @property
    def links(self) -> str:
        """The last answers of all links, and of each topic that they read."""
        return f"{ROOT}/{self.device}/out/link/#"

    def replies(self, client: str) -> str:
        """All answers to a client (`%u`)."""
        return f"{self.reply_root}/{client}/#"


class PoolPatterns(PoolTopics):
    """The topics of any pool (`+`): for the access list of a broker."""

    def __post_init__(self) -> None:
        pass

    def replies(self, client: str) -> str:
        """All answers to a client (`%u`)."""
        return f"{self.reply_root}/{client}/#"


@dataclass(frozen=True)
class TopicParts:
    """A stonechat topic, taken apart."""

    owner: Literal["device", "pool"]
    id: str  # of the device or the pool
    kind: str  # generate, cancel, ota, piece, state, info, health, event, link or reply
    client: str = ""  # of a reply topic, or of a command
    session: str = ""  # of a reply topic
    link: str = ""  # of a link's topic


def parse(topic: str) -> TopicParts | None:
    """Take `topic` apart, or None when it is not one of the topics above."""
    if not topic.startswith(f"{ROOT}/"):
        return None
    match topic.split("/")[2:]:
        case ["pool", group, "generate"] if is_id(group):
            return TopicParts("pool", group, "generate")
        case ["pool", group, "generate", client] if is_id(group) and is_id(client):
            return TopicParts("pool", group, "generate", client)
        case ["pool", group, "reply", client, session] if all(map(is_id, (group, client, session))):
            return TopicParts("pool", group, "reply", client, session)
        case ["pool", *_]:
            return None
        case [device, "in", command] if is_id(device) and command in _COMMANDS:
            return TopicParts("device", device, command)
        case [device, "in", ("generate" | "cancel" | "records" | "correct") as command, client] if is_id(
            device
        ) and is_id(client):
            return TopicParts("device", device, command, client)
        case [device, "in", "ota", "piece"] if is_id(device):
            return TopicParts("device", device, "piece")
        case [device, "out", output] if is_id(device) and output in _OUTPUTS:
            return TopicParts("device", device, output)
        case [device, "out", "link", name, *place] if all(map(is_id, (device, name, *place))) and len(place) < 2:
            return TopicParts("device", device, "link", link=name)
        case [device, "out", "reply", client, session] if all(map(is_id, (device, client, session))):
            return TopicParts("device", device, "reply", client, session)
    return None


def check_topic(topic: str) -> str:
    """`topic`, if something can be published there.

    Raises:
        ConfigurationError: it is empty, too long, or holds a wildcard or a character that MQTT forbids.
    """
    _check_text("topic", topic)
    if "+" in topic or "#" in topic:
        raise ConfigurationError(f"topic {topic!r} holds a wildcard; '+' and '#' belong to filters.")
    return topic


def check_filter(pattern: str) -> str:
    """`pattern`, if it is a topic filter.

    Raises:
        ConfigurationError: '+' or '#' does not stand alone in its level, or '#' is not the last.
    """
    _check_text("topic filter", pattern)
    levels = pattern.split("/")
    for place, level in enumerate(levels):
        if len(level) > 1 and ("+" in level or "#" in level):
            raise ConfigurationError(f"topic filter {pattern!r}: '+' and '#' must stand alone between slashes.")
        if level == "#" and place != len(levels) - 1:
            raise ConfigurationError(f"topic filter {pattern!r}: '#' must be the last level.")
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether a message on `topic` reaches a subscription to the filter `pattern`."""
    want, have = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and want[0] in ("+", "#"):
        return False
    if want[-1] == "#":
        want = want[:-1]
        have = have[: len(want)]
    return len(want) == len(have) and all(w in ("+", h) for w, h in zip(want, have, strict=True))


def unshared(pattern: str) -> str:
    """The filter of a shared subscription, `$share/GROUP/FILTER`; any other filter as it is (MQTT 5.0, 4.8.2)."""
    return pattern.split("/", 2)[2] if pattern.startswith("$share/") else pattern


def _check_text(what: str, text: str) -> None:
    if not text:
        raise ConfigurationError(f"a {what} is empty; it needs at least one character.")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise ConfigurationError(f"{what} {text!r} holds a control character, which brokers refuse.")
    if len(text.encode()) > MAX_TOPIC_BYTES:
        raise ConfigurationError(f"a {what} has {len(text.encode())} bytes; MQTT allows {MAX_TOPIC_BYTES}.")
