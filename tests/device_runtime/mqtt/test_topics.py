"""Topic names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.topics import (
    DeviceTopics,
    PoolTopics,
    TopicParts,
    check_filter,
    check_topic,
    is_id,
    matches,
    parse,
)

IDS = st.text("abcxyz0189-", min_size=1, max_size=64).filter(lambda name: name != "pool")
LEVELS = st.lists(st.sampled_from(["a", "b", "", "$x", "+", "#"]), min_size=1, max_size=5).map("/".join)


@given(IDS, IDS, IDS)
def test_what_is_built_can_be_parsed(device, client, session):
    t, p = DeviceTopics(device), PoolTopics(device)
    assert parse(t.reply(client, session)) == TopicParts("device", device, "reply", client, session)
    assert parse(p.reply(client, session)) == TopicParts("pool", device, "reply", client, session)
    assert [parse(topic).kind for topic in (t.generate, t.cancel, t.state, t.info, t.event, p.generate)] == [
        "generate", "cancel", "state", "info", "event", "generate"
    ]  # fmt: skip
    assert parse(t.health).kind == "health"
    assert parse(t.link(client)) == TopicParts("device", device, "link", link=client)
    assert t.allows_reply(t.reply(client, session))
    assert not t.allows_reply(p.reply(client, session))


@given(st.text(max_size=40) | LEVELS.map(lambda rest: f"stonechat/1/{rest}"))
def test_any_text_is_parsed_or_not_without_an_error(topic):
    parts = parse(topic)
    if parts and parts.kind == "reply":
        tree = DeviceTopics(parts.id) if parts.owner == "device" else PoolTopics(parts.id)
        assert tree.allows_reply(topic)


@given(st.text(max_size=30))
def test_a_reply_topic_is_allowed_only_where_it_parses_as_one(rest):
    t = DeviceTopics("d")
    topic = f"stonechat/1/d/out/reply/{rest}"
    parts = parse(topic)
    assert t.allows_reply(topic) == (parts is not None and parts.kind == "reply")


@pytest.mark.parametrize("bad", ["", "A", "a b", "ä", "a/b", "a\n", "+", "#", "x" * 65, "a_b"])
def test_an_id_of_other_characters_is_refused(bad):
    assert not is_id(bad)
    with pytest.raises(ConfigurationError, match="cannot name a device"):
        DeviceTopics(bad)


def test_pool_is_no_device():
    with pytest.raises(ConfigurationError, match="'pool' cannot name a device"):
        DeviceTopics("pool")
    assert parse("stonechat/1/pool/in/generate") == TopicParts("pool", "in", "generate")
    assert parse("stonechat/1/pool/out/state") is None


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/b", "a/b", True), ("a/+", "a/b", True), ("a/+", "a", False), ("a/#", "a", True), ("a/#", "a/b/c", True),
        ("+/+", "/a", True), ("+", "/a", False), ("#", "$SYS/x", False), ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/+/c", "a//c", True), ("a/b/#", "a", False),
    ],
)  # fmt: skip
def test_filters_match_as_the_specification_says(pattern, topic, expected):
    assert matches(pattern, topic) is expected


@given(LEVELS, LEVELS)
def test_filters_match_as_paho_says(pattern, topic):
    from paho.mqtt.client import topic_matches_sub

    try:
        check_filter(pattern), check_topic(topic)
    except ConfigurationError:
        return
    assert matches(pattern, topic) == topic_matches_sub(pattern, topic)
