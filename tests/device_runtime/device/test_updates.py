"""Updates over the air, between a real device with a model that runs, a real broker, and the operator's sender."""

from __future__ import annotations

import http.server
import itertools
import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.trust import TrustStore
from device_runtime.device.extensions import updates
from device_runtime.device.extensions.updates import UpdatePlan, Updates
from device_runtime.device.service import Service
from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import BundleError, ConfigurationError, UnreachableError
from device_runtime.fleet.settings import DeviceConfig, ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState, Info, State
from device_runtime.mqtt.ota_messages import Order, Phase, Report, parse_report
from device_runtime.mqtt.topics import DeviceTopics
from device_runtime.update import chunk_source
from device_runtime.update.active import read_state
from device_runtime.update.http_source import HttpSource
from device_runtime.update.install import install
from device_runtime.update.policy import Policy
from device_runtime.update.slots import lock
from device_runtime.update.staging import Staging
from device_runtime.update.state import Last
from device_runtime.update.trial import ready_bundle, try_pending
from tests.support.update_bundles import confirm, variant
from toolkit.rollout.sender import Sender
from toolkit.signing.bundles import sign_bundle
from toolkit.signing.keys import SigningKey, new_key

QUESTION = "hello"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return new_key("plant", tmp_path_factory.mktemp("keys"), None)


@pytest.fixture(scope="module")
def bundles(pi_bundle: Path, key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Version 1, which runs; 2, which does too; `broken`, which answers something else. Signed. Read only."""
    folder = tmp_path_factory.mktemp("versions")
    with LanguageModel.open(pi_bundle, threads=1) as model:
        said = "".join(model.generate([{"role": "user", "content": QUESTION}], max_new=4))
    made = {}
    for version, counter, expect in (("1", 1, said), ("2", 2, said), ("broken", 3, "what it never says")):
        trial = {"prompt": QUESTION, "expect": expect, "max_new": 4}
        made[version] = variant(pi_bundle, folder / version, version, security_counter=counter, trial=trial)
        sign_bundle(made[version], {}, [key])
    made["unsigned"] = variant(pi_bundle, folder / "unsigned", "unsigned", security_counter=4)
    return made


class Device:
    """A running device with a model in a slot folder."""

    def __init__(self, service: Service, folder: Path, name: str) -> None:
        self.service, self.folder, self.name = service, folder, name
        self.thread = threading.Thread(target=service.run)

    def stop(self) -> None:
        self.service.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def device(port: int, bundles: dict[str, Path], key: SigningKey, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """`device()` serves version 1; `device(NAME)` goes on as that device after it was stopped."""
    running: list[Device] = []

    def start(name: str | None = None, *, trust: bool = True, model: str = "assistant") -> Device:
        fresh = name is None
        name = name or f"ota-{next(_numbers)}"
        folder = tmp_path / name / "models" / "assistant"
        if fresh:
            with lock(folder, make=True) as slots:
                install(bundles["1"], slots)
                try_pending(slots, threads=1)
            (tmp_path / name / "keys").mkdir()
            if trust:
                (tmp_path / name / "keys" / "plant.pub").write_text(key.public.to_text())
        store = TrustStore.load(tmp_path / name / "keys")
        service = Service(
            DeviceConfig(
                name,
                BrokerAddress("127.0.0.1", port),
                tmp_path / name / "state",
                models=(ModelSettings("assistant"),),
            ),
            lambda model: LanguageModel.open(ready_bundle(folder, 1), threads=1),
            updates=UpdatePlan({"assistant": folder}, Policy(store)),
        )
        running.append(Device(service, folder, name))
        running[-1].thread.start()
        return running[-1]

    yield start
    for one in running:
        one.stop()


class Operator:
    """A sender, and what it has heard from one device."""

    def __init__(self, sender: Sender, device: Device) -> None:
        self.sender, self.device = sender, device
        self.states: list[DeviceState] = []
        self.infos: list[Info] = []
        sender.watch(device.name)
        self.until_ready()

    def until_ready(self) -> None:
        """It may be so already."""
        if self.states[-1:] != [DeviceState.READY]:
            self.until(lambda said: isinstance(said, State) and said.state is DeviceState.READY)

    def order(self, session: str | None = None, **fields: Any) -> Order:
        order = Order(session or secrets.token_hex(8), "assistant", self.sender.manifest_sha256)
        order = Order(**vars(order) | fields)
        self.sender.order(self.device.name, order)
        return order

    def until(self, wanted: Callable[[object], bool], timeout_s: float = 60.0) -> object:
        end_s = time.monotonic() + timeout_s
        while True:
            _, said = self.sender.heard.get(timeout=max(0.01, end_s - time.monotonic()))
            if isinstance(said, State):
                self.states.append(said.state)
            if isinstance(said, Info):
                self.infos.append(said)
            if wanted(said):
                return said

    def end_of(self, order: Order) -> Report:
        report = self.until(lambda s: isinstance(s, Report) and s.session == order.session and s.phase.ended)
        assert isinstance(report, Report)
        return report


@pytest.fixture
def operator(port: int, device: Callable[..., Device]) -> Iterator[Callable[..., Operator]]:
    """`operator(bundle)`: somebody who sends that bundle to a device with version 1."""
    senders: list[Sender] = []

    def start(bundle: Path, to: Device | None = None) -> Operator:
        sender = Sender(BrokerAddress("127.0.0.1", port), Bundle.open(bundle))
        sender.__enter__()
        senders.append(sender)
        return Operator(sender, to or device())

    yield start
    for sender in senders:
        sender.__exit__()


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """An HTTP server that answers every GET so; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(folder: Path, cut_after: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server for a folder, with ranges; it hangs up once after `cut_after` bytes of the tokenizer."""
    asked: list[str] = []
    cuts = [cut_after] if cut_after else []

    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        path = folder / self.path.lstrip("/")
        asked.append(f"{path.name} {self.headers.get('Range', '')}".strip())
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = start + cuts.pop() if cuts and path.name == "tokenizer.json" else len(data)
        self.wfile.write(data[start:end])
        self.close_connection = True
        return None

    with answering(answer) as url:
        yield url, asked


def wait_for(what: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def version_of(device: Device) -> str:
    state = read_state(device.folder)
    assert state.active is not None
    return Bundle.open(device.folder / state.active).manifest.version


def test_a_signed_bundle_is_fetched_tried_and_serves(operator, bundles):
    o = operator(bundles["2"])
    report = o.end_of(o.order())
    assert (report.phase, report.version) == (Phase.CONFIRMED, "2")
    assert report.tokens_per_s is not None and report.tokens_per_s > 0
    assert version_of(o.device) == "2"
    assert o.states[-2:] == [DeviceState.UPDATING, DeviceState.READY]  # who reads the report finds it online
    assert o.infos[-1].bundles == {"assistant": "gqa-tied 2"}
    assert not (o.device.folder / "incoming").exists()


def test_a_device_whose_bundle_is_of_before_an_upgrade_is_online_and_takes_the_next(operator, device, bundles, key):
    first = device()
    first.stop()
    active = first.folder / read_state(first.folder).active
    manifest = json.loads((active / "manifest.json").read_text())
    manifest["counts"]["pi"]["signatures"] = 3  # as graphs had them
    (active / "manifest.json").write_text(json.dumps(manifest))
    sign_bundle(active, {}, [key])

    o = operator(bundles["2"], device(first.name))
    while not o.infos:
        o.until(lambda said: isinstance(said, Info))
    assert "3 signatures" in o.infos[-1].not_open["assistant"]
    assert "stonechat deploy" in o.infos[-1].not_open["assistant"]
    assert o.infos[-1].bundles is None
    assert o.end_of(o.order()).phase is Phase.CONFIRMED
    assert o.infos[-1].bundles == {"assistant": "gqa-tied 2"}
    assert o.infos[-1].not_open is None


def test_only_what_has_changed_travels(operator, bundles):
    o = operator(bundles["2"])
    sent: list[str] = []
    send = o.sender._send
    o.sender._send = lambda device, need: (sent.append(need.file), send(device, need))
    assert o.end_of(o.order()).phase is Phase.CONFIRMED
    assert set(sent) == {"manifest.json", "manifest.sig", "tokenizer.json"}


def test_a_bundle_that_fails_its_trial_goes_and_the_old_one_serves_on(operator, bundles):
    o = operator(bundles["broken"])
    report = o.end_of(o.order())
    assert (report.phase, report.code) == (Phase.ROLLED_BACK, "rolled_back")
    assert "what it never says" in report.message
    assert version_of(o.device) == "1"
    o.until_ready()


def test_limits_of_the_order_are_kept_in_the_trial(operator, bundles):
    o = operator(bundles["2"])
    report = o.end_of(o.order(min_tps=1e8))
    assert report.phase is Phase.ROLLED_BACK
    assert "the floor is 1e+08 tok/s" in report.message


@pytest.mark.parametrize(
    ("bundle", "code", "message"),
    [("unsigned", "signature", "not signed"), ("1", None, None)],
)
def test_what_is_not_welcome_is_refused_before_a_file_of_it_travels(operator, bundles, bundle, code, message):
    o = operator(bundles[bundle])
    sent: list[str] = []
    send = o.sender._send
    o.sender._send = lambda device, need: (sent.append(need.file), send(device, need))
    report = o.end_of(o.order())
    assert set(sent) <= {"manifest.json", "manifest.sig"}
    assert report.code == code
    if message is not None:
        assert report.phase is Phase.REFUSED and message in report.message
    else:  # it runs already
        assert report.phase is Phase.CONFIRMED


def test_a_downgrade_is_refused_by_name(operator, device, bundles):
    o = operator(bundles["2"])
    assert o.end_of(o.order()).phase is Phase.CONFIRMED
    older = operator(bundles["1"], o.device)
    report = older.end_of(older.order())
    assert (report.phase, report.code) == (Phase.REFUSED, "signature")
    assert "does not go back" in report.message


def test_a_device_without_keys_takes_nothing_over_the_air(operator, device, bundles):
    o = operator(bundles["2"], device(trust=False))
    report = o.end_of(o.order())
    assert (report.phase, report.code) == (Phase.REFUSED, "signature")
    assert "has no keys" in report.message
    assert version_of(o.device) == "1"


def test_a_model_that_is_not_there_is_refused_by_name(operator, bundles):
    o = operator(bundles["2"])
    report = o.end_of(o.order(model="other"))
    assert (report.phase, report.code) == (Phase.REFUSED, "configuration")
    assert "it has 'assistant'" in report.message


def test_an_order_that_comes_again_is_answered_with_what_came_of_it(operator, bundles):
    o = operator(bundles["broken"])
    order = o.order()
    first = o.end_of(order)
    o.sender.order(o.device.name, order)
    assert o.end_of(order) == first


def test_the_answer_outlives_a_restart_of_the_device(operator, device, bundles):
    o = operator(bundles["broken"])
    order = o.order()
    first = o.end_of(order)
    o.device.stop()
    again = operator(bundles["broken"], device(o.device.name))
    again.sender.order(o.device.name, order)
    assert again.end_of(order) == first


def test_a_fetch_that_was_cut_goes_on_where_it_stopped(operator, device, bundles, monkeypatch):
    monkeypatch.setattr(chunk_source, "WINDOW_BYTES", 1024)
    o = operator(bundles["2"])
    send, asked = o.sender._send, []

    def only_the_first_pieces(name, need):
        if need.file != "tokenizer.json" or need.offset < 2048:
            send(name, need)
        else:
            asked.append(need.offset)

    o.sender._send = only_the_first_pieces
    o.order()
    wait_for(lambda: bool(asked))
    o.device.stop()
    again = operator(bundles["2"], device(o.device.name))
    offsets: list[int] = []
    send_again = again.sender._send
    again.sender._send = lambda d, n: (offsets.append(n.offset) if n.file == "tokenizer.json" else 0, send_again(d, n))
    assert again.end_of(again.order()).phase is Phase.CONFIRMED
    assert min(offsets) >= 2048


def test_pieces_that_nobody_asked_for_and_junk_change_nothing(operator, peer, bundles):
    o = operator(bundles["2"])
    stranger = peer()
    for payload in (b"", b"{}", b"\xff\n\xff", b'{"session":"x","file":"model.tflite","offset":0,"size":3}\nabc'):
        stranger.publish(f"stonechat/1/{o.device.name}/in/ota/piece", payload)
        stranger.publish(f"stonechat/1/{o.device.name}/in/ota", payload)
    assert o.end_of(o.order()).phase is Phase.CONFIRMED


def test_an_order_that_nobody_serves_makes_room_for_the_next(operator, peer, bundles):
    o = operator(bundles["2"])
    forgotten = Order("forgotten", "assistant", o.sender.manifest_sha256)
    peer().publish(f"stonechat/1/{o.device.name}/in/ota", json.loads(forgotten.to_json()))
    o.until(lambda s: isinstance(s, Report) and s.session == "forgotten")
    order = o.order()
    report = o.end_of(forgotten)
    assert (report.phase, report.code) == (Phase.REFUSED, "unreachable")
    assert "called off" in report.message
    assert o.end_of(order).phase is Phase.CONFIRMED


def test_files_come_from_an_http_server_and_go_on_after_a_hang_up(operator, bundles, monkeypatch):
    monkeypatch.setattr(updates, "HttpSource", partial(HttpSource, pause_s=0.01))
    with serving(bundles["2"], cut_after=1000) as (url, asked):
        o = operator(bundles["2"])
        o.sender._send = lambda device, need: pytest.fail("it was asked for over MQTT")
        assert o.end_of(o.order(url=url)).phase is Phase.CONFIRMED
    assert asked == ["manifest.json", "manifest.sig", "tokenizer.json", "tokenizer.json bytes=1000-"]


class TestHttpSource:
    def test_a_file_that_is_not_there_is_empty(self, tmp_path):
        with serving(tmp_path) as (url, _):
            assert list(HttpSource(url).read("manifest.sig")) == []

    def test_a_server_that_is_not_there_is_unreachable(self, tmp_path):
        with serving(tmp_path) as (url, _):
            pass
        with pytest.raises(UnreachableError, match="refused"):
            list(HttpSource(url, pause_s=0.001).read("manifest.json"))

    def test_a_length_that_is_no_number_is_left_out(self):
        def answer(self: http.server.BaseHTTPRequestHandler) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "many")
            self.end_headers()
            self.wfile.write(b"content")

        with answering(answer) as url:
            assert b"".join(HttpSource(url).read("manifest.json")) == b"content"

    @pytest.mark.parametrize(("code", "asked"), [(429, 5), (503, 5), (400, 1), (403, 1)])
    def test_what_may_pass_is_tried_again_and_a_refusal_is_not(self, code, asked):
        tries: list[str] = []

        def answer(self: http.server.BaseHTTPRequestHandler) -> None:
            tries.append(self.path)
            self.send_error(code)

        with answering(answer) as url, pytest.raises((UnreachableError, BundleError), match=str(code)):
            list(HttpSource(url, pause_s=0.001).read("manifest.json"))
        assert len(tries) == asked

    def test_a_redirection_to_another_protocol_is_not_followed(self):
        def answer(self: http.server.BaseHTTPRequestHandler) -> None:
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1:1/manifest.json")
            self.end_headers()

        with answering(answer) as url, pytest.raises(UnreachableError, match="unknown url type: ftp"):
            list(HttpSource(url, pause_s=0.001).read("manifest.json"))

    @pytest.mark.parametrize("url", ["", "ftp://host/x", "http://", "http://host/?x=1", "http://[", "file:///etc"])
    def test_what_is_no_folder_of_a_server_is_refused(self, url):
        with pytest.raises(ConfigurationError, match="expected http"):
            HttpSource(url)


def test_nobody_is_heard_after_the_end(operator, bundles):
    """Messages of one device come in their order, so whatever it said of the first comes before the second."""
    o = operator(bundles["1"])
    o.end_of(o.order())
    second = o.order()
    said = o.until(lambda said: isinstance(said, Report))
    assert isinstance(said, Report) and said.session == second.session


class Alone:
    """The updates of a device without a broker: what it says is a list, and its trials are held here."""

    def __init__(self, folder: Path, key: SigningKey, bundle: Path, verdict: str = "confirmed") -> None:
        self.slots, self.keys, self.state_dir, self.said = folder / "model", folder / "keys", folder / "state", []
        self.verdict, self.trials = verdict, 0
        for path in (self.keys, self.state_dir):
            path.mkdir()
        (self.keys / "plant.pub").write_text(key.public.to_text())
        with lock(self.slots, make=True) as slots:
            install(bundle, slots)
            confirm(slots)
        self.start()

    def start(self) -> None:
        """As after a cut."""
        plan = UpdatePlan({"assistant": self.slots}, Policy(TrustStore.load(self.keys)))
        self.updates = Updates(cast(Any, self.device()), plan)
        self.updates.reopen = lambda model, meanwhile: self.trial(model)

    def device(self) -> SimpleNamespace:
        """As much of a device as updates use, apart from its models."""
        publish = lambda topic, payload, qos: self.said.append(payload)  # noqa: E731
        is_open = threading.Event()
        is_open.set()  # no trial of before the start is being held
        return SimpleNamespace(
            config=SimpleNamespace(state_dir=self.state_dir),
            lifecycle=SimpleNamespace(is_open=is_open),
            topics=DeviceTopics("alone"),
            client=SimpleNamespace(publish=publish),
            runner=SimpleNamespace(not_open={}),
        )

    def trial(self, model: str) -> None:
        self.trials += 1
        with lock(self.slots) as slots:
            if self.verdict == "confirmed":
                confirm(slots)
            else:
                slots.attempt()
                slots.give_back(Last("rolled_back", "gqa-tied", "2", "it took the board down"))
        if self.verdict == "cut":
            self.updates.stop()  # nobody is left to report

    def reports(self) -> list[Report]:
        found = [parse_report(payload) for payload in list(self.said)]
        return [report for report in found if isinstance(report, Report)]

    def end_of(self, session: str) -> Report:
        def ended() -> list[Report]:
            return [report for report in self.reports() if report.session == session and report.phase.ended]

        wait_for(lambda: bool(ended()))
        return ended()[-1]


@pytest.fixture
def alone(bundles, key, tmp_path) -> Iterator[Callable[..., Alone]]:
    made: list[Alone] = []

    def start(**fields: Any) -> Alone:
        made.append(Alone(tmp_path, key, bundles["1"], **fields))
        return made[-1]

    yield start
    for one in made:
        one.updates.stop()
        one.updates.join(60)


def order_of(bundle: Path, session: str, url: str | None) -> bytes:
    return Order(session, "assistant", Bundle.open(bundle).manifest_sha256, url).to_json()


def test_a_bundle_that_takes_the_board_down_is_not_tried_again_because_its_order_comes_again(alone, bundles):
    """The operator sends it after each reconnect: without this, the board would never come to rest."""
    device = alone(verdict="cut")
    with serving(bundles["2"]) as (url, _):
        order = order_of(bundles["2"], "one", url)
        device.updates.order(order)
        device.updates.join(60)
        assert device.trials == 1 and not any(report.phase.ended for report in device.reports())
        device.start()
        device.updates.order(order)
        report = device.end_of("one")
        assert (report.phase, report.message) == (Phase.ROLLED_BACK, "it took the board down")
        assert device.trials == 1
        device.verdict = "confirmed"
        device.updates.order(order_of(bundles["2"], "two", url))  # the operator's wish, and no echo
        assert device.end_of("two").phase is Phase.CONFIRMED


def test_a_trial_that_was_passed_at_the_next_start_is_reported(alone, bundles):
    device = alone(verdict="confirmed")
    device._trial, device.trial = device.trial, lambda model: device.updates.stop()
    device.start()
    with serving(bundles["2"]) as (url, asked):
        order = order_of(bundles["2"], "one", url)
        device.updates.order(order)
        device.updates.join(60)
        device._trial("assistant")  # by the start
        del asked[:]
        device.start()
        device.updates.order(order)
        assert device.end_of("one").phase is Phase.CONFIRMED
        assert asked == []


def test_a_key_that_is_retired_while_the_device_runs_signs_no_update_any_more(alone, bundles, tmp_path):
    device = alone()
    new_key("plant-2", tmp_path / "new", None)
    (device.keys / "retired").mkdir()
    (device.keys / "plant.pub").rename(device.keys / "retired" / "plant.pub")
    (tmp_path / "new" / "plant-2.pub").rename(device.keys / "plant-2.pub")
    with serving(bundles["2"]) as (url, _):
        device.updates.order(order_of(bundles["2"], "one", url))
        report = device.end_of("one")
    assert (report.phase, report.code) == (Phase.REFUSED, "signature")
    assert "retired" in report.message


def test_a_device_whose_keys_have_gone_takes_nothing(alone, bundles):
    device = alone()
    (device.keys / "plant.pub").unlink()
    with serving(bundles["2"]) as (url, asked):
        device.updates.order(order_of(bundles["2"], "one", url))
        assert device.end_of("one").phase is Phase.REFUSED
    assert asked == []


def test_a_server_that_trickles_does_not_hold_up_who_orders_something_else(alone, bundles):
    """Byte after byte, without an end: no timeout of a socket ever passes."""
    device, done = alone(), threading.Event()

    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while not done.wait(0.01):
            self.wfile.write(b" ")

    with answering(answer) as slow, serving(bundles["2"]) as (url, _):
        device.updates.order(order_of(bundles["2"], "slow", slow))
        wait_for(lambda: bool(device.said))
        device.updates.order(order_of(bundles["2"], "good", url))
        try:
            assert "called off" in device.end_of("slow").message
            assert device.end_of("good").phase is Phase.CONFIRMED
        finally:
            done.set()


def test_every_order_is_answered_however_many_come_at_once(alone, bundles):
    device, go_on = alone(), threading.Event()

    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        go_on.wait(60)
        self.send_error(404)

    with answering(answer) as url:
        for number in range(5):
            device.updates.order(order_of(bundles["2"], f"order-{number}", url))
        go_on.set()
        ends = [device.end_of(f"order-{number}") for number in range(5)]
    assert ["called off" in end.message for end in ends[1:]] == [True, True, True, False]
    assert "there is no http://" in ends[-1].message and "expected the URL of a bundle's folder" in ends[-1].message


def test_a_beginning_that_a_loss_of_power_has_damaged_is_fetched_again(alone, bundles):
    device = alone()
    manifest, signature = ((bundles["2"] / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    with lock(device.slots) as slots:
        Staging.begin(slots, Policy().judge(manifest, signature, 0))
    (device.slots / "incoming" / ".tokenizer.json.part").write_bytes(bytes(1000))  # zeros: its length was flushed
    with serving(bundles["2"]) as (url, asked):
        device.updates.order(order_of(bundles["2"], "one", url))
        assert device.end_of("one").phase is Phase.CONFIRMED
    assert asked == ["manifest.json", "manifest.sig", "tokenizer.json bytes=1000-", "tokenizer.json"]


def test_a_server_with_another_file_is_asked_once(alone, bundles, tmp_path):
    device = alone()
    other = Path(shutil.copytree(bundles["2"], tmp_path / "other"))
    content = (other / "tokenizer.json").read_bytes()
    (other / "tokenizer.json").write_bytes(b"?" + content[1:])
    with serving(other) as (url, asked):
        device.updates.order(order_of(bundles["2"], "one", url))
        report = device.end_of("one")
    assert report.phase is Phase.REFUSED and "not the file that the manifest describes" in report.message
    assert asked == ["manifest.json", "manifest.sig", "tokenizer.json"]
