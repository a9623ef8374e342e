"""The firmware's side of the serial line in C: frames, the replayed conversation, and three parties on one line."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bridge.frames import FrameReader, frame
from device_runtime.bridge.messages import Fault, Greet, Hello, Message, parse
from device_runtime.micro.sources import FIRMWARE_INCLUDES, PORTS
from tests.support.c_programs import compile_program

DATA = Path(__file__).parents[2] / "data"
FIRMWARE = PORTS.parent / "firmware"
FRAME, PACKET, TEXT, TEXT_TOO_LONG = 1, 2, 3, 4
LARGEST_BODY, LONGEST_LINE = 512, 1024


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("c") / "member.so"
    files = [Path(__file__).parent / "member_library.c", FIRMWARE / "member.c", FIRMWARE / "line.c"]
    flags = [f"-I{folder}" for folder in FIRMWARE_INCLUDES]
    return ctypes.CDLL(str(compile_program(out, *files, flags=flags, engine=False, shared=True)))


def sent(board: ctypes.CDLL) -> list[bytes]:
    out = ctypes.create_string_buffer(65536)
    size = board.test_sent(out)
    return list(FrameReader().push(out.raw[:size]))


def completed(board: ctypes.CDLL, data: bytes) -> list[tuple[int, bytes]]:
    out, found = ctypes.create_string_buffer(4 * len(data) + 4096), []
    size = board.test_line(data, len(data), out)
    left = out.raw[:size]
    while left:
        size = int.from_bytes(left[1:3], "little")
        found.append((left[0], left[3 : 3 + size]))
        left = left[3 + size :]
    return found


def comparable(message: Message) -> object:
    """A message without what is the firmware's own: the words of a Fault, the later fields of a Hello."""
    if isinstance(message, Fault):
        return message.request, message.code
    return parse(message.pack(1)) if isinstance(message, Hello) else message


def test_the_conversation_is_answered_as_it_is_written_down(board: ctypes.CDLL) -> None:
    board.test_begin()
    answers: list[bytes] = []
    for number, line in enumerate((DATA / "serial_exchange.txt").read_text("ascii").splitlines(), 1):
        mark, *words = line.split()
        if mark == "<":
            assert comparable(parse(answers.pop(0))) == comparable(parse(bytes.fromhex(words[1]))), number
            continue
        assert mark == "#" or not answers, (number, answers)
        if mark == ">":
            framed = frame(bytes.fromhex(words[1]))
            board.test_receive(framed, len(framed))
        elif mark == "step":
            board.test_step()
        answers += sent(board)
    assert not answers


def test_a_board_speaks_the_version_that_it_was_greeted_with(board: ctypes.CDLL) -> None:
    board.test_begin()
    for asked, spoken in ((1, 1), (2, 2), (9, 3), (3, 3), (1, 1)):
        framed = frame(Greet(asked).pack())
        board.test_receive(framed, len(framed))
        (hello,) = map(parse, sent(board))
        assert isinstance(hello, Hello) and (hello.version, hello.newest) == (spoken, 3)


def test_frames_are_read_and_written_as_the_vectors_have_them(board: ctypes.CDLL) -> None:
    for line in (DATA / "serial_frames.txt").read_text("ascii").splitlines():
        name, body, framed = line.split()
        found = [part for part in completed(board, bytes.fromhex(framed)) if part[0] == FRAME]
        assert found == ([] if name == "-" else [(FRAME, bytes.fromhex(body))]), line
        if name != "-":
            out = ctypes.create_string_buffer(4096)
            size = board.test_frame(bytes.fromhex(body), len(body) // 2, out)
            assert out.raw[:size].hex() == framed


BODIES = st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(1, 7), st.binary(max_size=LARGEST_BODY - 1))
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=2, max_size=60).map(str.encode)
BASE64 = st.text("ABCxyz019+/=", min_size=1, max_size=120).map(str.encode)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(FRAME), BODIES), st.tuples(st.just(TEXT), WORDS), st.tuples(st.just(PACKET), BASE64)
        ),
        max_size=8,
    )
)
def test_frames_packets_and_lines_share_a_line(board: ctypes.CDLL, parts: list[tuple[int, bytes]]) -> None:
    stream, expected = b"", []
    for kind, data in parts:
        if kind == FRAME:
            stream += frame(data)
        elif kind == PACKET:
            data = b"\x06\x09" + data
            stream += data + b"\n"
        else:
            stream += data + b"\r\n"
        expected.append((kind, data))
    assert completed(board, stream) == expected


@given(BODIES, st.data())
def test_a_damaged_frame_is_no_line_for_the_console(board: ctypes.CDLL, body: bytes, data: st.DataObject) -> None:
    """What ends in a zero is never text; a control character anywhere keeps a line from the model."""
    whole = bytearray(frame(body))
    spot = data.draw(st.integers(3, len(whole) - 2))  # not the type, which every frame has in its second byte
    whole[spot] = data.draw(st.integers(1, 255))
    assert TEXT not in [kind for kind, _ in completed(board, bytes(whole))]


def test_a_line_is_refused_from_one_byte_too_many_on(board: ctypes.CDLL) -> None:
    for size, kind in ((LONGEST_LINE, TEXT), (LONGEST_LINE + 1, TEXT_TOO_LONG), (5 * LONGEST_LINE, TEXT_TOO_LONG)):
        ((found, _),) = completed(board, b"x" * size + b"\n")
        assert found == kind
        assert completed(board, b"x" * size + b"\nnext\n")[-1] == (TEXT, b"next")
