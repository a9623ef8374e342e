"""Who may do what at a broker: the rights that a fleet file gives, and their list for mosquitto."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.fleet.file import Broker, Device, Fleet, ModelEntry
from device_runtime.fleet.links import Link
from toolkit.broker.access import Access, access_list, parse_list


def one_link(to: str) -> Fleet:
    link = Link("a", "plant/+", "Say what to do.", to)
    return Fleet(Broker(), {"m": ModelEntry(Path("b"))}, {"pi": Device(("m",), ("a",))}, (link,))


@pytest.mark.parametrize(
    "template, filter_",
    [
        ("plant/advice", "plant/advice"),
        ("plant/{{ topic[1] }}/advice", "plant/+/advice"),
        ("plant/x-{{ topic[1] }}/advice", "plant/+/advice"),
        ("plant/{# the boiler's #}advice", "plant/advice"),
        ("{% if a %}x{% else %}y{% endif %}/b", "+/b"),
        ("p/{% if a %}x/1{% elif b %}y/1{% else %}{{ c }}/2{% endif %}", "p/+/+"),
    ],
)
def test_a_links_target_becomes_a_filter(template: str, filter_: str) -> None:
    access, without_links = Access(), Access()
    access.add_fleet(one_link(template))
    without_links.add_device("pi")
    assert access.rights == {"pi": [*without_links.rights["pi"], "read plant/+", f"write {filter_}"]}


@pytest.mark.parametrize(
    "template", ["{% for x in a %}{{ x }}{% endfor %}/b", "p/{% if a %}x/1{% endif %}", "{% set a = 1 %}p/{{ a }}"]
)
def test_a_link_whose_target_is_unknown_gets_no_right(template: str) -> None:
    with pytest.raises(ConfigurationError, match="link 'a': where its answers go cannot be known"):
        Access().add_fleet(one_link(template))


def test_an_access_list_comes_back_as_it_was() -> None:
    access = Access()
    access.add_client("phone")
    access.add("silent")
    access.add_sensor("probe", "a/+/b")
    assert parse_list(access_list(access)) == access
