"""What a far side is asked again for, and what it is not."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest

from device_runtime.brain.far.openai_server import OpenAIServer
from device_runtime.brain.far.side import FarQuestion
from device_runtime.errors import StonechatError, UnfamiliarError, UnreachableError
from device_runtime.fleet.policies.escalation import Target
from tests.support.brokers import free_port
from tests.support.far_server import FarServer
from toolkit.gateway.replies import error_body

SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
QUESTION = FarQuestion([{"role": "user", "content": "hm?"}])
TYPED = FarQuestion(QUESTION.messages, SCHEMA)


@pytest.fixture
def side(far: FarServer) -> OpenAIServer:
    return OpenAIServer(Target(url=far.url, model="large"), off_site=False)


def in_s(seconds: float) -> float:
    return time.monotonic() + seconds


def test_a_question_that_the_gateway_finds_unfamiliar_is_asked_once(side: OpenAIServer, far: FarServer) -> None:
    far.status, far.error = 422, error_body(UnfamiliarError("no model of the fleet is for it."))
    with pytest.raises(StonechatError, match="HTTP status 422"):
        side.ask(TYPED, in_s(20))
    assert len(far.asked) == 1


def test_a_prompt_over_the_context_is_asked_once(side: OpenAIServer, far: FarServer) -> None:
    far.status, far.error = 400, {"error": {"message": "too long", "code": "context_length_exceeded"}}
    with pytest.raises(StonechatError, match="HTTP status 400"):
        side.ask(TYPED, in_s(20))
    assert len(far.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 408, 422, 500, 501])
def test_what_will_be_the_same_the_second_time_is_asked_once(side: OpenAIServer, far: FarServer, status: int) -> None:
    far.status = status
    with pytest.raises(StonechatError, match=f"HTTP status {status}"):
        side.ask(QUESTION, in_s(20))
    assert len(far.asked) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504, 0], ids=["busy", "502", "503", "504", "broken off"])
def test_what_may_pass_is_asked_again(side: OpenAIServer, far: FarServer, status: int) -> None:
    far.before = [status, status]
    assert side.ask(QUESTION, in_s(20)).text == "{}"
    assert len(far.asked) == 3


def test_a_typed_question_is_asked_again_in_the_same_form(side: OpenAIServer, far: FarServer) -> None:
    far.before, far.retry_after = [503], "0"
    side.ask(TYPED, in_s(20))
    assert [body["response_format"]["type"] for body in far.asked] == ["json_schema", "json_schema"]


def test_a_server_that_stays_away_is_asked_three_times_and_then_once(side: OpenAIServer, far: FarServer) -> None:
    far.status, far.retry_after = 503, "0"
    for asked in (3, 4, 5):
        with pytest.raises(UnreachableError, match="HTTP status 503"):
            side.ask(QUESTION, in_s(20))
        assert len(far.asked) == asked
    far.status = 200
    side.ask(QUESTION, in_s(20))
    far.before = [503]
    side.ask(QUESTION, in_s(20))  # it answers again, so it is worth waiting for
    assert len(far.asked) == 8


def test_nobody_at_the_port_is_an_error_in_the_servers_name() -> None:
    side = OpenAIServer(Target(url=f"http://127.0.0.1:{free_port()}/v1", model="large"), off_site=False)
    begun_s = time.monotonic()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        side.ask(QUESTION, in_s(20))
    assert time.monotonic() - begun_s >= 1.5  # it was waited for


@pytest.mark.parametrize("date", [False, True], ids=["seconds", "a date"])
def test_retry_after_is_kept_to(side: OpenAIServer, far: FarServer, date: bool) -> None:
    far.before, far.retry_after = [429], formatdate(time.time() + 3, usegmt=True) if date else "2"
    begun_s = time.monotonic()
    assert side.ask(QUESTION, in_s(20)).text == "{}"
    assert time.monotonic() - begun_s >= 1.9  # a date has whole seconds


def test_a_retry_after_that_nobody_can_read_is_as_none(side: OpenAIServer, far: FarServer) -> None:
    far.before, far.retry_after = [429], "soon"
    assert side.ask(QUESTION, in_s(20)).text == "{}"


def test_what_would_come_too_late_is_not_waited_for(side: OpenAIServer, far: FarServer) -> None:
    far.status, far.retry_after = 429, "60"
    begun_s = time.monotonic()
    with pytest.raises(UnreachableError, match="HTTP status 429"):
        side.ask(QUESTION, in_s(30))
    assert len(far.asked) == 1 and time.monotonic() - begun_s < 15


def test_closing_ends_the_wait(side: OpenAIServer, far: FarServer) -> None:
    far.status, far.retry_after = 503, "25"
    ends: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(UnreachableError) as error:
            side.ask(QUESTION, in_s(60))
        ends.append(error.value)

    thread = threading.Thread(target=ask)
    thread.start()
    while not far.asked:
        time.sleep(0.01)
    side.close()
    thread.join(15)
    assert ends and len(far.asked) == 1  # whether the answer had come or not
