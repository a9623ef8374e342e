"""Requests over lines that lose, double and damage: each has exactly one end, and its text is exact."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lossy import HELLO, STOP, CountingEngine, Line, continuation

from device_runtime.bridge.frames import FrameReader, frame
from device_runtime.bridge.messages import Capability, FaultCode, Finish, Greet, Hello, Start, Status, Work, parse
from device_runtime.bridge.request import Ask, Ended, Failed
from device_runtime.bridge.session import Phase, Session
from device_runtime.errors import EmulatedFaultError, UnavailableError

PROMPT = list(range(100, 140))
ANSWER = 60  # tokens


def ask(max_new: int = 200) -> Ask:
    return Ask(struct.pack(f"<{len(PROMPT)}I", *PROMPT), max_new, (STOP,))


def expected(count: int) -> bytes:
    tokens = list(PROMPT)
    for _ in range(count):
        tokens.append(continuation(tokens))
    return struct.pack(f"<{count}I", *tokens[len(PROMPT) :])


def line(**trouble) -> Line:
    made = Line(len(PROMPT) + ANSWER, **trouble)
    made.until_up()
    return made


def test_a_clean_line_carries_an_answer_and_its_figures():
    data, end = line().answer(ask())
    assert data == expected(ANSWER)
    assert end == Ended(Finish.STOP, len(PROMPT), 0, ANSWER + 1, pytest.approx(50, rel=0.05))


def test_the_limit_of_tokens_is_kept():
    data, end = line().answer(ask(max_new=10))
    assert data == expected(10)
    assert isinstance(end, Ended) and (end.finish, end.completion_tokens) == (Finish.LENGTH, 10)


FEW_AND_MANY = [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 200))]


@pytest.mark.parametrize("seed", FEW_AND_MANY)
def test_a_bad_line_loses_and_doubles_nothing(seed):
    bad = line(seed=seed, drop=0.04, damage=0.04, double=0.04)
    for _ in range(2):
        data, end = bad.answer(ask())
        assert isinstance(end, Ended), end
        assert data == expected(ANSWER)
        assert end.completion_tokens == ANSWER + 1
    assert bad.session.reader.noise > 0


@pytest.mark.parametrize("seed", FEW_AND_MANY)
def test_resets_and_unplugged_cables_lose_and_double_nothing(seed):
    chance = random.Random(seed)
    rounds = sorted(chance.sample(range(40, 160), 4))
    bad = line(seed=seed, drop=0.02, damage=0.02, resets=rounds[:2], unplugs=rounds[2:])
    data, end = bad.answer(ask())
    assert isinstance(end, Ended), end
    assert data == expected(ANSWER)
    assert (end.finish, end.prompt_tokens, end.completion_tokens) == (Finish.STOP, len(PROMPT), ANSWER + 1)


any_trouble = given(
    seed=st.integers(0, 2**32), drop=st.floats(0, 0.08), damage=st.floats(0, 0.08), double=st.floats(0, 0.08),
    resets=st.lists(st.integers(1, 200), max_size=3), unplugs=st.lists(st.integers(1, 200), max_size=3),
    cancel_at=st.none() | st.integers(1, 150), max_new=st.integers(1, 100),
)  # fmt: skip


def check_one_exact_end(cancel_at, max_new, **trouble):
    bad = line(**trouble)
    data, end = bad.answer(ask(max_new), cancel_at)
    assert data == expected(ANSWER)[: len(data)]
    if isinstance(end, Ended) and end.finish is not Finish.CANCELLED:
        assert len(data) == 4 * min(max_new, ANSWER)
    else:
        assert cancel_at is not None or isinstance(end, Failed)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@any_trouble
def test_every_request_has_one_end_and_its_text_is_exact_as_far_as_it_goes(**trouble):
    check_one_exact_end(**trouble)


@pytest.mark.slow
@settings(max_examples=1_000, suppress_health_check=[HealthCheck.too_slow])
@any_trouble
def test_every_one_of_many_requests_has_one_end(**trouble):
    check_one_exact_end(**trouble)


def test_a_request_that_is_sent_twice_runs_once():
    deaf = line(drop=0.1, seed=3)
    data, _ = deaf.answer(ask())
    assert data == expected(ANSWER)
    assert deaf.engine.started == 1


def test_a_reset_board_is_asked_for_the_rest_alone():
    done = line(resets=[45])
    done.answer(ask())
    assert done.engine.prompt_tokens > len(PROMPT)
    assert done.engine.completion_tokens < ANSWER + 1


def test_a_bridge_that_is_started_again_is_not_held_up_by_what_the_last_one_asked():
    busy = line()
    busy.session.ask(ask(), busy.now_s)
    for _ in range(30):
        busy.once()
    assert busy.board.working
    busy.session = Session(number=lambda: 77)
    busy.session.opened(busy.now_s)
    while busy.session.phase is not Phase.UP:
        busy.once()
    data, end = busy.answer(ask(max_new=20))
    assert data == expected(20)
    assert isinstance(end, Ended) and end.finish is Finish.LENGTH


def test_cancel_ends_an_answer_with_what_has_come():
    data, end = line().answer(ask(), cancel_at=30)
    assert isinstance(end, Ended) and end.finish is Finish.CANCELLED
    assert 0 < len(data) < 4 * ANSWER
    assert data == expected(ANSWER)[: len(data)]


def test_a_board_that_stays_away_fails_the_request_after_its_grace():
    gone = line()
    gone.session.ask(ask(), gone.now_s)
    for _ in range(20):
        gone.once()
    gone.session.closed(gone.now_s)
    gone.session.tick(gone.now_s + gone.session.timing.grace_s - 1)
    gone.session.tick(gone.now_s + gone.session.timing.grace_s + 1)
    events = []
    while event := gone.session.next_event():
        events.append(event)
    assert isinstance(events[-1], Failed) and isinstance(events[-1].error, UnavailableError)
    assert sum(isinstance(event, Failed) for event in events) == 1
    with pytest.raises(UnavailableError, match="plug it in again"):
        gone.session.ask(ask(), gone.now_s)


class Spelling(CountingEngine):
    """Four letters a step, for 100 steps: words of text, or tokens."""

    words = b"abcd", b"efgh", b"ijkl", b"mnop"

    def start(self, prompt: bytes, start: Start) -> None:
        self.count = 0

    def step(self):
        self.count += 1
        return self.words[self.count % 4], Finish.STOP if self.count == 100 else None


SPELT = b"".join(Spelling.words[count % 4] for count in range(1, 101))
TEXT_BOARD = replace(HELLO, capabilities=Capability.TEXT | Capability.SCHEMAS, schema_count=1, schemas=(7,))


@pytest.mark.parametrize("asked", [{"text": True}, {"schema": 7}])
@pytest.mark.parametrize("resets", [[60], [60, 40, 110], [1, 2, 3, 200]])
def test_an_answer_that_has_no_tokens_to_append_begins_anew_after_a_reset_and_only_its_rest_is_news(asked, resets):
    """A schema is followed from its first byte, so its answers begin anew although they are tokens."""
    cut = Line(0, hello=TEXT_BOARD, engine=Spelling, resets=resets)
    cut.until_up()
    data, end = cut.answer(Ask(b"uhello\0", text="text" in asked, schema=asked.get("schema", 0)))
    assert isinstance(end, Ended) and end.finish is Finish.STOP
    assert data == SPELT


@pytest.mark.parametrize("seed", FEW_AND_MANY)
def test_a_bad_line_and_resets_lose_and_double_no_text(seed):
    bad = Line(0, hello=TEXT_BOARD, engine=Spelling, resets=[30, 90], seed=seed, drop=0.04, damage=0.04, double=0.04)
    bad.until_up()
    data, end = bad.answer(Ask(b"uhello\0", text=True))
    assert (data, end.finish) == (SPELT, Finish.STOP)


@pytest.mark.parametrize("after", [b"other words", b"ab"])
def test_a_board_that_answers_otherwise_after_a_reset_is_found_out(after):
    """Another model, or one that stops before it has said again what it had said."""

    class Changed(Spelling):
        def step(self):
            self.count += 1
            return after, Finish.STOP

    engines = iter([Spelling, Changed])
    cut = Line(0, hello=TEXT_BOARD, engine=lambda whole: next(engines)(whole), resets=[60])
    cut.until_up()
    data, end = cut.answer(Ask(b"uhello\0", text=True))
    assert data and SPELT.startswith(data)
    assert isinstance(end, Failed) and isinstance(end.error, UnavailableError)
    assert "now answers otherwise" in str(end.error)


def test_what_the_engine_refuses_is_told():
    class Full(CountingEngine):
        def start(self, prompt: bytes, start: Start) -> None:
            raise EmulatedFaultError(FaultCode.TOO_LONG, "the context has 8 positions")

    full = Line(0, engine=Full)
    full.until_up()
    data, end = full.answer(ask())
    assert data == b""
    assert isinstance(end, Failed) and "the context has 8 positions" in str(end.error)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": 4}, "version 4 of the serial protocol"), ({"window": 138, "newest": 1}, "takes neither"),
     ({"largest_body": 67, "newest": 1}, "it needs 68 for a request"),
     ({"version": 2, "newest": 2, "largest_body": 76}, "it needs 77 for a request"),
     ({"capabilities": Capability(0), "version": 3}, "takes neither")],
)  # fmt: skip
def test_a_board_that_cannot_be_talked_to_says_why(change, words):
    session = Session()
    session.opened(0)
    session.receive(frame(Hello(**(vars(HELLO) | change)).pack()), 0.1)
    assert session.phase is Phase.GREETING
    assert words in session.trouble


def test_a_board_that_has_just_started_is_asked_which_version_it_speaks():
    session = Session()
    session.opened(0)
    session.to_send()
    session.receive(frame(HELLO.pack()), 0.1)  # nobody asked for it, so it is of version 1
    assert session.phase is Phase.GREETING and not session.refusal
    assert session.to_send() == frame(Greet(3).pack())
    session.receive(frame(replace(HELLO, version=3).pack()), 0.2)
    assert session.phase is Phase.UP and session.version == 3


def test_a_board_of_version_1_gets_messages_of_version_1():
    session = Session(number=lambda: 7)
    session.opened(0)
    session.receive(frame(replace(HELLO, newest=1).pack(1)), 0.1)
    session.to_send()
    session.ask(ask(), 0.2)
    (body,) = FrameReader().push(session.to_send())
    assert len(body) == 36 + 4 and parse(body) == parse(parse(body).pack(1))


def test_progress_changes_with_prompts_and_answers_and_not_with_a_model_that_hangs():
    slow = line()
    slow.session.ask(ask(), slow.now_s)
    seen = []
    while slow.session.next_event() is None:  # up to the first token
        slow.once()
        seen.append(slow.session.progress)
    assert len(set(seen)) > 4  # parts of the prompt, steps that took it in
    slow.board.step = lambda: b""  # the model hangs; the port still answers
    for _ in range(200):
        slow.once()
        seen.append(slow.session.progress)
    assert len(set(seen[-150:])) == 1
    assert slow.session.phase is Phase.UP


def test_an_idle_board_is_pinged_and_missed():
    idle = line()
    for _ in range(500):
        idle.once()
    assert idle.session.phase is Phase.UP and idle.session.status is not None
    now_s = idle.now_s
    while idle.session.phase is Phase.UP:
        now_s += 0.1
        idle.session.tick(now_s)
    assert 4 < now_s - idle.now_s < 7
    assert len(idle.session.to_send()) < 200


def test_a_restart_of_an_idle_board_is_counted():
    idle = line(resets=[100])
    for _ in range(300):
        idle.once()
    assert idle.session.resets == 1


def test_an_uptime_that_wraps_is_no_restart():
    idle = line()
    for uptime_ms, now_s in ((2**32 - 1_500, 10.0), (500, 12.0), (2_500, 14.0)):
        idle.session.receive(frame(Status(0, Work.IDLE, 0, uptime_ms).pack()), now_s)
    assert idle.session.resets == 0
    idle.session.receive(frame(Status(0, Work.IDLE, 0, 100).pack()), 16.0)
    assert idle.session.resets == 1


any_bytes = given(st.lists(st.binary(max_size=80) | st.builds(frame, st.binary(min_size=1, max_size=60)), max_size=20))


def check_bytes_are_survived(parts):
    alive = line()
    alive.session.ask(ask(), alive.now_s)
    for part in parts:
        alive.session.receive(part, alive.now_s)
        alive.once()
        alive.board.receive(part)


@settings(max_examples=40)
@any_bytes
def test_any_bytes_from_the_board_are_survived(parts):
    check_bytes_are_survived(parts)


@pytest.mark.slow
@settings(max_examples=2_000)
@any_bytes
def test_many_bytes_from_the_board_are_survived(parts):
    check_bytes_are_survived(parts)
