"""Frames and messages: what is damaged is no frame, what is whole survives any noise around it, and vectors for C.

`serial_frames.txt` has single frames, `serial_exchange.txt` a whole conversation for a firmware to replay.
After an intended change, write both again and copy the vectors of the page:

    STONECHAT_GOLDEN=write .venv/bin/python -m pytest tests/device_runtime/bridge/test_frames.py
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_runtime.bridge import frames, messages
from device_runtime.bridge.codec import packed_fields
from device_runtime.bridge.frames import LARGEST_BODY, FrameError, FrameReader, body_of, frame
from toolkit.emulate.pty_board import Board

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "data" / "serial_frames.txt"
EXCHANGE = ROOT / "tests" / "data" / "serial_exchange.txt"
PAGE = ROOT / "docs" / "reference" / "serial-protocol.md"
ON_PAGE_BYTES = 64  # longer bodies stand in the file alone
BODIES = st.binary(min_size=1, max_size=LARGEST_BODY)

SAMPLES: list[messages.Message] = [  # of version 1
    messages.Greet(1),
    messages.Start(0x01020304, 24, 32, 0, 0, 0.0, 1.0, 0, 1, (2,)),
    messages.Start(0x01020304, 40, 28, 4, 40, 0.75, 0.875, 2**40 + 1, 2, (2, 50_000)),
    messages.Prompt(0x01020304, 0, bytes.fromhex("010000000a00000000010000")),
    messages.Prompt(0x01020304, 12, b"uhi\0"),  # text; or a part that begins and ends within a token
    messages.Resume(0x01020304, 8),
    messages.Cancel(0x01020304),
    messages.Ping(),
    messages.Hello(1, messages.Capability.TOKENS | messages.Capability.SAMPLING, 256, 512, 256, 32_000, 1, 120, 180_224,
          bytes.fromhex("00112233445566ff"), "nucleo-h743zi", "1.2.0", "tiny-15m"),
    messages.Taken(0x01020304, 12),
    messages.Piece(0x01020304, 4, bytes.fromhex("0b000000")),
    messages.Done(0x01020304, 8, messages.Finish.STOP, 6, 1, 3, 431, 240),
    messages.Fault(0x01020304, messages.FaultCode.UNKNOWN_REQUEST),
    messages.Fault(0, messages.FaultCode.MALFORMED, "Start is cut"),
    messages.Status(0x01020304, messages.Work.PREFILL, 0, 61_000, 415, 37),
    messages.Status(0, messages.Work.IDLE, 0, 1_000),
    # COBS at its longest block: body and CRC are 254 bytes without a zero, then 255, then 254 and a zero behind them.
    messages.Prompt(0x01020304, 0x01010101, bytes(range(1, 242))),
    messages.Prompt(0x01020304, 0x01010101, bytes(range(1, 243))),
    messages.Prompt(0x01020304, 0x01010101, bytes(range(1, 246)) + b"\0\1"),
]  # fmt: skip
LATER: list[messages.Message] = [  # of version 2, where it has more
    messages.Greet(2),
    messages.Start(0x01020304, 24, 32, 0, 0, 0.0, 1.0, 0, 1, (2,), messages.Form.TOKENS, 0x1122334455667788),
    messages.Start(0x01020304, 12, 0, 0, 0, 0.0, 1.0, 0, 0, (), messages.Form.TEXT),
    messages.Hello(
        2,
        messages.Capability.TOKENS
        | messages.Capability.TEXT
        | messages.Capability.SAMPLING
        | messages.Capability.SCHEMAS,
        512,
        2048,
        256,
        32_000,
        1,
        120,
        180_224,
        bytes.fromhex("00112233445566ff"),
        "mps3-an547",
        "0.1.0",
        "boiler-advisor",
        2,
        3,
        messages.ResetCause.COMMAND,
        1,
        (0x1122334455667788,),
    ),
    messages.Done(0x01020304, 44, messages.Finish.STOP, 20, 1, 9, 431, 240, 61_000),
    messages.Status(0x01020304, messages.Work.ANSWER, 12, 61_000, -32768, 37, 0),
]
LATEST: list[messages.Message] = [  # of version 3
    messages.Greet(3),
    messages.Start(
        0x01020304, 24, 32, 0, 0, 0.0, 1.0, 0, 1, (2,), messages.Form.TOKENS, 0x1122334455667788, 2, (1.0, 1.5)
    ),
    messages.Done(0x01020304, 44, messages.Finish.STOP, 20, 1, 9, 431, 240, 61_000, 3, (0.96875, -1.0, 0.5)),
]
# Between two zeros, and no frames: a wrong CRC, a CRC without a body, half a frame, a block that is longer than the
# rest, and text.
NO_FRAMES = ["000701012813c52e00", "00010101010100", "000701012800", "00ff01012813c52f00", "00626f6f740d0a00"]


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
        message = messages.parse(body)
    except messages.MessageError:
        return
    assert (
        messages.parse(message.pack()).pack() == message.pack()
    )  # what is not finite or too long is brought into order once


@pytest.mark.parametrize("message", SAMPLES + LATER, ids=lambda m: type(m).__name__)
def test_messages_come_out_as_they_went_in_and_later_fields_are_skipped(message):
    assert messages.parse(message.pack()) == message
    if not isinstance(message, messages.Prompt | messages.Piece | messages.Fault):
        assert messages.parse(message.pack() + b"\x07later") == message


@pytest.mark.parametrize("message", LATER, ids=lambda m: type(m).__name__)
def test_an_older_peer_reads_what_it_knows_of_a_message(message):
    older = messages.parse(message.pack(1))
    for field in packed_fields(type(message)):
        expected = getattr(message, field.name) if field.since == 1 else field.default
        assert getattr(older, field.name) == expected


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_a_cut_message_is_refused(message):
    body = message.pack(1)
    least = len(body) - len(getattr(message, "data", b"")) - len(getattr(message, "reason", ""))
    for size in range(1, least):
        with pytest.raises(messages.MessageError):
            messages.parse(body[:size])


def test_names_of_a_board_are_bounded_and_printable():
    hello = messages.parse(
        messages.Hello(1, messages.Capability.TOKENS, 256, 512, 1, 1, 0, 0, 0, board="x\x1b[31m" + "y" * 100).pack()
    )
    assert isinstance(hello, messages.Hello)
    assert hello.board == "x[31m" + "y" * 26


def vectors() -> str:
    """Name, body and frame of each sample."""
    bodies = [(m, m.pack(1)) for m in SAMPLES] + [(m, m.pack(2)) for m in LATER]
    bodies += [(m, m.pack(3)) for m in LATEST]
    good = "".join(f"{type(m).__name__} {body.hex()} {frame(body).hex()}\n" for m, body in bodies)
    return good + "".join(f"- - {stretch}\n" for stretch in NO_FRAMES)


def test_frames_are_the_bytes_of_the_golden_file():
    if os.environ.get("STONECHAT_GOLDEN") == "write":
        VECTORS.write_text(vectors(), encoding="ascii")
    assert VECTORS.read_text(encoding="ascii") == vectors()


def test_the_vectors_are_of_what_they_say():
    for line in VECTORS.read_text(encoding="ascii").splitlines():
        name, body, framed = line.split()
        reader = FrameReader()
        assert [found.hex() for found in reader.push(bytes.fromhex(framed))] == ([] if name == "-" else [body])
        assert reader.noise == (name == "-")
    blocks = [(frame(m.pack())[1], b"\0" in m.pack() + zlib.crc32(m.pack()).to_bytes(4, "little"), len(m.pack()) + 4)
              for m in SAMPLES[-3:]]  # fmt: skip
    assert blocks == [(0xFF, False, 254), (0xFF, False, 255), (0xFF, True, 260)]


def test_a_full_block_may_be_followed_by_an_empty_one():
    """Some encoders of COBS end with one, and ours does not; a reader takes both."""
    body = SAMPLES[-3].pack()
    assert frame(body)[1] == 0xFF and len(frame(body)) == 2 + 255
    assert list(FrameReader().push(frame(body)[:-1] + b"\x01\0")) == [body]


class Scripted:
    """An engine for the exchange: two steps for a prompt of any length, then tokens 11 and 12, then a stop token."""

    prompt_tokens = cached_tokens = completion_tokens = 0

    def start(self, prompt: bytes, start: messages.Start) -> None:
        self.prompt_tokens, self.completion_tokens = len(prompt) // 4, 0
        self._steps = iter([(b"", None), (b"\x0b\0\0\0", None), (b"\x0c\0\0\0", None), (b"", messages.Finish.STOP)])

    def step(self) -> tuple[bytes, messages.Finish | None]:
        data, finish = next(self._steps)
        self.completion_tokens += bool(data) or finish is not None
        return data, finish


ONE = struct.pack("<6I", 1, 10, 256, 7, 8, 9)
STEP = "step"
TALK: list[tuple[str, messages.Message | bytes | str]] = [
    ("The board says who it is, as at its start.", messages.Greet(1)),
    ("A request of 24 bytes.", messages.Start(7, 24, 8, 0, 0, 0.0, 1.0, 0, 1, (2,))),
    ("A part may end within a token.", messages.Prompt(7, 0, ONE[:14])),
    ("The same again: nothing is appended.", messages.Prompt(7, 0, ONE[:14])),
    ("A gap: nothing is appended.", messages.Prompt(7, 20, ONE[20:])),
    ("The request again: it changes nothing.", messages.Start(7, 24, 8, 0, 0, 0.0, 1.0, 0, 1, (2,))),
    ("The rest: it begins.", messages.Prompt(7, 14, ONE[14:])),
    ("There is nothing to send yet.", messages.Resume(7, 0)),
    ("The prompt is being taken in.", STEP),
    ("The first token.", STEP),
    ("A greeting in the middle: the answer goes on.", messages.Greet(1)),
    ("The second.", STEP),
    ("All that there is, once more.", messages.Resume(7, 0)),
    ("The end.", STEP),
    ("The end is told as often as it is asked for.", messages.Resume(7, 8)),
    ("From beyond the end is from the end.", messages.Resume(7, 400)),
    ("A cancel comes late: the end stays what it was.", messages.Cancel(7)),
    ("Another number than the board's.", messages.Resume(8, 0)),
    ("The next request ends the last.", messages.Start(9, 4, 8, 0, 0, 0.0, 1.0, 0, 1, (2,))),
    ("", messages.Resume(7, 0)),
    ("", messages.Prompt(9, 0, ONE[:4])),
    ("", STEP),
    ("", STEP),
    ("Cancelled after its first token.", messages.Cancel(9)),
    ("", messages.Ping()),
    ("More than the board has room for.", messages.Start(10, 2_000, 8, 0, 0, 0.0, 1.0, 0, 0)),
    ("It was over with that.", messages.Ping()),
    ("A message that is cut.", messages.Start(11, 4, 8, 0, 0, 0.0, 1.0, 0, 0).pack()[:20]),
    ("One of no known type.", b"\x42"),
]


def exchange() -> str:
    """What a bridge sends (>), what the board answers (<), and where its model takes a step; times are all 0."""
    capable = messages.Hello(1, messages.Capability.TOKENS, 256, 328, 256, 32_000, 1, 120, 0, name="scripted")
    board = Board(Scripted(), capable, clock=lambda: 0.0)
    lines = ["# A board whose model gives tokens 11 and 12 and then a stop token: section 9 of the protocol's page."]
    lines.append("# The text of a Fault is the firmware's own, and so is the temperature.")

    def answers(data: bytes) -> None:
        for body in FrameReader().push(data):
            name = type(messages.parse(body)).__name__
            lines.append(f"< {name} {body.hex()}")

    for remark, said in TALK:
        if remark:
            lines.append(f"# {remark}")
        if isinstance(said, str):
            lines.append(STEP)
            answers(board.step())
        else:
            body = said if isinstance(said, bytes) else said.pack(1)
            lines.append(f"> {type(said).__name__ if isinstance(said, messages.Message) else '-'} {body.hex()}")
            answers(board.receive(frame(body)))
    return "\n".join(lines) + "\n"


def test_a_board_answers_as_the_golden_exchange():
    if os.environ.get("STONECHAT_GOLDEN") == "write":
        EXCHANGE.write_text(exchange(), encoding="ascii")
    assert EXCHANGE.read_text(encoding="ascii") == exchange()


def test_the_page_shows_every_vector_and_every_number():
    page = PAGE.read_text(encoding="utf-8")
    for vector in vectors().splitlines():
        name, body, framed = vector.split()
        row = f"| no frame | | `{framed}` |" if name == "-" else f"| `{name}` | `{body}` | `{framed}` |"
        assert (row in page) == (len(body) <= 2 * ON_PAGE_BYTES or name == "Hello"), row
    assert f"`{zlib.crc32(b'123456789'):08x}`" in page
    for kind in messages.KINDS.values():
        assert f"### 0x{kind.TYPE:02x} `{kind.__name__}`" in page
    for words in (
        messages.Capability,
        messages.Finish,
        messages.Work,
        messages.FaultCode,
        messages.Form,
        messages.ResetCause,
    ):
        for word in words:
            assert f"{word.value} `{word.name}`" in page
    for bound in (LARGEST_BODY, messages.LEAST_BODY, messages.MAX_STOPS, messages.MAX_NAME, messages.MAX_REASON):
        assert str(bound) in page
