"""What an update over the air says, and that nothing else is taken for it."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.mqtt.ota_messages import MAX_PIECE_BYTES, Chunk, ChunkRequest, Order, Phase, Report, parse_report
from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES, MessageError

SHA = "0f" * 32
IDS = st.text("abc09-", min_size=1, max_size=64)
FILES = st.sampled_from(["model.tflite", "manifest.json", "manifest.sig", "prefix.npz"])
SIZES = st.integers(0, 2**40)


@given(
    st.builds(
        Order,
        IDS,
        IDS,
        st.just(SHA),
        st.sampled_from([None, "https://host/bundles/a", "http://[::1]:80/"]),
        st.none() | st.floats(1e-6, 1e6),
        st.none() | st.floats(1, 1e6),
        st.none() | st.floats(1, 1e4),
    )
)
def test_an_order_survives_its_journey(order):
    assert Order.from_json(order.to_json()) == order


@given(
    st.builds(Report, IDS, st.sampled_from(Phase), IDS, st.none() | st.text(max_size=9), SIZES, SIZES)
    | st.builds(ChunkRequest, IDS, FILES, SIZES, st.integers(1, 2**40))
)
def test_reports_and_needs_survive_their_journey(said):
    assert parse_report(said.to_json()) == said


@given(IDS, FILES, st.integers(0, 2**39), st.binary(max_size=99))
def test_a_piece_survives_its_journey_whatever_its_bytes(session, file, offset, data):
    piece = Chunk(session, file, offset, offset + len(data), data)
    assert Chunk.from_payload(piece.to_payload()) == piece


def test_the_largest_piece_is_small_enough_to_be_read():
    piece = Chunk("s" * 64, "f" * 100, 2**40 - MAX_PIECE_BYTES, 2**40, bytes(MAX_PIECE_BYTES))
    assert len(piece.to_payload()) <= MAX_PAYLOAD_BYTES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session": None}, "lacks session"),
        ({"session": "A/B"}, "an id has 1 to 64"),
        ({"model": "+"}, "an id has 1 to 64"),
        ({"manifest_sha256": "12"}, "64 hexadecimal digits"),
        ({"url": "file:///etc/passwd"}, "expected http:// or https://"),
        ({"url": "http://"}, "expected http:// or https://"),
        ({"url": "https://host/a?b=c"}, "expected http:// or https://"),
        ({"min_tps": 0}, "min_tps is 0"),
        ({"timeout_s": 1e9}, "timeout_s is"),
        ({"maxrss_mb": 9}, "did you mean 'max_rss_mb'"),
    ],
)
def test_an_order_that_is_none_says_why(change, message):
    fields = {"session": "s", "model": "m", "manifest_sha256": SHA} | change
    with pytest.raises(MessageError, match=message):
        Order.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "begins with a line of JSON"),
        (b"x" * 2000 + b"\n", "begins with a line of JSON"),
        (b"{}\n", "lacks session, file, offset, size"),
        (b'{"session":"s","file":"../x","offset":0,"size":1}\nx', "no name of a bundle's file"),
        (b'{"session":"s","file":".x","offset":0,"size":1}\nx', "no name of a bundle's file"),
        (b'{"session":"s","file":"x","offset":1,"size":1}\nx', "beyond the end of x"),
        (b'{"session":"s","file":"x","offset":-1,"size":1}\nx', "offset is -1"),
    ],
)
def test_a_piece_that_is_none_says_why(payload, message):
    with pytest.raises(MessageError, match=message):
        Chunk.from_payload(payload)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["session", "need", "phase", "model", "file", "offset", "length"]), inner)
    ),
    max_leaves=8,
)


@given(_JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_any_payload_is_read_or_refused_by_name(payload):
    for read in (Order.from_json, parse_report, Chunk.from_payload):
        for form in (payload, payload + b"\nabc"):
            with contextlib.suppress(MessageError):
                read(form)
