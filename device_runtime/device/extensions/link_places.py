"""The topics that the links of a device have answered, and what has been published about each: kept on the disk.

A link from `building/+/co2` answers for many rooms. Each is a place of its own, with a retained topic and, in Home
Assistant, entities of its own. What a link that was removed or renamed has left at the broker is known from here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device_runtime.fleet.links import Link
from device_runtime.machine.path_errors import why_unreadable
from device_runtime.mqtt.topics import matches
from device_runtime.update import durable

__all__ = ["LinkPlaces", "place_of", "varies"]

FILE = "links.json"  # in the state folder
MAX_PLACES = 256  # of a device; topics beyond them have the topic of their link alone

log = logging.getLogger("stonechat.serve")


def varies(link: Link) -> bool:
    """Whether a link reads more than one topic."""
    return any(sign in link.source for sign in "+#")


def place_of(link: Link, topic: str) -> tuple[str, str]:
    """An id for one of the topics that a link reads, and a name for people: what the wildcards stand for there."""
    levels, pattern = topic.split("/"), link.source.split("/")
    parts = [level for level, sign in zip(levels, pattern, strict=False) if sign == "+"]
    if pattern[-1] == "#":
        parts += levels[len(pattern) - 1 :]
    words = re.sub("[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:48]
    return f"{words or 'place'}-{hashlib.sha256(topic.encode()).hexdigest()[:8]}", " ".join(parts)


class LinkPlaces:
    """May be used from any thread."""

    def __init__(self, links: Sequence[Link], state_dir: Path) -> None:
        """Read what is kept; what it has of links that are not among `links` any more is `left_behind`."""
        self._path = state_dir / FILE
        self._lock = threading.Lock()
        self._links = {link.name: link for link in links}
        kept = _read(self._path)
        self._answered: set[str] = set(kept.answered)  # links that have published on their own topic
        self._topics: dict[str, dict[str, str]] = {}  # link -> place -> topic
        self.components: dict[str, str] = dict(kept.components)  # that Home Assistant knows: key -> platform
        self.left_behind: list[tuple[str, str | None]] = []  # links, and their places, that are no more
        for name, places in kept.topics.items():
            link = self._links.get(name)
            for place, topic in places.items():
                if (
                    link is not None
                    and varies(link)
                    and place_of(link, topic)[0] == place
                    and matches(link.source, topic)
                ):
                    self._topics.setdefault(name, {})[place] = topic
                else:
                    self.left_behind.append((name, place))
        self.left_behind += [(name, None) for name in self._answered if name not in self._links]
        self._answered &= self._links.keys()

    def note(self, link: Link, topic: str) -> str | None:
        """A link has answered a reading on `topic`: returns its place; None if it has none."""
        with self._lock:
            changed = link.name not in self._answered
            self._answered.add(link.name)
            place = None
            if varies(link):
                found, _ = place_of(link, topic)
                known = self._topics.setdefault(link.name, {})
                if found in known:
                    place = found
                elif sum(map(len, self._topics.values())) < MAX_PLACES:
                    known[found] = topic
                    place, changed = found, True
            if changed:
                self._save()
            return place

    def places(self) -> Mapping[str, Mapping[str, str]]:
        """The topics that were answered: by link, and by place."""
        with self._lock:
            return {name: dict(places) for name, places in self._topics.items()}

    def described(self, components: Mapping[str, str]) -> None:
        """Home Assistant knows these components now, and no others."""
        with self._lock:
            if self.components != components or self.left_behind:
                self.components, self.left_behind = dict(components), []
                self._save()

    def _save(self) -> None:
        content = {
            "answered": sorted({*self._answered, *(name for name, place in self.left_behind if place is None)}),
            "topics": self._topics,
            "components": self.components,
        }
        try:
            durable.replace_file(self._path, json.dumps(content, ensure_ascii=False).encode())
        except OSError as error:  # Home Assistant may show what is no more, after a restart
            log.warning("%s cannot be written: %s", self._path, error.strerror)


@dataclass(frozen=True)
class _Kept:
    """What the file holds."""

    answered: tuple[str, ...] = ()
    topics: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    components: Mapping[str, str] = field(default_factory=dict)


def _read(path: Path) -> _Kept:
    """The file; an empty record if there is none, or a damaged one, which is logged."""
    try:
        found = json.loads(path.read_bytes())
        topics = {str(name): {str(p): str(t) for p, t in places.items()} for name, places in found["topics"].items()}
        components = {str(key): str(platform) for key, platform in found["components"].items()}
        return _Kept(tuple(map(str, found["answered"])), topics, components)
    except FileNotFoundError:
        return _Kept()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning(
            "%s cannot be read: %s; what links of before have left at the broker may stay there",
            path,
            why_unreadable(error),
        )
        return _Kept()
