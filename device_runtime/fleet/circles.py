"""Links whose answers wake each other without end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from paho.mqtt.matcher import MQTTMatcher

from device_runtime.fleet.links import Link, shape

__all__ = ["circles"]

MAX_CIRCLES = 20  # that are described; each is found by a search of its own


def circles(links: Sequence[Link]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each link that its own answers wake again by way of others, whatever the readings.

    Yields:
        The place of the link in `links`, and the names of the links on the way back to it.
    """
    after = _followers(links)
    groups = _strongly_connected(after)
    described = 0
    for start in range(len(links)):
        if groups[start] is None:
            continue
        way = _way_back(start, after, groups)
        if way and described < MAX_CIRCLES:
            described += 1
            yield start, tuple(links[place].name for place in way)


def _followers(links: Sequence[Link]) -> list[list[int]]:
    """For each link the places of those that its answers wake."""
    sources: dict[str, list[int]] = {}
    for place, link in enumerate(links):
        sources.setdefault(link.source, []).append(place)
    table = MQTTMatcher()  # type: ignore[no-untyped-call]
    for source, places in sources.items():
        table[source] = places
    targets = {to: list(_woken(table, to)) for to in {shape(link) for link in links} if to is not None}
    return [targets.get(shape(link) or "", []) for link in links]


def _woken(table: MQTTMatcher, to: str) -> Iterator[int]:
    for places in table.iter_match(to):  # type: ignore[no-untyped-call]
        yield from places


def _strongly_connected(after: Sequence[Sequence[int]]) -> list[int | None]:
    """Tarjan's algorithm (1972), without recursion: the group of each place, None for those in no circle of several."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    group: list[int | None] = [None] * len(after)
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in range(len(after)):
        if root in index:
            continue
        work = [(root, iter(after[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            place, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(after[other])))
                    break
                if other in on_stack:
                    low[place] = min(low[place], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[place])
                if low[place] == index[place]:
                    members: list[int] = []
                    while not members or members[-1] != place:
                        members.append(stack.pop())
                        on_stack.discard(members[-1])
                    if len(members) > 1:
                        for member in members:
                            group[member] = place
    return group


def _way_back(start: int, after: Sequence[Sequence[int]], groups: Sequence[int | None]) -> list[int]:
    """The shortest way from a link back to it, without the link itself."""
    came_from: dict[int, int] = {start: start}
    places = deque([start])
    while places:
        place = places.popleft()
        for other in after[place]:
            if other == start and place != start:
                way = []
                while place != start:
                    way.append(place)
                    place = came_from[place]
                return way[::-1]
            if other not in came_from and groups[other] == groups[start]:
                came_from[other] = place
                places.append(other)
    return []
