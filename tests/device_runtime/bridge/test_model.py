"""A real model behind a real pseudo-terminal: the answers of the engine itself, whatever happens to the cable."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import tty
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from desk import Desk, until

from device_runtime.bridge.link import Link
from device_runtime.bridge.messages import FaultCode, Start
from device_runtime.bridge.model import SerialModel
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import Completion, LanguageModel
from device_runtime.engine.sampler import Sampling
from device_runtime.errors import (
    ConfigurationError,
    ContextOverflowError,
    EmulatedFaultError,
    SchemaError,
    UnavailableError,
    UnreachableError,
)
from tests.support.serial_server import rfc2217_server
from tests.support.update_bundles import variant

QUESTION = [{"role": "user", "content": "how are you"}]
DRAW = Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=2**40 + 7)
TOKENS = 150


@pytest.fixture(scope="module")
def bundle(converted: Callable[..., Path]) -> Path:
    return converted("yarn-biases", "micro")


@pytest.fixture(scope="module")
def local(bundle: Path) -> Iterator[Callable[..., Completion]]:
    """What the engine answers without a bridge."""
    with LanguageModel.open(bundle, threads=1) as model:

        def answer(**options) -> Completion:
            generation = model.generate(QUESTION, **options)
            list(generation)
            return generation.result

        yield answer


@pytest.fixture
def desk(bundle: Path, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path, bundle)
    yield made
    made.close()


@pytest.fixture
def model(desk: Desk, bundle: Path) -> Iterator[SerialModel]:
    made = SerialModel(Link(str(desk.path)), Bundle.open(bundle)).open(30)
    yield made
    made.close()


def answer(model: SerialModel, **options) -> Completion:
    generation = model.generate(QUESTION, **options)
    text = "".join(generation)
    assert generation.result.text == text
    return generation.result


def same(found: Completion, expected: Completion) -> None:
    assert found.text == expected.text
    assert (found.finish, found.prompt_tokens, found.completion_tokens) == (
        expected.finish, expected.prompt_tokens, expected.completion_tokens
    )  # fmt: skip


@pytest.mark.parametrize("sampling", [Sampling(), DRAW], ids=["greedy", "drawn"])
def test_an_answer_is_the_engines_own(model, local, sampling):
    found = answer(model, max_new=40, sampling=sampling)
    same(found, local(max_new=40, sampling=sampling))
    assert found.ttft_ms > 0


def test_a_stop_text_ends_an_answer_where_the_engine_ends_it(model, local):
    whole = local(max_new=TOKENS, sampling=DRAW).text
    stop = whole[len(whole) // 2 :][:3]
    found, expected = (
        ask(max_new=TOKENS, sampling=DRAW, stop=[stop]) for ask in (lambda **o: answer(model, **o), local)
    )
    assert (found.text, found.finish) == (expected.text, "stop")
    same(answer(model, max_new=5), local(max_new=5))  # the board was told, and is ready for the next


@pytest.mark.parametrize("sampling", [Sampling(), DRAW], ids=["greedy", "drawn"])
def test_a_reset_in_the_middle_of_an_answer_changes_nothing(desk, model, local, sampling):
    desk.at(40, desk.boot)
    desk.at(20, desk.boot)  # and again, 20 tokens into the rest
    same(answer(model, max_new=TOKENS, sampling=sampling), local(max_new=TOKENS, sampling=sampling))
    assert desk.boots == 3


def test_an_unplugged_cable_in_the_middle_of_an_answer_changes_nothing(desk, model, local):
    desk.at(30, desk.unplug_for_a_moment)
    same(answer(model, max_new=TOKENS, sampling=DRAW), local(max_new=TOKENS, sampling=DRAW))
    assert desk.boots == 1


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_change_nothing(desk, model, local, seed):
    chance = random.Random(seed)

    def spoil(data: bytes) -> bytes:
        spot = chance.randrange(len(data))
        match chance.randrange(12):
            case 0:
                return data[:spot] + b"\x55" + data[spot + 1 :]
            case 1:
                return data[:spot]
            case 2:
                return data[spot:] + data
        return data

    desk.spoil = spoil
    same(answer(model, max_new=60, sampling=DRAW), local(max_new=60, sampling=DRAW))


def test_a_board_behind_a_serial_server_answers_alike(desk, bundle, local):
    with rfc2217_server(str(desk.path)) as url:
        model = SerialModel(Link(url), Bundle.open(bundle))
        try:
            model.open(30)
            same(answer(model, max_new=40, sampling=DRAW), local(max_new=40, sampling=DRAW))
        finally:
            model.close()


def test_cancel_from_another_thread_ends_an_answer(desk, model, local):
    generation = model.generate(QUESTION, max_new=TOKENS, sampling=DRAW)

    def hold_and_cancel() -> None:
        desk.hung = True  # or the answer might end before the other thread has its turn
        threading.Thread(target=generation.cancel).start()

    desk.at(25, hold_and_cancel)
    text = "".join(generation)
    assert generation.result.finish == "cancelled"
    whole = local(max_new=TOKENS, sampling=DRAW).text
    assert len(text) < len(whole) and whole.startswith(text.rstrip("�"))


def test_a_board_that_is_away_is_refused_by_name_and_taken_again_when_it_is_back(desk, model, local):
    assert not model.trouble
    desk.unplug()
    until(lambda: model.trouble)
    with pytest.raises(UnavailableError, match="plug it in again") as caught:
        model.generate(QUESTION)
    assert caught.value.code == "unavailable"
    desk.plug()
    until(lambda: not model.trouble)
    same(answer(model, max_new=10), local(max_new=10))


def test_cancel_does_not_wait_for_a_board_that_is_away(desk, model):
    generation = model.generate(QUESTION, max_new=TOKENS)
    desk.at(20, desk.unplug)
    away = threading.Thread(target=lambda: (until(lambda: model.trouble), generation.cancel()))
    away.start()
    text = "".join(generation)
    away.join()
    assert (generation.result.finish, generation.result.text) == ("cancelled", text)


def test_a_board_that_comes_back_with_another_model_is_refused(desk, model):
    desk.unplug()
    desk.board.hello = replace(desk.board.hello, model=b"another!")
    desk.plug()
    until(lambda: model._link.up and model.trouble)
    with pytest.raises(UnavailableError, match="does not run the bundle 'yarn-biases': its model is 616e"):
        model.generate(QUESTION)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(b"\x01\0\0", "whole tokens"), (b"", "prefix and more"), (b"\xff\xff\0\0", "has token 65535 of")],
)  # fmt: skip
def test_a_prompt_that_is_none_of_the_models_is_refused_before_it_is_looked_up(desk, bundle, tokens, words):
    manifest = Bundle.open(bundle).manifest
    prefix = struct.pack(f"<{len(manifest.prefix_tokens)}I", *manifest.prefix_tokens)
    with pytest.raises(EmulatedFaultError, match=words) as caught:
        desk.engine.start(prefix + tokens, Start(1, 0, 1, 0, 0, 0.0, 1.0, 0, 0))
    assert caught.value.fault is FaultCode.MALFORMED


def test_what_firmware_cannot_do_is_refused_by_name(model):
    with pytest.raises(SchemaError, match="this board holds no answers to a JSON schema"):
        model.generate(QUESTION, schema={"type": "object"})
    with pytest.raises(ContextOverflowError, match="context holds 256 positions"):
        model.generate([{"role": "user", "content": "word " * 300}])


def test_health_tells_the_boards_own_figures(model):
    until(lambda: model.health()["board_uptime_s"] is not None)
    health = model.health()
    assert health["temperature_c"] == 41.5
    assert health["arena_bytes"] is None or health["arena_bytes"] > 10_000
    assert health["board_resets"] == 0
    assert health["rss_mb"] is None  # the bridge's own memory is not the board's
    assert model.info()["board"] == "stonechat peer"


def test_another_bundle_than_the_boards_is_refused(desk, bundle, tmp_path):
    other = Bundle.open(variant(bundle, tmp_path / "other", "2", {"model.tflite": b"other weights"}, name="other"))
    with pytest.raises(ConfigurationError, match="does not run the bundle 'other': its model is"):
        SerialModel(Link(str(desk.path)), other).open(30)


def test_a_board_that_takes_tokens_needs_a_bundle(desk):
    with pytest.raises(ConfigurationError, match="--bundle DIR"):
        SerialModel(Link(str(desk.path))).open(30)


def test_a_firmware_with_its_own_tokenizer_needs_none(bundle, tmp_path, local):
    desk = Desk(tmp_path, bundle, text=True)
    model = SerialModel(Link(str(desk.path)))
    try:
        model.open(30)
        same(answer(model, max_new=40, sampling=DRAW), local(max_new=40, sampling=DRAW))
        with pytest.raises(ConfigurationError, match="zero byte"):
            model.generate("a\0b")
    finally:
        model.close()
        desk.close()


class TestPortsWithoutABoard:
    def test_no_such_port(self, tmp_path):
        with pytest.raises(UnreachableError, match="cannot be opened: No such file or directory"):
            Link(str(tmp_path / "ttyACM7")).open(1)

    def test_no_such_kind_of_port(self):
        with pytest.raises(ConfigurationError, match="expected a device file"):
            Link("ftp://board").open(1)

    @pytest.mark.parametrize("kind", ["socket", "rfc2217"])
    def test_an_address_without_a_port(self, kind):
        with pytest.raises(ConfigurationError, match="the TCP port is missing"):
            Link(f"{kind}://localhost").open(1)

    def test_a_file_that_is_no_port(self):
        with pytest.raises(UnreachableError, match="/dev/null cannot be opened: it is no serial port"):
            Link("/dev/null").open(1)

    @pytest.mark.parametrize("kind", ["socket", "rfc2217"])
    def test_nobody_listens(self, kind):
        with pytest.raises(UnreachableError, match=r":1 cannot be opened: Connection refused\.$"):
            Link(f"{kind}://127.0.0.1:1").open(1)

    def test_a_line_that_another_program_has_takes_no_second(self, monkeypatch):
        """As QEMU and serial servers do it: the connection is never accepted. Here nobody waits pyserial's 5 s."""

        def never_accepted(*where, **how):
            raise TimeoutError("timed out")

        monkeypatch.setattr("socket.create_connection", never_accepted)
        with pytest.raises(UnreachableError, match=r"timed out\. Another program may be connected to it"):
            Link("socket://127.0.0.1:7333").open(1)

    def test_nothing_answers(self):
        own, others = os.openpty()
        tty.setraw(others)
        with pytest.raises(UnreachableError, match=r"nothing answers within 0\.3 s"):
            Link(os.ttyname(others)).open(0.3)
        os.close(own)
        os.close(others)

    def test_a_line_that_another_program_has_says_nothing_to_the_next_one(self):
        """The system accepts the connection; the board's server, which has one client, does not."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(UnreachableError, match=r"Check that no other program \(a flash, a bridge, a chat\)"):
                Link(f"socket://127.0.0.1:{port}").open(0.3)

    def test_something_else_talks(self, desk):
        desk.spoil = lambda data: b"$GPGGA,123519,4807.038,N\r\n" * (len(data) // 20)
        with pytest.raises(UnreachableError, match=r"none of them is a frame.*GPGGA"):
            Link(str(desk.path)).open(4)

    def test_a_port_that_another_bridge_has(self, desk, model):
        with pytest.raises(UnreachableError, match="Another program has it open"):
            Link(str(desk.path)).open(1)
