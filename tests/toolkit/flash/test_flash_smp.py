"""SMP: the real smpclient against a board with MCUboot's slots on a pty; images are made and judged by imgtool."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import cbor2
import pytest
from flash_boards import board
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("imgtool", reason="the extra `dev` is not installed")

from device_runtime.errors import (
    ConfigurationError,
    DoesNotFitError,
    FlashError,
    ImageError,
    RolledBackError,
    StonechatError,
    UnreachableError,
)
from tests.toolkit.flash.peers.smp_server import Faults, SmpBoard
from toolkit.flash.images import Image
from toolkit.flash.mcuboot import read_image
from toolkit.flash.smp import Flasher
from toolkit.flash.smp_line import line as smp
from toolkit.flash.smp_line.answers import known_part


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | Path]:
    """Two keys, and images signed with them."""
    folder = tmp_path_factory.mktemp("images")
    found: dict[str, bytes | Path] = {}

    def imgtool(*arguments: object) -> None:
        command = [sys.executable, "-m", "imgtool.main", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)

    for key in ("ours", "theirs"):
        imgtool("keygen", "-k", folder / f"{key}.pem", "-t", "ed25519")
        found[f"{key}.pem"] = folder / f"{key}.pem"
    for name, version, key, size in [("old", "1.0.0", "ours", 20_000), ("new", "1.1.0", "ours", 40_000),
                                     ("foreign", "1.2.0", "theirs", 4_000)]:  # fmt: skip
        plain, signed = folder / f"{name}.bin", folder / f"{name}.signed.bin"
        plain.write_bytes(random.Random(name).randbytes(size))
        imgtool("sign", "-k", folder / f"{key}.pem", "-v", version, "-H", 512, "--pad-header", "-S", 262144,
                "--align", 8, plain, signed)  # fmt: skip
        found[name] = signed.read_bytes()
    return found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost packets are waited for; on a pty that need not be 2.5 s."""
    monkeypatch.setattr(smp, "_TIMEOUT_S", 1.0)
    monkeypatch.setattr(smp, "_ERASE_TIMEOUT_S", 2.0)


def peer(made: dict, faults: Faults | None = None) -> SmpBoard:
    return SmpBoard(made["old"], made["ours.pem"], faults)


def run(there: SmpBoard, image: bytes, **flash: object):
    using = Flasher(board("smp", **flash))
    parts = using.check(Image("app.signed.bin", image), None)
    steps: list[tuple[str, float]] = []
    result = using.flash(parts, there.port, lambda step, share: steps.append((step, share)))
    return result, steps


def test_an_image_is_uploaded_tested_and_confirmed(made: dict) -> None:
    with peer(made) as there:
        result, steps = run(there, made["new"])
    assert there.slots == [made["new"], made["old"]]
    assert there.confirmed and there.restarts == 1
    assert "runs it" in result.verified and "1.1.0" in result.verified
    shares = [share for step, share in steps if step == "upload"]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 10


def test_what_runs_already_is_not_sent_again(made: dict) -> None:
    with peer(made) as there:
        run(there, made["old"])
    assert there.packets == [] and there.restarts == 0


def test_an_image_that_was_uploaded_but_not_started_is_only_started(made: dict) -> None:
    with peer(made) as there:
        there.slots[1] = made["new"]
        run(there, made["new"])
    assert there.packets == [] and there.slots[0] == made["new"] and there.confirmed


@pytest.mark.parametrize(
    "fault", [{"lose_answer_at": 4}, {"garble_answer_at": 4}, {"mute_polls": 2}, {"slow_restart": 3}]
)
def test_lost_and_altered_answers_and_slow_restarts_are_overcome(made: dict, fault: dict[str, int]) -> None:
    with peer(made, Faults(**fault)) as there:
        run(there, made["new"])
    assert there.slots[0] == made["new"] and there.confirmed


def test_a_usb_port_may_go_away_at_the_restart(made: dict, tmp_path: Path) -> None:
    link = tmp_path / "ttyACM0"
    with peer(made, Faults(replug=link)) as there:
        link.symlink_to(there.port)
        using = Flasher(board("smp"))
        parts = using.check(Image("app.signed.bin", made["new"]), None)
        using.flash(parts, str(link), lambda step, share: None)
    assert there.slots[0] == made["new"] and there.confirmed


def test_an_upload_that_broke_off_goes_on_where_it_stopped(made: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smp, "_TIMEOUT_S", 0.5)
    with peer(made, Faults(stop_after=20)) as there:
        with pytest.raises(FlashError, match=r"stopped at byte \d+ of \d+: no answer.*goes on where it stopped"):
            run(there, made["new"])
        held = len(there.slots[1])
        assert 5_000 < held < 30_000
        assert there.slots[0] == made["old"]
        there.faults.stop_after = None
        there.packets.clear()
        run(there, made["new"])
    assert [offset for offset in there.packets if 0 < offset < held] == []
    assert there.slots[0] == made["new"]


def test_an_image_with_another_key_is_refused_by_mcuboot_and_the_old_one_runs(made: dict) -> None:
    with (
        peer(made) as there,
        pytest.raises(RolledBackError, match=r"did not keep version 1.2.0\+0: the board runs 1.0.0.*signed with"),
    ):
        run(there, made["foreign"])
    assert there.slots[0] == made["old"]


def test_an_image_that_crashes_is_rolled_back(made: dict) -> None:
    with peer(made, Faults(crashes=True)) as there, pytest.raises(RolledBackError, match=r"the board runs 1.0.0"):
        run(there, made["new"])
    assert there.slots[0] == made["old"] and there.restarts == 2


def test_flash_that_holds_something_else_is_an_error_and_never_started(made: dict) -> None:
    with (
        peer(made, Faults(mismatch=True)) as there,
        pytest.raises(FlashError, match=r"refused the upload: .*mismatched SHA256"),
    ):
        run(there, made["new"])
    assert there.restarts == 0 and not there.pending


def test_a_refusal_has_the_servers_reason(made: dict) -> None:
    with (
        peer(made, Faults(refuse_upload=True)) as there,
        pytest.raises(FlashError, match=r"refused the upload: NO_FREE_SLOT \(9\). .*Press RESET, which ends a test"),
    ):
        run(there, made["new"])


def test_a_board_that_does_not_answer_names_its_button(made: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smp, "_TIMEOUT_S", 0.1)
    with (
        peer(made, Faults(deaf=True)) as there,
        pytest.raises(UnreachableError, match=r"no answer to an SMP request.*hold BOOT and press RESET"),
    ):
        run(there, made["new"])


def test_a_restart_whose_answer_is_lost_is_not_asked_for_twice(made: dict) -> None:
    """A second restart would end the new image's test."""
    with peer(made, Faults(restart_at_once=True)) as there:
        run(there, made["new"])
    assert there.restarts == 1 and there.slots[0] == made["new"] and there.confirmed


def test_a_request_to_restart_that_was_lost_is_repeated(made: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smp, "_RESTART_AGAIN_S", 0.0)
    with peer(made, Faults(lose_resets=1)) as there:
        run(there, made["new"])
    assert there.restarts == 1 and there.slots[0] == made["new"] and there.confirmed


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("held", ["old", "nothing"])
def test_in_mcuboots_recovery_the_only_program_is_replaced(made: dict, hashes: bool, held: str) -> None:
    with peer(made, Faults(recovery=True, recovery_hashes=hashes)) as there:
        if held == "nothing":
            there.slots[0] = b""
        result, _ = run(there, made["new"])
    assert there.slots == [made["new"], b""] and there.restarts == 1
    assert result.verified == "MCUboot's recovery checked version 1.1.0+0, hash and signature, and restarted"


def test_in_mcuboots_recovery_what_it_holds_already_is_not_sent_again(made: dict) -> None:
    with peer(made, Faults(recovery=True, recovery_hashes=True)) as there:
        run(there, made["old"])
    assert there.packets == [] and there.restarts == 1


def test_in_mcuboots_recovery_an_image_with_another_key_is_not_called_flashed(made: dict) -> None:
    with (
        peer(made, Faults(recovery=True)) as there,
        pytest.raises(FlashError, match=r"does not accept version 1.2.0.*signed.*The board starts nothing.*hold BOOT"),
    ):
        run(there, made["foreign"])
    assert there.restarts == 0


def test_in_mcuboots_recovery_an_upload_that_broke_off_leaves_no_program(
    made: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smp, "_TIMEOUT_S", 0.5)
    with (
        peer(made, Faults(recovery=True, stop_after=5)) as there,
        pytest.raises(FlashError, match=r"only program is partly written.*back into its recovery \(hold BOOT"),
    ):
        run(there, made["new"])


def test_a_refusal_of_the_first_version_has_a_name_too(made: dict) -> None:
    with (
        peer(made, Faults(recovery=True, refuse_upload=True)) as there,
        pytest.raises(FlashError, match=r"refused the upload: EINVAL \(3\)\. "),
    ):
        run(there, made["new"])


def test_images_are_checked_without_a_board(made: dict) -> None:
    new = made["new"]
    check = Flasher(board("smp", firmware_kib=32)).check
    with pytest.raises(DoesNotFitError, match=r"bytes; the board's place for the firmware has 32768"):
        check(Image("new.bin", new), None)
    check = Flasher(board("smp")).check
    for data, error, message in [
        (new[:-1], ImageError, "not a whole MCUboot image"),
        (new[:1000], ImageError, "truncated"),
        (new[:700] + b"\0" + new[701:], ImageError, "hash that it says"),
        (new[:32], ImageError, "truncated"),
        (new[:31], ImageError, "not a whole MCUboot image"),
        (bytes(4000), DoesNotFitError, "a plain binary; .* needs an MCUboot image"),
    ]:
        with pytest.raises(error, match=message):
            check(Image("new.bin", data), None)
    with pytest.raises(ConfigurationError, match=r"into the firmware's image\.$"):
        check(Image("new.bin", new), Image("bundle", b"x"))
    with pytest.raises(ConfigurationError, match=r"write the packed bundle to 0x60200000 with a debug probe"):
        Flasher(board("smp", model_address=0x60200000)).check(None, Image("bundle", b"x"))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_noise_behind_the_magic_is_refused_by_our_own_errors(noise: bytes) -> None:
    check = Flasher(board("smp")).check
    with pytest.raises(StonechatError):
        check(Image("noise", b"\x3d\xb8\xf3\x96" + noise), None)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_is_harmless_or_refused(made: dict, at: int, flip: int) -> None:
    data = bytearray(made["new"])
    at %= len(data)
    data[at] ^= flip
    try:
        Flasher(board("smp")).check(Image("new.bin", bytes(data)), None)
    except StonechatError:
        return
    assert at >= 512 + 40_000  # only a signature's tags are not covered by the hash; MCUboot checks them


def test_keys_that_smpclient_does_not_know_are_passed_over(made: dict) -> None:
    with peer(made, Faults(news=True)) as there:
        assert "confirmed by its hash" in run(there, made["new"])[0].verified
        assert there.slots[0] == made["new"] and there.confirmed


def test_a_list_that_cannot_be_read_is_not_called_silence(made: dict) -> None:
    with peer(made, Faults(no_version=True)) as there:
        with pytest.raises(FlashError, match=r"answers, but its list of images cannot be read.*Nothing was written"):
            run(there, made["new"])
        assert not there.packets


def test_only_unknown_keys_are_left_out() -> None:
    from smp.header import OP, CommandId, Flag, GroupId, Header, Version

    def frame(content: object, command: int = 0) -> bytes:
        body = cbor2.dumps(content)
        header = Header(
            op=OP.READ_RSP, version=Version.V2, flags=Flag(0), length=len(body), group_id=GroupId.IMAGE_MANAGEMENT,
            sequence=7, command_id=CommandId.ImageManagement(command),
        )  # fmt: skip
        return bytes(header) + body

    slot = {"slot": 0, "version": "1.0.0", "active": True}
    plain = frame({"images": [slot], "splitStatus": 0})
    assert known_part(plain) == plain
    news = known_part(frame({"images": [{**slot, "size": 9}], "splitStatus": 0, "x": {"y": 1}}))
    assert cbor2.loads(news[8:]) == {"images": [slot], "splitStatus": 0}
    error = known_part(frame({"err": {"group": 1, "rc": 3, "hint": "a"}}, 1))
    assert cbor2.loads(error[8:]) == {"err": {"group": 1, "rc": 3}}
    for odd in (b"", b"abc", plain[:9], frame([1, 2]), frame({"images": 3}), frame({"images": [4]})):
        assert known_part(odd) == odd


@pytest.mark.parametrize("bits", [128, 256])
def test_an_encrypted_image_is_not_damaged(made: dict, tmp_path: Path, bits: int) -> None:
    """Its hash is that of what MCUboot decrypts, and is what the board tells of it."""
    plain, sealed, key = tmp_path / "a.bin", tmp_path / "sealed.bin", tmp_path / "enc.pem"
    plain.write_bytes(random.Random(1).randbytes(5_000))
    imgtool = [sys.executable, "-m", "imgtool.main"]
    subprocess.run([*imgtool, "keygen", "-k", key, "-t", "x25519"], check=True, capture_output=True)
    common = ["-v", "1.3.0", "-H", "512", "--pad-header", "-S", "262144", "--align", "8", "-k", made["ours.pem"]]
    subprocess.run([*imgtool, "sign", *common, plain, tmp_path / "open.bin"], check=True, capture_output=True)
    subprocess.run([*imgtool, "sign", *common, "-E", key, "--encrypt-keylen", str(bits), plain, sealed],
                   check=True, capture_output=True)  # fmt: skip
    data = sealed.read_bytes()
    image = read_image(data, "sealed.bin")
    assert image.version == "1.3.0+0" and len(image.digest) == 32
    assert data[600:5_000] != (tmp_path / "open.bin").read_bytes()[600:5_000]
    assert Flasher(board("smp")).check(Image("sealed.bin", data), None)
    with pytest.raises(ImageError, match="truncated"):
        read_image(data[:2_000], "sealed.bin")
