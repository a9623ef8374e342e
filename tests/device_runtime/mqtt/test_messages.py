"""Payloads: what is read, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.mqtt import strict_json
from device_runtime.mqtt.messages import (
    Accepted,
    Address,
    DeviceState,
    ErrorReply,
    Final,
    Info,
    Piece,
    Request,
    State,
    Usage,
    parse_reply,
)  # fmt: skip
from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES, MessageError, dump, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(
    ["prompt", "messages", "max_new", "temperature", "seed", "stop", "stream", "deadline_ms", "model", "top_p",
     "reply_to", "id", "seq", "text", "done", "finish", "usage", "ttft_ms", "error", "state", "boot", "schema",
     "accept", "accepted", "device"]
)  # fmt: skip
PAYLOADS = st.binary(max_size=64) | (JSON | st.dictionaries(FIELDS, JSON, max_size=6)).map(
    lambda value: json.dumps(value).encode("utf-8", "surrogatepass")
)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON: .* line 1, column 2"),
        (b"\xff", "not UTF-8: byte 0 is 0xff"),
        (b'{"prompt": NaN}', "NaN, which is not JSON"),
        (b'{"prompt": -Infinity}', "-Infinity, which is not JSON"),
        (b'{"temperature": 1e999}', "beyond the range of a double"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"prompt": "a", "prompt": "b"}', "names the field .prompt. twice"),
        (b"[" * 17, "nests deeper than 16"),
        (b'{"a":' * 5000, "nests deeper than 16"),
        (b" " * (MAX_PAYLOAD_BYTES + 1), "has 65537 bytes; at most 65536"),
        (b"[]", "a request must be a JSON object, not a list"),
        (b"{}", "needs either prompt or messages"),
        (b'{"prompt": "a", "messages": []}', "messages is empty"),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "and not both"),
        (b'{"prompt": "a", "max_nwe": 3}', "no field 'max_nwe'; did you mean 'max_new'"),
        (b'{"prompt": "a", "max_new": "3"}', "max_new must be a whole number, not a string"),
        (b'{"prompt": "a", "max_new": true}', "max_new must be a whole number, not true or false"),
        (b'{"prompt": "a", "max_new": 0}', "max_new is 0; it must be from 1"),
        (b'{"prompt": "a", "temperature": 11}', "from 0 to 10"),
        (b'{"prompt": "a", "stream": 1}', "stream must be true or false"),
        (b'{"prompt": "a", "stop": [""]}', "empty string"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "must be one of system, user, assistant"),
        (b'{"messages": [{"role": "user"}]}', r"messages\[0\] lacks content"),
    ],
)
def test_a_bad_request_says_what_is_wrong(payload, message):
    with pytest.raises(MessageError, match=message):
        Request.from_json(payload)


def test_brackets_in_strings_do_not_nest():
    assert Request.from_json(json.dumps({"prompt": "[" * 100 + '\\"' + "{"}).encode())


@given(PAYLOADS)
def test_any_payload_is_read_or_refused_with_our_own_error(payload):
    for read in (parse, Request.from_json, State.from_json, Info.from_json, parse_reply):
        with contextlib.suppress(MessageError):
            read(payload)


@given(JSON, st.none() | st.text(), st.none() | st.binary(max_size=300))
def test_any_address_is_found_or_refused(value, response_topic, correlation_data):
    with contextlib.suppress(MessageError):
        Address.find(value, response_topic, correlation_data)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT})


@given(
    st.builds(
        Request,
        messages=st.lists(MESSAGE, min_size=1, max_size=4).map(tuple),
        model=st.none() | TEXT,
        max_new=st.none() | st.integers(1, 1000),
        temperature=st.floats(0, 10),
        top_k=st.integers(0, 100),
        top_p=st.floats(0.1, 1),
        seed=st.none() | st.integers(0, 2**63 - 1),
        stop=st.lists(TEXT.filter(bool), max_size=3).map(tuple),
        stream=st.booleans(),
        accept=st.booleans(),
        deadline_ms=st.none() | st.integers(1, 10**6),
    )
)
def test_a_request_survives_the_wire(asked):
    assert Request.from_json(asked.to_json()) == asked


@given(
    st.builds(Piece, st.integers(0, 1000), TEXT)
    | st.builds(Final, st.integers(0, 9), TEXT, st.sampled_from(["stop", "length"]), st.just(Usage(1, 2, 3)))
    | st.builds(ErrorReply, TEXT, TEXT, st.none() | st.integers(0, 1000))
)
def test_a_reply_survives_the_wire(reply):
    assert parse_reply(dump(reply.to_fields())) == reply


@given(st.sampled_from([Piece(1, "a"), Final(1, "a", "stop"), ErrorReply("busy", "full", 9)]))
def test_who_of_a_pool_has_replied_is_read_from_its_reply(reply):
    assert parse_reply(dump({**reply.to_fields(), "device": "north"})) == replace(reply, device="north")


def test_an_acceptance_survives_the_wire():
    assert parse_reply(dump(Accepted("north", 3).to_fields())) == Accepted("north", 3)


@pytest.mark.parametrize("device", ["../x", "a/b", "", "#", 7, "pi+"])
def test_a_reply_of_a_device_that_cannot_be_is_refused(device):
    """Its name becomes part of a topic."""
    for fields in ({"accepted": True, "boot": 1}, {"seq": 0, "text": "a"}):
        with pytest.raises(MessageError, match="device must be the id of a device"):
            parse_reply(dump({**fields, "device": device}))


def test_a_client_understands_a_newer_device():
    assert parse_reply(b'{"seq":0,"text":"a","mood":"good"}') == Piece(0, "a")
    assert State.from_json(b'{"state":"ready","boot":2,"since":3}') == State(DeviceState.READY, 2)


def test_state_and_info_survive_the_wire():
    info = Info("d", "Pi", "0.1", ("m",), ("generate",))
    assert Info.from_json(info.to_json()) == info
    assert State(DeviceState.LOST, 3).to_json() == b'{"state":"lost","boot":3}'


def test_an_address_comes_from_the_properties_or_from_the_payload_but_not_both():
    assert Address.find({}, "r", b"1").key == ("", "r", b"1")
    assert Address.find({"reply_to": "r", "id": "1"}, None, None).key == ("", "r", b"1")
    assert Address.find({"reply_to": "r"}, None, None).key is None
    with pytest.raises(MessageError, match="as well"):
        Address.find({"reply_to": "r"}, "r", None)
    with pytest.raises(MessageError, match="nobody would get"):
        Address.find({}, None, b"1")


def test_only_states_that_follow_each_other_do():
    assert DeviceState.READY.may_become(DeviceState.BUSY)
    assert not DeviceState.INIT.may_become(DeviceState.BUSY)
    assert not DeviceState.DISCONNECTED.may_become(DeviceState.READY)
    assert DeviceState.BUSY.may_become(DeviceState.LOST) and DeviceState.LOST.may_become(DeviceState.READY)


def test_a_microcontroller_tells_its_firmware_and_a_pi_none():
    pi = Info("a", "Raspberry Pi", "1.0")
    assert b"firmware" not in pi.to_json()
    board = Info("a", "nucleo", "1.0", firmware="0.3")
    assert [Info.from_json(info.to_json()) for info in (pi, board)] == [pi, board]


SLOW = {
    "escapes in a string without an end": lambda n: b'"' + rb"\"" * (n // 2),
    "quotes": lambda n: b'"' * n,
    "backslashes": lambda n: b"\\" * n,
    "backslashes and quotes in turn": lambda n: b'{"a":"' + rb'\\"' * (n // 3),
    "brackets in a string": lambda n: b'"' + b"[" * n + b'"',
    "digits": lambda n: b"1" * n,
    "digits after the point": lambda n: b"0." + b"1" * n,
    "an exponent": lambda n: b"1e" + b"1" * n,
    "fields": lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n // 9)) + b"}",
    "surrogates": lambda n: b'"' + rb"\ud800" * (n // 6) + b'"',
    "spaces": lambda n: b" " * n + b"x",
}


@pytest.mark.parametrize("what", SLOW)
def test_no_payload_takes_long_to_read(what):
    """A quadratic step shows at once: 64 KB took a minute. benchmarks/payloads.py has times over sizes."""
    payload = SLOW[what](strict_json.MAX_PAYLOAD_BYTES - 10)
    started_s = time.process_time()
    with contextlib.suppress(MessageError):
        strict_json.parse(payload)
    assert time.process_time() - started_s < 2


@given(st.recursive(st.text(max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=40))
def test_depth_is_counted_outside_of_strings_only(value):
    def depth(value) -> int:
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    payload = json.dumps(value).encode()
    if depth(value) <= strict_json.MAX_DEPTH:
        assert strict_json.parse(payload) == value
    else:
        with pytest.raises(MessageError, match="nests deeper"):
            strict_json.parse(payload)
