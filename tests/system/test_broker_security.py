"""A broker that `stonechat broker init` has made: who gets in, and what reaches whom.

Everything is asserted on delivery. mosquitto says "granted" to a subscription that its access list forbids, and
acknowledges a message that it then drops.
"""

from __future__ import annotations

import json
import queue
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress, Certificates
from device_runtime.mqtt.client import Client
from tests.support.brokers import free_port, made_broker
from toolkit.broker.access import access_list, is_current, parse_list
from toolkit.cli import main

pytest.importorskip("cryptography", reason="cryptography is not installed (the extra `sign`)")

STONECHAT = [sys.executable, "-m", "toolkit"]
PATIENCE_S = 60.0  # with what will come: a busy machine is no fault of what is tested
FLEET = """\
schema: 1
broker: {{url: "mqtts://localhost:{port}", certs: {certs}}}
models:
  tiny: {{bundle: "{bundle}", threads: 1, max_new: 8}}
devices:
  north: {{model: tiny, links: [too-hot], pool: herd}}
  south: {{model: tiny, pool: flock}}
links:
  - name: too-hot
    from: plant/+/air
    prompt: "{{{{ temp_c }}}}"
    to: plant/{{{{ topic[1] }}}}/advice
"""


@dataclass
class Site:
    """A running broker, its folder and its port."""

    folder: Path
    port: int
    keys: str = "broker"  # in the folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pi_bundle: Path) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("site"), free_port()
    fleet = folder / "fleet.yaml"
    fleet.write_text(FLEET.format(port=port, certs=folder / "broker", bundle=pi_bundle))
    flags = ["--host", "localhost", "--port", str(port), "--fleet", str(fleet), "--client", "phone", "--client", "spy"]
    sensors = ["--sensor", "probe=plant/+/air", "--home-assistant", "ha", "--operator", "chief"]
    assert main(["broker", "init", str(folder / "broker"), *flags, *sensors]) == 0
    with made_broker(folder / "broker", port):
        yield Site(folder, port)


class User:
    """Plain paho with one user's certificate: whoever has the key, with any library."""

    def __init__(self, site: Site, name: str, client_id: str = "") -> None:
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        certs = Certificates.of(site.folder / site.keys, name)
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        self.client.tls_set_context(certs.context())
        self.client.on_message = lambda c, u, m: self.heard.put((m.topic, m.payload))
        self.client.connect("localhost", site.port)
        self.client.loop_start()

    def subscribe(self, *filters: str) -> None:
        done = queue.Queue()
        self.client.on_subscribe = lambda *_: done.put(1)
        self.client.subscribe([(f, 1) for f in filters])
        done.get(timeout=PATIENCE_S)

    def publish(self, topic: str, payload: bytes = b"x", **properties: object) -> None:
        p = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(p, name, value)
        sent = self.client.publish(topic, payload, qos=1, properties=p)
        sent.wait_for_publish(PATIENCE_S)
        assert sent.is_published()

    def until(self, payload: bytes) -> list[tuple[str, bytes]]:
        """All that comes, up to this message."""
        heard = [self.heard.get(timeout=PATIENCE_S)]
        while heard[-1][1] != payload:
            heard.append(self.heard.get(timeout=PATIENCE_S))
        return heard

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def user(site: Site) -> Iterator[Callable[[str], User]]:
    users: list[User] = []

    def make(name: str) -> User:
        users.append(User(site, name))
        return users[-1]

    yield make
    for made in users:
        made.close()


ALLOWED = [
    ("phone", "stonechat/1/north/in/generate/phone", "north"),
    ("phone", "stonechat/1/north/in/cancel/phone", "north"),
    ("phone", "stonechat/1/pool/herd/generate/phone", "north"),
    ("north", "stonechat/1/north/out/instance", "north"),
    ("north", "stonechat/1/north/out/link/too-hot/air-a", "ha"),
    ("north", "stonechat/1/north/out/reply/phone/1", "phone"),
    ("north", "stonechat/1/pool/herd/reply/phone/1", "phone"),
    ("north", "stonechat/1/north/out/state", "phone"),
    ("north", "stonechat/1/north/out/health", "ha"),
    ("north", "homeassistant/device/north/config", "ha"),
    ("ha", "homeassistant/status", "north"),
    ("probe", "plant/a/air", "north"),
    ("chief", "stonechat/1/north/in/ota", "north"),
    ("chief", "stonechat/1/north/in/ota/piece", "north"),
    ("north", "stonechat/1/north/out/ota", "chief"),
    ("north", "stonechat/1/north/out/state", "chief"),
    ("north", "stonechat/1/north/out/info", "chief"),
]
FORBIDDEN = [
    ("north", "stonechat/1/south/out/state", "phone", "a device writes as another"),
    ("north", "stonechat/1/south/out/reply/phone/1", "phone", "a device answers as another"),
    ("north", "stonechat/1/south/in/generate/north", "south", "a device commands another"),
    ("north", "homeassistant/device/south/config", "ha", "a device describes another"),
    ("south", "stonechat/1/pool/herd/reply/phone/1", "phone", "a device answers for a pool that it is not in"),
    ("phone", "stonechat/1/north/in/generate/phone", "south", "a device reads another's requests"),
    ("phone", "stonechat/1/pool/herd/generate/phone", "south", "a device reads the requests of another's pool"),
    ("phone", "stonechat/1/north/in/generate/spy", "north", "a client asks in the name of another"),
    ("phone", "stonechat/1/north/in/cancel/spy", "north", "a client cancels in the name of another"),
    ("phone", "stonechat/1/pool/herd/generate/spy", "north", "a client asks a pool in the name of another"),
    ("phone", "stonechat/1/north/in/generate", "north", "a client asks without its name"),
    ("phone", "stonechat/1/north/in/cancel", "north", "a client cancels without its name"),
    ("probe", "stonechat/1/probe/out/state", "phone", "a sensor poses as a device"),
    ("probe", "homeassistant/device/probe/config", "ha", "a sensor poses as a device to Home Assistant"),
    ("phone", "stonechat/1/phone/out/link/too-hot", "ha", "a client poses as a device"),
    ("chief", "stonechat/1/chief/out/info", "phone", "an operator poses as a device"),
    ("ha", "stonechat/1/ha/out/health", "phone", "Home Assistant poses as a device"),
    ("phone", "stonechat/1/north/out/state", "ha", "a client writes as a device"),
    ("phone", "stonechat/1/north/out/reply/phone/1", "phone", "a client answers itself as a device"),
    ("north", "stonechat/1/north/out/reply/phone/1", "spy", "a client reads another's answers"),
    ("north", "stonechat/1/pool/herd/reply/phone/1", "spy", "a client reads another's answers from a pool"),
    ("phone", "plant/a/air", "north", "a client pretends to be a sensor"),
    ("probe", "stonechat/1/north/in/generate/probe", "north", "a sensor commands a device"),
    ("probe", "plant/a/advice", "north", "a sensor gives advice"),
    ("phone", "stonechat/1/north/in/ota", "north", "a client orders an update"),
    ("phone", "stonechat/1/north/in/ota/piece", "north", "a client slips in a piece of an update"),
    ("ha", "stonechat/1/north/in/ota", "north", "Home Assistant orders an update"),
    ("south", "stonechat/1/north/in/ota", "north", "a device orders another's update"),
    ("chief", "stonechat/1/north/in/generate/chief", "north", "an operator asks a device"),
    ("north", "stonechat/1/north/out/reply/phone/1", "chief", "an operator reads a client's answers"),
    ("chief", "stonechat/1/north/out/ota", "chief", "an operator reports as a device"),
    ("north", "stonechat/1/north/out/ota", "phone", "a client reads about updates"),
    ("phone", "homeassistant/status", "north", "a client pretends to be Home Assistant"),
]

# A message that each reader may get, sent after the forbidden one: what came before it is all that comes.
PROOF = {
    "phone": ("north", "stonechat/1/north/out/event"),
    "spy": ("north", "stonechat/1/north/out/event"),
    "ha": ("north", "stonechat/1/north/out/link/too-hot"),
    "north": ("ha", "homeassistant/status"),
    "south": ("ha", "homeassistant/status"),
    "chief": ("north", "stonechat/1/north/out/state"),
}


class TestDelivery:
    @pytest.mark.parametrize("writer, topic, reader", ALLOWED)
    def test_what_the_contract_needs_is_delivered(self, writer: str, topic: str, reader: str, user) -> None:
        listening = user(reader)
        listening.subscribe(topic)
        user(writer).publish(topic, b"allowed")
        assert listening.until(b"allowed")[-1][0] == topic

    @pytest.mark.parametrize("writer, topic, reader, what", FORBIDDEN, ids=[what for *_, what in FORBIDDEN])
    def test_nothing_else_is(self, writer: str, topic: str, reader: str, what: str, user) -> None:
        listening = user(reader)
        # Wildcards must not reach farther than names.
        listening.subscribe(topic, "#", "stonechat/#", "+/+/+/+/+", f"$share/x/{topic}")
        user(writer).publish(topic, b"forbidden")
        proof_writer, proof_topic = PROOF[reader]
        user(proof_writer).publish(proof_topic, b"the end")
        assert b"forbidden" not in [payload for _, payload in listening.until(b"the end")]

    def test_an_answer_reaches_its_client_and_no_other(self, site: Site, user, serving) -> None:
        """The whole way, with a real model: and a spy who names the client's reply topic gets nothing either."""
        spy = user("spy")
        spy.subscribe("#", "stonechat/1/south/out/reply/phone/#")
        done = ask(site, "phone")
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        phone, reply_to = user("phone"), "stonechat/1/south/out/reply/phone/9"
        phone.subscribe(reply_to)
        for name in ("spy", "phone"):  # in its own name the device refuses it, in another's the broker does
            topic = f"stonechat/1/south/in/generate/{name}"
            spy.publish(topic, b'{"prompt":"x"}', ResponseTopic=reply_to, CorrelationData=b"1")
        phone.publish(
            "stonechat/1/south/in/generate/phone", b'{"prompt":"x"}', ResponseTopic=reply_to, CorrelationData=b"1"
        )  # fmt: skip
        while "done" not in json.loads(phone.heard.get(timeout=PATIENCE_S)[1]):
            pass
        assert phone.heard.empty()  # one answer to one request
        user("north").publish("stonechat/1/north/out/event", b"the end")
        assert reply_to not in [topic for topic, _ in spy.until(b"the end")]

    def test_a_pool_is_asked_with_the_rights_that_a_client_has(self, site: Site, serving) -> None:
        done = ask(site, "phone", whom=("--pool", "flock"))
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def serving(site: Site) -> Iterator[subprocess.Popen[str]]:
    """`stonechat serve` as south, ready."""
    command = [*STONECHAT, "serve", str(site.folder / "fleet.yaml"), "--device", "south"]
    process = subprocess.Popen(
        [*command, "--state-dir", str(site.folder / "south")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    watching = User(site, "phone")
    watching.subscribe("stonechat/1/south/out/state")
    try:
        while json.loads(watching.heard.get(timeout=PATIENCE_S)[1])["state"] != "ready":
            pass
        watching.close()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def ask(
    site: Site,
    name: str,
    host: str = "localhost",
    certs: Path | None = None,
    whom: tuple[str, str] = ("--device", "south"),
) -> subprocess.CompletedProcess[str]:
    flags = ["--broker", f"mqtts://{host}:{site.port}", "--certs", str(certs or site.folder / "broker"), "--as", name]
    command = [*STONECHAT, "ask", *whom, *flags, "how are you"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class TestWhoGetsIn:
    def test_nobody_without_a_certificate(self, site: Site) -> None:
        certificates = Certificates(ca=site.folder / "broker" / "ca.crt")
        address = BrokerAddress("localhost", site.port, tls=True, certificates=certificates)
        client = Client(address, "nobody", on_message=lambda message: None)
        with pytest.raises(ConfigurationError, match="it may want a certificate"):
            client.connect()

    def test_nobody_with_a_certificate_of_another_authority(self, site: Site, tmp_path: Path) -> None:
        assert main(["broker", "init", str(tmp_path), "--host", "localhost", "--client", "phone"]) == 0
        certificates = Certificates(site.folder / "broker" / "ca.crt", tmp_path / "phone.crt", tmp_path / "phone.key")
        address = BrokerAddress("localhost", site.port, tls=True, certificates=certificates)
        client = Client(address, "phone", on_message=lambda message: None)
        with pytest.raises(ConfigurationError, match="it may want a certificate"):
            client.connect()

    def test_nobody_as_another_device_by_its_client_id(self, site: Site, user, serving) -> None:
        """A broker ends a connection when another comes with its client id, and asks for no right to do so."""
        watching = user("phone")
        watching.subscribe("stonechat/1/south/out/state", "stonechat/1/north/out/event")
        thief = User(site, "north", client_id="stonechat-south")
        thief.publish("stonechat/1/north/out/event", b"the end")
        thief.close()
        (_, kept), _ = watching.until(b"the end")  # and no "lost" between them
        assert json.loads(kept)["state"] == "ready"

    def test_nobody_without_encryption(self, site: Site) -> None:
        client = Client(BrokerAddress("localhost", site.port), "plain", on_message=lambda message: None)
        with pytest.raises(UnreachableError, match="did not answer as an MQTT broker"):
            client.connect()

    def test_a_broker_of_another_authority_is_not_talked_to(self, site: Site, tmp_path: Path) -> None:
        assert main(["broker", "init", str(tmp_path), "--host", "localhost", "--client", "phone"]) == 0
        done = ask(site, "phone", certs=tmp_path)
        assert done.returncode == 2
        assert "does not prove who it is" in done.stderr and "Traceback" not in done.stderr

    def test_nor_one_of_another_name(self, site: Site) -> None:
        done = ask(site, "phone", host="127.0.0.1")
        assert done.returncode == 2
        assert "does not prove who it is" in done.stderr


def test_who_fills_the_broker_is_disconnected_and_the_others_go_on(tmp_path: Path) -> None:
    """A device may keep messages below its own out/, and as many as it likes."""
    keys, port = tmp_path / "broker", free_port()
    flags = ["--host", "localhost", "--port", str(port), "--device", "north", "--device", "south", "--client", "phone"]
    assert main(["broker", "init", str(keys), *flags]) == 0
    config = keys / "mosquitto.conf"
    text = config.read_text()
    assert "\nmemory_limit 134217728\n" in text
    config.write_text(text.replace("memory_limit 134217728", "memory_limit 12000000"))  # sooner
    with made_broker(keys, port) as process:
        phone, north, south = users = [User(Site(tmp_path, port), name) for name in ("phone", "north", "south")]
        gone = threading.Event()
        north.client.on_disconnect = lambda *_: gone.set()
        phone.subscribe("stonechat/1/south/out/state")
        for number in range(200):
            north.client.publish(f"stonechat/1/north/out/x/{number}", b"x" * 100_000, qos=1, retain=True)
        assert gone.wait(PATIENCE_S)
        north.close()
        south.publish("stonechat/1/south/out/state", b"still here")
        phone.until(b"still here")
        assert process.poll() is None
        for user in users:
            user.close()


class TestCommand:
    def init(self, folder: Path, *flags: str) -> int:
        return main(["broker", "init", str(folder), *flags])

    def test_a_second_call_adds_and_keeps(self, tmp_path: Path) -> None:
        assert self.init(tmp_path, "--host", "a.local", "--port", "9999", "--device", "one", "--client", "phone") == 0
        changing = ("acl", "issued.pem")
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        assert self.init(tmp_path, "--device", "two", "--sensor", "probe=x/+") == 0
        after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        assert {name: after[name] for name in before if name not in changing} == {
            name: content for name, content in before.items() if name not in changing
        }
        assert {"two.crt", "two.key", "probe.crt", "probe.key"} <= after.keys()
        access = parse_list(after["acl"].decode())
        assert set(access.rights) == {"one", "two", "phone", "probe"}
        assert access.rights["probe"] == ["write x/+"]

    def test_keys_are_their_owners_alone(self, tmp_path: Path) -> None:
        assert self.init(tmp_path, "--host", "a.local", "--device", "one") == 0
        assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.glob("*.key")} == {
            "ca.key": 0o600, "broker.key": 0o600, "one.key": 0o600,
        }  # fmt: skip

    def test_a_server_has_its_names_and_a_client_none(self, tmp_path: Path) -> None:
        from cryptography import x509

        assert self.init(tmp_path, "--host", "a.local", "--host", "192.0.2.7", "--device", "one") == 0
        names = x509.load_pem_x509_certificate((tmp_path / "broker.crt").read_bytes()).extensions
        found = names.get_extension_for_class(x509.SubjectAlternativeName).value
        assert found.get_values_for_type(x509.DNSName) == ["a.local"]
        assert [str(a) for a in found.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
        client = x509.load_pem_x509_certificate((tmp_path / "one.crt").read_bytes())
        assert client.subject.rfc4514_string() == "CN=one"
        with pytest.raises(x509.ExtensionNotFound):
            client.extensions.get_extension_for_class(x509.SubjectAlternativeName)

    @pytest.mark.parametrize(
        "flags, words",
        [
            ([], "under which name clients reach the broker: --host"),
            (["--host", "a", "--device", "A"], "'A' cannot name a device"),
            (["--host", "a", "--client", "ca"], "'ca' is the name of one of the broker's own files"),
            (["--host", "a", "--sensor", "probe"], "expected NAME=TOPIC"),
            (["--host", "a", "--sensor", "probe=a/#/b"], "'#' must be the last level"),
            (["--host", "a", "--fleet", "nowhere.yaml"], "cannot read nowhere.yaml"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_is_made(
        self, flags: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.init(tmp_path / "broker", *flags) == 2
        assert words in capfd.readouterr().err
        assert not (tmp_path / "broker").exists()

    def test_half_an_authority_is_refused(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert self.init(tmp_path, "--host", "a") == 0
        (tmp_path / "ca.key").unlink()
        assert self.init(tmp_path, "--device", "one") == 2
        assert "has only one of ca.crt and ca.key" in capfd.readouterr().err

    def test_certificates_that_are_missing_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"ca\.crt is missing; make it with `stonechat broker init"):
            Certificates.of(tmp_path, "one")


def test_certificates_need_encryption() -> None:
    with pytest.raises(ConfigurationError, match="is not encrypted; use mqtts://"):
        BrokerAddress.from_url("mqtt://localhost", certificates=Certificates())


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("rubbish")
    with pytest.raises(ConfigurationError, match=r"ca\.crt cannot be used"):
        Certificates(ca=tmp_path / "ca.crt").context()
    assert isinstance(Certificates().context(), ssl.SSLContext)


def test_the_example_is_what_the_command_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of examples/broker/README.md, as it stands there."""
    root = Path(__file__).parents[2]
    example = root / "examples" / "broker"
    (command,) = [line for line in (example / "README.md").read_text().splitlines() if line.startswith("stonechat ")]
    monkeypatch.chdir(root)
    _, _, action, folder, *flags = command.split()
    assert main(["broker", action, str(tmp_path / folder), *flags]) == 0
    for name in ("acl", "mosquitto.conf"):
        assert (tmp_path / folder / name).read_text() == (example / name).read_text(), name


OLD_LIST = """\
# Every device: its commands in, its word out.
pattern read stonechat/1/%u/in/#
pattern write stonechat/1/%u/out/#

user board
topic read plant/+/air
topic write plant/advice
topic read stonechat/1/pool/herd/generate
topic write stonechat/1/pool/herd/reply/#

user bare

user phone
topic write stonechat/1/+/in/generate
topic write stonechat/1/+/in/cancel
topic write stonechat/1/pool/+/generate
topic read stonechat/1/+/out/state

user probe
topic write plant/+/air
"""


def test_an_access_list_of_an_earlier_stonechat_is_brought_to_rights_by_role() -> None:
    assert not is_current(OLD_LIST)
    access = parse_list(OLD_LIST)
    assert access.rights["probe"] == ["write plant/+/air"]
    assert "write stonechat/1/board/out/#" in access.rights["board"]
    assert "read stonechat/1/pool/herd/generate/+" in access.rights["board"]
    assert "write stonechat/1/bare/out/#" in access.rights["bare"]
    assert "write stonechat/1/+/in/generate/phone" in access.rights["phone"]
    assert "write stonechat/1/+/in/generate" not in access.rights["phone"]
    text = access_list(access)
    assert is_current(text) and parse_list(text) == access


def test_check_says_when_the_files_of_the_broker_have_to_be_renewed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        "schema: 1\nbroker: {url: 'mqtts://x', certs: broker}\nmodels: {m: {bundle: x}}\ndevices: {board: {model: m}}\n"
    )
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "acl").write_text(OLD_LIST)
    assert main(["check", str(fleet)]) == 0
    assert "lets every user pose as a device; renew it: stonechat broker init" in capfd.readouterr().out
    (tmp_path / "broker" / "acl").write_text(access_list(parse_list(OLD_LIST)))
    assert main(["check", str(fleet)]) == 0
    assert "renew" not in capfd.readouterr().out
