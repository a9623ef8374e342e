"""A board that is on MQTT by itself: the rules of docs/reference/mqtt.md in C, with a real model, and no network."""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.emit.c.bundle import write_bundle_image
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.schema.identity import canonical_schema
from device_runtime.micro.sources import FIRMWARE_INCLUDES, PORTS
from device_runtime.mqtt.messages import ErrorReply, Final, Info, State, parse_reply
from device_runtime.tasks.answering import Answerer
from tests.support.c_programs import compile_program

EXAMPLE = Path(__file__).parents[3] / "examples" / "boiler-advisor" / "bundle"
FIRMWARE = PORTS.parent / "firmware"
ROOT = "stonechat/1/field-mcu"
REPLY = f"{ROOT}/out/reply/tester/1"
READING = {"temp_c": 97.5, "bar": 2.1, "flow_l_min": 11.0}


@dataclass(frozen=True)
class Published:
    """What it has sent."""

    topic: str
    payload: bytes
    qos: int
    retain: bool

    @property
    def reply(self) -> Any:
        return parse_reply(self.payload)


class Board:
    """The library, as a broker sees it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.c = library
        self.c.test_will.restype = ctypes.c_char_p

    def publish(self, payload: Mapping[str, Any] | bytes, topic: str = "in/generate", retained: bool = False) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.c.test_message(f"{ROOT}/{topic}".encode(), data, len(data), int(retained))

    def ask(self, payload: Mapping[str, Any] | bytes, **how: Any) -> list[Published]:
        """Everything that it says until it is done."""
        self.publish(payload, **how)
        self.c.test_steps(1_000_000)
        return self.said()

    def replies(self, payload: Mapping[str, Any], **how: Any) -> list[Any]:
        return [one.reply for one in self.ask(payload, **how) if "/reply/" in one.topic]

    def said(self) -> list[Published]:
        out, found = ctypes.create_string_buffer(262_144), []
        size = self.c.test_published(out)
        left = out.raw[:size]
        while left:
            (size,) = struct.unpack_from("<I", left)
            topic, _, payload = left[6 : 4 + size].partition(b"\0")
            found.append(Published(topic.decode(), payload, left[4], bool(left[5])))
            left = left[4 + size :]
        return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("fleet")
    write_bundle_image(Bundle.open(EXAMPLE), path=folder / "model.image")
    sources = [Path(__file__).parent / "fleet_library.c", *sorted((PORTS.parent / "network").glob("*.c"))]
    sources += [FIRMWARE / name for name in ("generator.c", "fields.c")]
    flags = [f"-I{path}" for path in FIRMWARE_INCLUDES]
    made = ctypes.CDLL(str(compile_program(folder / "fleet.so", *sources, flags=flags, shared=True)))
    image = ctypes.create_string_buffer((folder / "model.image").read_bytes())
    made.image = ctypes.addressof(image) + -ctypes.addressof(image) % 16  # an image begins at a multiple of 16
    room = ctypes.create_string_buffer(len(image) + 16)
    at = ctypes.addressof(room) + -ctypes.addressof(room) % 16
    ctypes.memmove(at, image, len(image) - 1)
    made.kept = room
    assert made.test_open(ctypes.c_void_p(at), len(image) - 1) == 0
    return made


@pytest.fixture
def board(library: ctypes.CDLL) -> Board:
    made = Board(library)
    made.c.test_begin()
    made.c.test_connected(1)
    made.said()
    return made


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer.open(EXAMPLE)


def asked(answerer: Answerer, reading: Mapping[str, float] = READING, **more: Any) -> dict[str, Any]:
    """A request for a typed answer to a reading."""
    request = {"prompt": answerer.purpose.inputs.prompt(reading).text, "reply_to": REPLY, "id": "a"}
    return request | {"schema": json.loads(canonical_schema(answerer.purpose.answer))} | more


def test_it_says_who_it_is_and_leaves_a_will(library: ctypes.CDLL) -> None:
    board = Board(library)
    board.c.test_begin()
    will = State.from_json(board.c.test_will())
    assert (will.state.value, will.boot, will.mqtt) == ("lost", 7, 3)
    board.c.test_connected(1)
    info, state, health = board.said()
    assert (info.topic, info.retain, info.qos) == (f"{ROOT}/out/info", True, 1)
    found = Info.from_json(info.payload)
    assert (found.device, found.board, found.models) == ("field-mcu", "host", ("boiler",))
    assert set(found.capabilities) == {"generate", "cancel", "schema"}
    assert (state.topic, state.retain) == (f"{ROOT}/out/state", True)
    assert State.from_json(state.payload) == State.from_json(b'{"state":"ready","boot":7,"mqtt":3}')
    assert health.topic == f"{ROOT}/out/health" and json.loads(health.payload)["board_starts"] == 7
    board.c.test_pass(61_000)
    board.c.test_steps(0)
    assert [one.topic for one in board.said()] == [health.topic]


def test_a_typed_request_is_answered_as_the_library_answers_it(board: Board, answerer: Answerer) -> None:
    expected = answerer.answer(READING)
    said = board.ask(asked(answerer))
    states = [json.loads(one.payload)["state"] for one in said if one.topic.endswith("/state")]
    assert states == ["busy", "ready"]
    (reply,) = [one for one in said if one.topic == REPLY]
    assert reply.qos == 1 and not reply.retain and json.loads(reply.payload)["id"] == "a"
    final = reply.reply
    assert isinstance(final, Final) and final.finish == "stop" and final.text == expected.text
    assert final.confidence == pytest.approx(expected.confidence, abs=6e-5, rel=2e-3)  # four decimals
    assert final.usage.prompt_tokens > 0 and final.usage.completion_tokens > 1


def test_a_request_that_comes_twice_is_answered_once(board: Board, answerer: Answerer) -> None:
    assert len(board.replies(asked(answerer))) == 1
    assert board.replies(asked(answerer)) == []
    assert len(board.replies(asked(answerer, id="b"))) == 1


def test_an_answer_goes_nowhere_but_to_the_devices_own_replies(board: Board, answerer: Answerer) -> None:
    for topic in ("plant/valve/open", f"{ROOT}/in/generate", f"{ROOT}/out/reply/", f"{ROOT}/out/reply/+", None):
        assert board.ask(asked(answerer, reply_to=topic)) == []
    assert board.c.test_dropped() == 5


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"schema": {"type": "object"}}, "schema"),
        ({"unknown": 1}, "invalid_request"),
        ({"hops": 1}, "invalid_request"),  # which a fleet file that escalates to it is refused for
        ({"max_new": 1.5}, "invalid_request"),
        ({"messages": [{"role": "user", "content": "x"}]}, "invalid_request"),
        ({"prompt": "x" * 1600}, "invalid_request"),
        ({"prompt": "bar " * 300}, "context_overflow"),
        ({"max_new": 3}, "context_overflow"),
    ],
)
def test_a_request_that_it_cannot_answer_is_refused_by_a_word(
    board: Board, answerer: Answerer, change: Mapping[str, Any], code: str
) -> None:
    (error,) = board.replies(asked(answerer, **change))
    assert isinstance(error, ErrorReply) and error.code == code and error.message


def test_a_retained_command_is_refused(board: Board, answerer: Answerer) -> None:
    (error,) = board.replies(asked(answerer), retained=True)
    assert error.code == "retained"


def test_a_second_request_hears_that_it_is_busy_and_a_cancelled_one_what_there_is(
    board: Board, answerer: Answerer
) -> None:
    board.publish(asked(answerer))
    board.c.test_steps(3)
    board.publish(asked(answerer, id="b"))
    board.publish({"reply_to": REPLY, "id": "other"}, topic="in/cancel/tester")
    board.publish({"reply_to": REPLY, "id": "a"}, topic="in/cancel/tester")
    busy, final = (one.reply for one in board.said() if one.topic == REPLY)
    assert (busy.code, busy.retry_after_ms) == ("busy", 1000)
    assert final.finish == "cancelled"
    board.c.test_elsewhere(1)
    assert [reply.code for reply in board.replies(asked(answerer, id="c"))] == ["busy"]
    board.c.test_elsewhere(0)


def test_an_answer_waits_for_the_broker(board: Board, answerer: Answerer) -> None:
    board.publish(asked(answerer))
    board.c.test_broker_takes_nothing(1)
    board.c.test_steps(1_000_000)
    board.c.test_connected(0)
    assert [one for one in board.said() if one.topic == REPLY] == []
    board.c.test_broker_takes_nothing(0)
    board.c.test_connected(1)
    (reply,) = [one for one in board.said() if one.topic == REPLY]
    assert reply.reply.finish == "stop"


def test_a_deadline_ends_an_answer(board: Board, answerer: Answerer) -> None:
    board.publish(asked(answerer, deadline_ms=5))
    board.c.test_pass(10)
    board.c.test_steps(1_000_000)
    (reply,) = [one.reply for one in board.said() if one.topic == REPLY]
    assert reply.finish == "deadline"


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=80)


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 2]))
def test_every_text_is_read_as_python_writes_it(
    library: ctypes.CDLL, texts: list[str], ascii_only: bool, indent: int | None
) -> None:
    board = Board(library)
    board.c.test_begin()
    roles = ("system", "user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    request = {"reply_to": REPLY, "id": "t", "messages": messages, "temperature": 1e-1, "seed": 3}
    board.publish(json.dumps(request, ensure_ascii=ascii_only, indent=indent).encode())
    out = ctypes.create_string_buffer(4096)
    expected = b"".join(mark + text.encode() + b"\0" for mark, text in zip((b"s", b"u", b"a"), texts, strict=False))
    size = board.c.test_text(out)
    assert out.raw[:size] == expected


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_bytes_that_are_no_request_change_nothing(library: ctypes.CDLL, payload: bytes) -> None:
    board = Board(library)
    board.c.test_begin()
    board.c.test_connected(1)
    board.said()
    assert board.ask(payload) == []
