"""A broker that is stopped in order, as by `systemctl restart`: it publishes the last wills of healthy devices."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from paho.mqtt import publish

from device_runtime.client.exchange import GRACE_S
from device_runtime.client.last_wills import BROKER_ENDS_S, RETURNS_S
from device_runtime.client.remote import RemoteAnswer, RemoteModel
from device_runtime.client.roll_call import DeviceReport, FleetWatch, roll_call
from device_runtime.device.service import Service
from device_runtime.errors import UnreachableError
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.messages import DeviceState, State
from tests.support.brokers import Broker, await_ready
from tests.support.scripted_fleet import Device, await_state, fleet_file, wait_until
from tests.support.scripted_model import ScriptedModel

WORDS = ["Once", " upon", " a", " time."]
STORY = "".join(WORDS)


@pytest.fixture(params=["forgets", "remembers"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """With and without what it retains on the disk: then it comes back with the last wills of its own end."""
    made = Broker(tmp_path, remembers=request.param == "remembers")
    made.start()
    yield made
    made.stop()


@contextlib.contextmanager
def serving(folder: Path, broker: Broker, model: ScriptedModel, pool: str | None = None) -> Iterator[Service]:
    config = DeviceConfig("off-pi", broker.address(), folder / "state", pool=pool)
    service = Service(config, lambda name: model)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        await_ready(broker.port, "off-pi")
        yield service
    finally:
        service.stop()
        thread.join(60)
        assert not thread.is_alive()


def listen(answer: RemoteAnswer) -> SimpleNamespace:
    """Iterate an answer aside: what it said, and how it ended."""
    heard = SimpleNamespace(pieces=[], error=None)

    def run() -> None:
        try:
            heard.pieces.extend(iter(answer))
        except UnreachableError as error:
            heard.error = str(error)

    heard.thread = threading.Thread(target=run)
    heard.thread.start()
    return heard


def gone(remote: RemoteModel) -> bool:
    return not remote._exchange.connected


class TestADeviceThatIsWell:
    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    def test_its_answer_goes_on(self, tmp_path: Path, broker: Broker, protocol: Literal["5", "3.1.1"]) -> None:
        model = ScriptedModel(WORDS, gated=True)
        with serving(tmp_path, broker, model), RemoteModel(broker.address(protocol), "off-pi") as remote:
            heard = listen(answer := remote.generate("Tell me a story"))
            model.gate.release()
            wait_until(lambda: heard.pieces or len(model.asked) == 1)
            broker.stop()
            wait_until(lambda: gone(remote))
            time.sleep(1.5 * BROKER_ENDS_S)  # beyond the time in which a `lost` is doubted
            broker.start()
            await_state(broker.port, "off-pi", lambda state: state["state"] == "busy")
            model.gate.release(len(WORDS) + 1)
            heard.thread.join(60)
            assert (heard.error, "".join(heard.pieces)) == (None, STORY)
            assert answer.final.text == STORY and len(model.asked) == 1

    def test_an_answer_that_came_before_its_client_was_back_comes_again(self, tmp_path: Path, broker: Broker) -> None:
        model = ScriptedModel(WORDS, gated=True)
        with serving(tmp_path, broker, model), RemoteModel(broker.address(), "off-pi") as remote:
            remote._exchange._client._paho.reconnect_delay_set(8, 8)  # the device is back after 1 s
            heard = listen(remote.generate("Tell me a story"))
            wait_until(lambda: len(model.asked) == 1)
            broker.stop()
            wait_until(lambda: gone(remote))
            model.gate.release(len(WORDS) + 1)
            broker.start()
            await_state(broker.port, "off-pi", lambda state: state["state"] == "ready")
            assert gone(remote)
            heard.thread.join(60)
            assert (heard.error, "".join(heard.pieces)) == (None, STORY)
            assert len(model.asked) == 1

    def test_an_answer_comes_that_was_said_while_only_its_client_was_away(self, tmp_path: Path, broker: Broker) -> None:
        model = ScriptedModel(WORDS, gated=True)
        with serving(tmp_path, broker, model), RemoteModel(broker.address(), "off-pi") as remote:
            paho = remote._exchange._client._paho
            paho.reconnect_delay_set(3, 3)
            heard = listen(remote.generate("Tell me a story"))
            wait_until(lambda: len(model.asked) == 1)
            paho.socket().shutdown(socket.SHUT_RDWR)
            wait_until(lambda: gone(remote))
            model.gate.release(len(WORDS) + 1)
            await_state(broker.port, "off-pi", lambda state: state["state"] == "ready")
            assert gone(remote)
            heard.thread.join(30)  # its timeout is 60 s
            assert (heard.error, "".join(heard.pieces)) == (None, STORY)
            assert len(model.asked) == 1

    def test_one_that_is_cancelled_while_its_client_is_away_ends(self, tmp_path: Path, broker: Broker) -> None:
        model = ScriptedModel(WORDS, gated=True)
        with serving(tmp_path, broker, model), RemoteModel(broker.address(), "off-pi") as remote:
            paho = remote._exchange._client._paho
            paho.reconnect_delay_set(3, 3)
            heard = listen(answer := remote.generate("Tell me a story"))
            wait_until(lambda: len(model.asked) == 1)
            paho.socket().shutdown(socket.SHUT_RDWR)
            wait_until(lambda: gone(remote))
            model.gate.release(len(WORDS) + 1)
            await_state(broker.port, "off-pi", lambda state: state["state"] == "ready")
            answer.cancel()
            assert gone(remote)
            heard.thread.join(30)  # its timeout is 60 s
            assert (heard.error, answer.final.text, answer.final.finish) == (None, STORY, "stop")

    def test_it_is_asked_while_the_broker_is_away(self, tmp_path: Path, broker: Broker) -> None:
        """The request is not handed to a broker to which the device is not back: it would drop it."""
        model = ScriptedModel(WORDS)
        with serving(tmp_path, broker, model) as service, RemoteModel(broker.address(), "off-pi") as remote:
            service._client._paho.reconnect_delay_set(8, 8)  # its client is back after 1 s
            assert "".join(remote.generate("Tell me a story")) == STORY
            broker.stop()
            wait_until(lambda: gone(remote))
            heard = listen(remote.generate("Tell me another"))
            broker.start()
            wait_until(lambda: not gone(remote))
            heard.thread.join(60)
            assert (heard.error, "".join(heard.pieces)) == (None, STORY)

    def test_it_is_asked_by_who_comes_before_it_is_back(self, tmp_path: Path, broker: Broker) -> None:
        model = ScriptedModel(WORDS)
        with serving(tmp_path, broker, model) as service:
            service._client._paho.reconnect_delay_set(1, 1)
            broker.stop()
            broker.start()
            with RemoteModel(broker.address(), "off-pi") as remote:
                assert not service._client.connected
                assert "".join(remote.generate("Tell me a story")) == STORY

    def test_it_says_that_it_is_there_where_its_last_will_came_late(self, tmp_path: Path, broker: Broker) -> None:
        """As of a connection that a cluster's node takes for alive after the device is at another."""
        model = ScriptedModel(WORDS)
        with serving(tmp_path, broker, model) as service:
            will = State(DeviceState.LOST, service._device.boot).to_json()
            publish.single(service._device.topics.state, will, qos=1, retain=True, port=broker.port)
            with RemoteModel(broker.address(), "off-pi") as remote:
                started_s = time.monotonic()
                assert "".join(remote.generate("Tell me a story")) == STORY
                assert time.monotonic() - started_s < RETURNS_S / 2

    def test_a_pool_answers_who_comes_before_it_is_back(self, tmp_path: Path, broker: Broker) -> None:
        model = ScriptedModel(WORDS)
        with serving(tmp_path, broker, model, pool="herd") as service:
            service._client._paho.reconnect_delay_set(1, 1)
            broker.stop()
            broker.start()
            with RemoteModel(broker.address(), pool="herd") as remote:
                assert not service._client.connected
                assert "".join(remote.generate("Tell me a story")) == STORY
            assert len(model.asked) == 1

    def test_a_pool_answers(self, tmp_path: Path, broker: Broker) -> None:
        model = ScriptedModel(WORDS, gated=True)
        with (
            serving(tmp_path, broker, model, pool="herd"),
            RemoteModel(broker.address(), pool="herd") as remote,
        ):
            heard = listen(remote.generate("Tell me a story"))
            wait_until(lambda: len(model.asked) == 1)
            broker.stop()
            wait_until(lambda: gone(remote))
            broker.start()
            model.gate.release(100)
            heard.thread.join(60)
            assert (heard.error, "".join(heard.pieces)) == (None, STORY)


class TestADeviceThatIsNot:
    def started(self, folder: Path, broker: Broker, more: str = "") -> Device:
        device = Device(folder, broker.port, "off-pi", fleet_file(folder, {"off-pi": more}))
        device.hold.touch()
        device.start(ready=True)
        return device

    def test_one_that_vanishes_while_the_broker_stays_is_lost(self, tmp_path: Path, broker: Broker) -> None:
        device = self.started(tmp_path, broker)
        try:
            with RemoteModel(broker.address(), "off-pi") as remote:
                heard = listen(remote.generate("Tell me a story"))
                await_state(broker.port, "off-pi", lambda state: state["state"] == "busy")
                started_s = time.monotonic()
                device.kill()
                heard.thread.join(60)  # not as long as its timeout, which is 60 s
                assert time.monotonic() - started_s < 30
                assert "is lost: it vanished without a word. Check its power and network." in heard.error
                with pytest.raises(UnreachableError, match="is lost"):  # asked again, it is known
                    list(remote.generate("Tell me a story"))
                broker.stop()  # nor does a broker that restarts later raise a doubt
                wait_until(lambda: gone(remote))
                with pytest.raises(UnreachableError, match="is lost"):
                    list(remote.generate("Tell me a story", timeout_s=30))
        finally:
            device.kill()

    @pytest.mark.parametrize("whom", [{"device": "off-pi"}, {"pool": "herd"}], ids=["device", "pool"])
    def test_one_that_hangs_is_not_waited_for_by_who_has_cancelled(
        self, tmp_path: Path, broker: Broker, whom: dict[str, str]
    ) -> None:
        device = self.started(tmp_path, broker, ", pool: herd")
        try:
            with RemoteModel(broker.address(), **whom) as remote:
                heard = listen(answer := remote.generate("Tell me a story"))
                await_state(broker.port, "off-pi", lambda state: state["state"] == "busy")
                wait_until(lambda: answer.device == "off-pi")
                device.freeze()
                started_s = time.monotonic()
                answer.cancel()
                heard.thread.join(60)
                assert time.monotonic() - started_s < 2 * GRACE_S  # its timeout is 60 s
                assert (heard.error, heard.pieces) == (None, [])
                assert (answer.final.text, answer.final.finish) == ("", "cancelled")
        finally:
            device.kill()

    @pytest.mark.parametrize("timeout_s", [60, 0.5])
    def test_one_that_is_lost_is_said_to_be_so_soon(self, tmp_path: Path, broker: Broker, timeout_s: float) -> None:
        device = self.started(tmp_path, broker)
        device.kill()
        await_state(broker.port, "off-pi", lambda state: state["state"] == "lost")
        with RemoteModel(broker.address(), "off-pi") as remote:
            for soonest_s, latest_s in ((min(timeout_s, 0.9 * RETURNS_S), 1.5 * RETURNS_S), (0, 0.5)):
                started_s = time.monotonic()
                with pytest.raises(UnreachableError, match="is lost: it vanished without a word"):
                    list(remote.generate("Tell me a story", timeout_s=timeout_s))
                assert soonest_s <= time.monotonic() - started_s < latest_s
                wait_until(lambda: not remote._exchange.doubts("off-pi"))

    def test_one_that_restarts_meanwhile_has_forgotten_what_it_was_asked(self, tmp_path: Path, broker: Broker) -> None:
        device = self.started(tmp_path, broker)
        try:
            with RemoteModel(broker.address(), "off-pi") as remote:
                heard = listen(remote.generate("Tell me a story"))
                await_state(broker.port, "off-pi", lambda state: state["state"] == "busy")
                broker.stop()
                wait_until(lambda: gone(remote))
                device.kill()
                device.start()
                broker.start()
                heard.thread.join(60)
                assert "has restarted in the middle of its answer, which is lost. Ask again." in heard.error
        finally:
            device.kill()

    def test_one_that_does_not_come_back_is_said_to_be_away(self, tmp_path: Path, broker: Broker) -> None:
        device = self.started(tmp_path, broker)
        try:
            with RemoteModel(broker.address(), "off-pi") as remote:
                heard = listen(remote.generate("Tell me a story", timeout_s=6))
                await_state(broker.port, "off-pi", lambda state: state["state"] == "busy")
                broker.stop()
                wait_until(lambda: gone(remote))
                device.kill()
                broker.start()
                heard.thread.join(60)
                assert f"has not come back within 6 s since the connection to the broker at {broker.address()}" in (
                    heard.error
                )
        finally:
            device.kill()

    def test_a_broker_that_does_not_come_back_is_said_to_be_away(self, tmp_path: Path, broker: Broker) -> None:
        model = ScriptedModel(WORDS, gated=True)
        with serving(tmp_path, broker, model), RemoteModel(broker.address(), "off-pi") as remote:
            heard = listen(remote.generate("Tell me a story", timeout_s=1))
            wait_until(lambda: len(model.asked) == 1)
            broker.stop()
            heard.thread.join(60)
            assert (
                f"gave no answer within 1 s: the connection to the broker at {broker.address()} is gone" in heard.error
            )


class TestAListOfDevices:
    """`stonechat fleet`, and the page of the dashboard."""

    @pytest.fixture
    def remembering(self, tmp_path: Path) -> Iterator[Broker]:
        made = Broker(tmp_path, remembers=True)
        made.start()
        yield made
        made.stop()

    def test_a_device_that_is_not_back_at_a_broker_that_was_restarted_is_not_called_lost(
        self, tmp_path: Path, remembering: Broker
    ) -> None:
        with serving(tmp_path, remembering, ScriptedModel(WORDS)) as service:
            service._client._paho.reconnect_delay_set(1.5, 1.5)  # after the start of a call, and within RETURNS_S of it
            remembering.stop()
            wait_until(lambda: not service._client.connected)
            remembering.start()
            found = roll_call(remembering.address())
            assert found["off-pi"].state is not None and found["off-pi"].state.state is DeviceState.READY

    @pytest.mark.parametrize("wait_s", [None, 0.2])
    def test_one_that_is_lost_is_said_to_be_so(self, tmp_path: Path, remembering: Broker, wait_s: float | None) -> None:
        lost = State(DeviceState.LOST, 3)
        publish.single("stonechat/1/off-pi/out/state", lost.to_json(), qos=1, retain=True, port=remembering.port)
        more = {} if wait_s is None else {"wait_s": wait_s, "whole_wait": True}
        assert roll_call(remembering.address(), **more)["off-pi"].state == lost

    def test_who_watches_is_told_of_no_last_will_of_the_broker_s_own_end(self, tmp_path: Path, broker: Broker) -> None:
        told: list[DeviceState | None] = []

        def note(report: DeviceReport, kind: str) -> None:
            told.append(report.state.state if report.state is not None else None)

        watch = FleetWatch(broker.address(), on_news=note)
        with serving(tmp_path, broker, ScriptedModel(WORDS)) as service:
            watch.open()
            try:
                wait_until(lambda: DeviceState.READY in told)
                service._client._paho.reconnect_delay_set(2, 2)  # who watches is back after 1 s
                del told[:]
                broker.stop()
                wait_until(lambda: not watch.connected and not service._client.connected)
                broker.start()
                wait_until(lambda: watch.connected)
                assert not service._client.connected
                wait_until(lambda: DeviceState.READY in told)
                time.sleep(1.1 * RETURNS_S)
                assert set(told) <= {None, DeviceState.READY}
            finally:
                watch.close()

    def test_who_watches_is_told_of_a_device_that_vanishes(self, tmp_path: Path, broker: Broker) -> None:
        told: list[DeviceReport] = []
        device = Device(tmp_path, broker.port, "off-pi", fleet_file(tmp_path, {"off-pi": ""}))
        device.start(ready=True)
        watch = FleetWatch(broker.address(), on_news=lambda report, kind: told.append(report))
        watch.open()
        try:
            wait_until(lambda: "off-pi" in watch.devices())
            device.kill()
            wait_until(lambda: told[-1].state is not None and told[-1].state.state is DeviceState.LOST)
            assert watch.devices()["off-pi"].state == told[-1].state
        finally:
            watch.close()
            device.kill()

    def test_who_watches_is_told_that_a_device_has_not_come_back(self, tmp_path: Path, broker: Broker) -> None:
        told: list[State | None] = []
        device = Device(tmp_path, broker.port, "off-pi", fleet_file(tmp_path, {"off-pi": ""}))
        device.start(ready=True)
        watch = FleetWatch(broker.address(), on_news=lambda report, kind: told.append(report.state))
        watch.open()
        try:
            wait_until(lambda: bool(told))
            broker.stop()
            wait_until(lambda: not watch.connected)
            device.kill()
            del told[:]
            broker.start()
            wait_until(lambda: watch.connected and not watch.doubts("off-pi") and bool(told))
            kept = State(DeviceState.LOST, 1) if broker._lines else None
            assert told[-1] == watch.devices()["off-pi"].state == kept
        finally:
            watch.close()
            device.kill()
