"""Frames and messages: what is damaged is no frame, what is whole survives any noise around it, and vectors for C.

After an intended change, write the vectors anew and copy those of the page:

    STONECHAT_GOLDEN=write .venv/bin/python -m pytest tests/device_runtime/serial/test_frames.py
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_runtime.serial import frames, messages
from device_runtime.serial.frames import LARGEST_BODY, FrameError, FrameReader, body_of, frame
from device_runtime.serial.messages import (
    Cancel,
    Capability,
    Done,
    Fault,
    FaultCode,
    Finish,
    Greet,
    Hello,
    Message,
    MessageError,
    Piece,
    Ping,
    Prompt,
    Resume,
    Start,
    Status,
    Taken,
    Work,
    parse,
)

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "data" / "serial_frames.txt"
PAGE = ROOT / "docs" / "serial-protocol.md"
BODIES = st.binary(min_size=1, max_size=LARGEST_BODY)

SAMPLES: list[Message] = [
    Greet(),
    Start(0x01020304, 24, 32, 0, 0, 0.0, 1.0, 0, 1, (2,)),
    Start(0x01020304, 40, 28, 4, 40, 0.75, 0.875, 2**40 + 1, 2, (2, 50_000)),
    Prompt(0x01020304, 0, bytes.fromhex("010000000a00000000010000")),
    Resume(0x01020304, 8),
    Cancel(0x01020304),
    Ping(),
    Hello(1, Capability.TOKENS | Capability.SAMPLING, 256, 512, 256, 32_000, 1, 120, 180_224,
          bytes.fromhex("00112233445566ff"), "nucleo-h743zi", "1.2.0", "tiny-15m"),
    Taken(0x01020304, 12),
    Piece(0x01020304, 4, bytes.fromhex("0b000000")),
    Done(0x01020304, 8, Finish.STOP, 6, 1, 3, 431, 240),
    Fault(0x01020304, FaultCode.UNKNOWN_REQUEST),
    Fault(0, FaultCode.MALFORMED, "Start is cut"),
    Status(0x01020304, Work.PREFILL, 0, 61_000, 415),
    Status(0, Work.IDLE, 0, 1_000),
]  # fmt: skip


@given(BODIES, st.binary(max_size=300), st.binary(max_size=300), st.integers(1, 50))
def test_a_frame_survives_any_noise_around_it(body, before, after, size):
    stream = before + frame(body) + after
    reader = FrameReader()
    found = [b for at in range(0, len(stream), size) for b in reader.push(stream[at : at + size])]
    assert body in found
    assert reader.received == len(stream)


@given(st.lists(BODIES, max_size=8))
def test_frames_come_out_as_they_went_in(bodies):
    assert list(FrameReader().push(b"".join(map(frame, bodies)))) == bodies


@given(BODIES)
@example(b"x" * 250)
@example(b"x" * 251)
@example(b"x" * LARGEST_BODY)
def test_a_frame_costs_what_the_page_says(body):
    assert len(frame(body)) <= len(body) + 7 + max(0, -(-(len(body) - 250) // 254))
    assert len(frame(body)) - len(body) >= frames.OVERHEAD


@given(BODIES, st.data())
def test_a_damaged_frame_is_dropped(body, data):
    whole = bytearray(frame(body))
    spot = data.draw(st.integers(1, len(whole) - 2))
    whole[spot] ^= data.draw(st.integers(1, 255))
    assert list(FrameReader().push(bytes(whole))) == []


@given(BODIES)
def test_half_a_frame_does_not_spoil_the_next(body):
    whole = frame(body)
    for cut in range(0, len(whole), max(1, len(whole) // 7)):
        assert list(FrameReader().push(whole[:cut] + frame(b"next")))[-1:] == [b"next"]


@given(st.binary(max_size=2000))
@example(b"\0")
@example(b"\0\1\0")
def test_bytes_that_are_no_frame_are_refused_by_our_own_error(data):
    reader = FrameReader()
    list(reader.push(data))
    assert len(reader.sample) <= frames._LONGEST
    with contextlib.suppress(FrameError):
        body_of(data)


def test_endless_noise_takes_no_memory_and_the_next_frame_is_read():
    reader = FrameReader()
    for _ in range(200):
        assert list(reader.push(b"x" * 4096)) == []
    assert len(reader.sample) <= frames._LONGEST
    assert list(reader.push(frame(b"hello"))) == [b"hello"]


@given(st.binary(max_size=200))
def test_a_body_is_a_message_or_refused_by_our_own_error(body):
    try:
        message = parse(body)
    except MessageError:
        return
    assert parse(message.pack()).pack() == message.pack()  # what is not finite or too long is brought into order once


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_messages_come_out_as_they_went_in_and_later_fields_are_skipped(message):
    assert parse(message.pack()) == message
    if not isinstance(message, Prompt | Piece | Fault):
        assert parse(message.pack() + b"\x07later") == message


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_a_cut_message_is_refused(message):
    body = message.pack()
    least = len(body) - len(getattr(message, "data", b"")) - len(getattr(message, "reason", ""))
    for size in range(1, least):
        with pytest.raises(MessageError):
            parse(body[:size])


def test_names_of_a_board_are_bounded_and_printable():
    hello = parse(Hello(1, Capability.TOKENS, 256, 512, 1, 1, 0, 0, 0, board="x\x1b[31m" + "y" * 100).pack())
    assert isinstance(hello, Hello)
    assert hello.board == "x[31m" + "y" * 26


def vectors() -> str:
    """Name, body and frame of each sample."""
    return "".join(f"{type(m).__name__} {m.pack().hex()} {frame(m.pack()).hex()}\n" for m in SAMPLES)


def test_frames_are_the_bytes_of_the_golden_file():
    if os.environ.get("STONECHAT_GOLDEN") == "write":
        VECTORS.write_text(vectors(), encoding="ascii")
    assert VECTORS.read_text(encoding="ascii") == vectors()


def test_the_page_shows_every_vector_and_every_number():
    page = PAGE.read_text(encoding="utf-8")
    for vector in vectors().splitlines():
        name, body, framed = vector.split()
        assert f"| `{name}` | `{body}` | `{framed}` |" in page
    assert f"`{zlib.crc32(b'123456789'):08x}`" in page
    for kind in messages._KINDS.values():
        assert f"### 0x{kind.TYPE:02x} `{kind.__name__}`" in page
    for words in (Capability, Finish, Work, FaultCode):
        for word in words:
            assert f"{word.value} `{word.name}`" in page
    for bound in (LARGEST_BODY, messages.MAX_STOPS, messages.MAX_NAME, messages.MAX_REASON):
        assert str(bound) in page
