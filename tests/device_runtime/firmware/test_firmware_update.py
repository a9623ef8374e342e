"""Updates of a board in C over flash that is memory: a cut at any operation leaves the old image or the new one, whole;
what is not signed, older or for something else is refused."""

from __future__ import annotations

import ctypes
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle.trust import PublicKey
from device_runtime.micro.sources import FIRMWARE_INCLUDES, update_sources
from tests.support.c_programs import compile_program
from toolkit.firmware.container import wrap
from toolkit.signing.keys import SigningKey

KIB = 1024
FIRMWARE, MODEL, NONE = 0, 1, 0xFF
GOOD, DAMAGED, UNSIGNED, DOWNGRADED = 0, 2, 3, 4
FIRMWARE_BYTES, MODEL_BYTES = 128 * KIB, 1024 * KIB
CHUNK = 933  # bytes of an image in a packet of 1,024


def make_key() -> SigningKey:
    private = Ed25519PrivateKey.generate()
    raw = private.public_key().public_bytes_raw()
    return SigningKey(PublicKey("maker", raw), private)


KEY, OTHER = make_key(), make_key()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("c") / "update.so"
    flags = [f"-I{folder}" for folder in FIRMWARE_INCLUDES]
    files = [Path(__file__).parent / "update_library.c", *update_sources()]
    return ctypes.CDLL(str(compile_program(out, *files, flags=flags, engine=False, shared=True)))


def image(kind: str, size: int, fill: int, *, counter: int = 0, key: SigningKey | None = KEY, **more: Any) -> bytes:
    payload = random.Random(fill).randbytes(size)
    return wrap(payload, kind, version=f"1.0.{fill}", security_counter=counter, key=key, **more)  # type: ignore[arg-type]


class Board:
    """Its flash, with an old firmware and an old model in their first slots."""

    def __init__(self, library: ctypes.CDLL, firmware: bytes, model: bytes, key: SigningKey | None = KEY) -> None:
        self.c = library
        size = 64 * KIB + 2 * FIRMWARE_BYTES + 2 * MODEL_BYTES
        self.flash = ctypes.create_string_buffer(b"\xff" * size, size)
        ctypes.memmove(ctypes.addressof(self.flash) + 64 * KIB, firmware, len(firmware))
        ctypes.memmove(ctypes.addressof(self.flash) + 64 * KIB + 2 * FIRMWARE_BYTES, model, len(model))
        library.test_layout(self.flash, FIRMWARE_BYTES, MODEL_BYTES, key.public.raw if key else None)
        assert self.start() == (0, 0)

    def start(self, cut: int = 0, share: int = 0) -> tuple[int, int] | None:
        chosen = self.c.test_start(cut, share)
        return None if chosen < 0 else (chosen & 0xFF, chosen >> 8)

    def payload(self, kind: int, slot: int) -> bytes:
        at = ctypes.c_uint32()
        size = self.c.test_payload(kind, slot, ctypes.byref(at))
        return self.flash.raw[at.value : at.value + size]

    def update(self, kind: int, new: bytes, cut: int = 0, share: int = 128, chunk: int = CHUNK) -> int:
        return int(self.c.test_update(kind, new, len(new), chunk, cut, share))


def payload_of(data: bytes) -> bytes:
    return data[32 : 32 + int.from_bytes(data[12:16], "little")]


OLD_FIRMWARE, OLD_MODEL = image("firmware", 60 * KIB, 1), image("model", 60 * KIB, 2)
NEW = {FIRMWARE: image("firmware", 64 * KIB - 300, 3), MODEL: image("model", 64 * KIB - 300, 4)}
OLD = {FIRMWARE: OLD_FIRMWARE, MODEL: OLD_MODEL}


@pytest.mark.parametrize("kind", [FIRMWARE, MODEL])
@pytest.mark.parametrize("chunk", [CHUNK, 4096])
def test_a_cut_at_every_write_of_a_sector_leaves_the_old_or_the_new(
    library: ctypes.CDLL, kind: int, chunk: int
) -> None:
    """Each erasure and each write of an update of 64 KiB, the records among them; none, half or all of it done."""
    whole = Board(library, OLD_FIRMWARE, OLD_MODEL).update(kind, NEW[kind], chunk=chunk)
    assert whole > 2 * 16
    outcomes = set()
    for cut in range(1, whole + 1):
        for share in (0, 128, 256) if chunk == 4096 else (128,):
            board = Board(library, OLD_FIRMWARE, OLD_MODEL)
            assert board.update(kind, NEW[kind], cut, share, chunk) == -1
            slots = board.start()
            assert slots is not None and NONE not in slots
            found = board.payload(kind, slots[kind])
            assert found in (payload_of(OLD[kind]), payload_of(NEW[kind])), (cut, share)
            outcomes.add(found == payload_of(NEW[kind]))
            other = 1 - kind
            assert board.payload(other, slots[other]) == payload_of(OLD[other])
            if found == payload_of(NEW[kind]):  # in its trial: confirmed, or the old one comes back
                assert library.test_confirm(kind) == 0
            assert board.update(kind, NEW[kind], chunk=chunk) > 0  # and the update can be made again
    assert outcomes == {False, True}


def test_fifty_cuts_of_a_full_image_and_of_the_starts_after_them(library: ctypes.CDLL) -> None:
    """Sizes of a real firmware and of the boiler's model; the power goes again while the board starts."""
    dice = random.Random(15)
    sizes = {FIRMWARE: 100 * KIB, MODEL: 600 * KIB}
    new = {kind: image(("firmware", "model")[kind], size, 9) for kind, size in sizes.items()}
    for kind in (FIRMWARE, MODEL):
        whole = Board(library, OLD_FIRMWARE, OLD_MODEL).update(kind, new[kind])
        for _ in range(25):
            board = Board(library, OLD_FIRMWARE, OLD_MODEL)
            cut = dice.choice([dice.randint(1, whole), whole - dice.randint(0, 6)])
            assert board.update(kind, new[kind], cut, dice.randint(0, 256)) == -1
            board.start(dice.randint(1, 3), dice.randint(0, 256))
            slots = board.start()
            assert slots is not None and NONE not in slots
            assert board.payload(kind, slots[kind]) in (payload_of(OLD[kind]), payload_of(new[kind]))


def test_a_trial_that_is_not_confirmed_ends_with_the_next_start(library: ctypes.CDLL) -> None:
    for kind in (FIRMWARE, MODEL):
        board = Board(library, OLD_FIRMWARE, OLD_MODEL)
        assert library.test_trial(kind, NEW[kind], len(NEW[kind])) == 1
        tried, after = board.start(), board.start()
        assert tried is not None and tried[kind] == 1
        assert after == (0, 0) == board.start()


def test_what_fails_its_own_test_gives_way_at_once(library: ctypes.CDLL) -> None:
    board = Board(library, OLD_FIRMWARE, OLD_MODEL)
    assert library.test_trial(MODEL, NEW[MODEL], len(NEW[MODEL])) == 1
    assert board.start() == (0, 1)
    assert library.test_reject(MODEL) == 0
    assert board.start() == (0, 0)


@pytest.mark.parametrize(("new", "verdict"), [
    (image("firmware", 5000, 5, key=None), UNSIGNED),
    (image("firmware", 5000, 5, key=OTHER), UNSIGNED),
    (image("firmware", 5000, 5, counter=1), DOWNGRADED),
    (image("model", 5000, 5, counter=2), DAMAGED),  # where a firmware belongs
    (image("firmware", 5000, 5, counter=2, board="other"), DAMAGED),
    (image("firmware", 5000, 5, counter=2)[:-70], UNSIGNED),
    (bytes([*image("firmware", 5000, 5, counter=2)[:100], 0, *image("firmware", 5000, 5, counter=2)[101:]]), DAMAGED),
    (image("firmware", 5000, 5, counter=2, board="host"), GOOD),
], ids=["unsigned", "another key", "older", "a model", "another board", "cut", "damaged", "good"])  # fmt: skip
def test_only_what_the_key_has_signed_and_is_no_older_is_started(
    library: ctypes.CDLL, new: bytes, verdict: int
) -> None:
    board = Board(library, OLD_FIRMWARE, OLD_MODEL)
    assert board.update(FIRMWARE, image("firmware", 4000, 6, counter=2)) > 0  # keeps the counter
    before = board.start()
    assert before == (1, 0)
    assert (board.update(FIRMWARE, new) > 0) == (verdict == GOOD)
    assert library.test_verdict(FIRMWARE, 0) == verdict
    after = board.start()
    assert after == ((0, 0) if verdict == GOOD else before)


def test_a_board_without_a_key_asks_for_the_hash_alone(library: ctypes.CDLL) -> None:
    board = Board(library, OLD_FIRMWARE, OLD_MODEL, key=None)
    assert board.update(FIRMWARE, image("firmware", 5000, 5, key=None)) > 0


def test_two_bad_slots_start_nothing_and_take_a_new_image(library: ctypes.CDLL) -> None:
    board = Board(library, OLD_FIRMWARE, OLD_MODEL)
    ctypes.memset(ctypes.addressof(board.flash) + 64 * KIB, 0, 200)
    assert board.start() == (NONE, 0)
    assert board.update(FIRMWARE, NEW[FIRMWARE]) > 0
    slots = board.start()
    assert slots is not None and board.payload(FIRMWARE, slots[FIRMWARE]) == payload_of(NEW[FIRMWARE])


@given(st.binary(max_size=64), st.binary(max_size=300))
def test_sha512_is_that_of_the_standard(library: ctypes.CDLL, first: bytes, second: bytes) -> None:
    out = ctypes.create_string_buffer(64)
    library.test_sha512(first, len(first), second, len(second), out)
    assert out.raw == hashlib.sha512(first + second).digest()


def test_signatures_are_those_of_rfc_8032(library: ctypes.CDLL) -> None:
    message = hashlib.sha256(b"an image").digest()
    signature = KEY.private.sign(message)
    assert library.test_signature(signature, KEY.public.raw, message, 32)
    for spoiled in (signature[:5] + b"x" + signature[6:], signature[:32] + bytes(32)):
        assert not library.test_signature(spoiled, KEY.public.raw, message, 32)
    assert not library.test_signature(signature, OTHER.public.raw, message, 32)


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda op, group, command, body: bytes([op, 0, len(body) >> 8, len(body) & 255, 0, group, 7, command]) + body,
        st.sampled_from([0, 2, 8, 10]),
        st.integers(0, 2),
        st.integers(0, 8),
        st.binary(max_size=120),
    )
)
def test_a_request_that_is_no_cbor_or_no_request_changes_nothing(library: ctypes.CDLL, request_: bytes) -> None:
    board = Board(library, OLD_FIRMWARE, OLD_MODEL)
    out = ctypes.create_string_buffer(1024)
    assert 0 <= library.test_answer(request_, len(request_), out) <= 1024
    assert board.start() == (0, 0)
