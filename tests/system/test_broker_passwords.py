"""Passwords, revocation and renewal, at a real mosquitto: who gets in, and that no secret shows anywhere."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.brokers import await_ready, free_port, made_broker
from toolkit.cli import main

pytest.importorskip("cryptography", reason="cryptography is not installed (the extra `sign`)")

ROOT = Path(__file__).parents[2]
FLEET = """\
schema: 1
broker: {{url: "mqtts://localhost:{port}", certs: broker, password_file: "${{WHERE_PASSWORDS_ARE:-broker}}"}}
models:
  echo: {{bundle: nowhere}}
devices:
  north: {{model: echo}}
links: []
"""


@dataclass
class Site:
    """A running broker with a listener for certificates and one for passwords, in a folder of its own."""

    folder: Path
    port: int
    password_port: int
    process: subprocess.Popen[bytes]
    device: subprocess.Popen[bytes] | None = None  # the one online, if there is one

    def secret(self, name: str) -> str:
        return (self.folder / f"{name}.password").read_text().strip()

    def connect(self, name: str, *, secret: str | None = None, own: Path | None = None) -> Session:
        """As whoever has this password, or the certificate that lies in the folder `own`."""
        context = ssl.create_default_context(cafile=self.folder / "ca.crt")
        if own is not None:
            context.load_cert_chain(own / f"{name}.crt", own / f"{name}.key")
        return Session(context, name, secret, self.port if secret is None else self.password_port)


class Session:
    """One connection of plain paho that does not come back by itself."""

    def __init__(self, context: ssl.SSLContext, name: str, secret: str | None, port: int) -> None:
        self.events: queue.Queue[str] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)
        self.client.tls_set_context(context)
        if secret is not None:
            self.client.username_pw_set(name, secret)
        self.client.on_connect = lambda c, u, f, reason, p: self.events.put("refused" if reason.is_failure else "in")
        self.client.on_disconnect = lambda *_: self.events.put("out")
        self.client.on_message = lambda c, u, message: self.events.put(message.topic)
        self.client.on_subscribe = lambda *_: self.events.put("subscribed")
        try:
            self.client.connect("localhost", port)
        except OSError:  # TLS 1.2 refuses here, TLS 1.3 with the first answer
            self.events.put("out")
            return
        self.client.loop_start()

    def next(self) -> str:
        return self.events.get(timeout=60)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def broker(folder: Path, *flags: str) -> Iterator[Site]:
    """north and phone by certificate, probe and board by password."""
    port, password_port = free_port(), free_port()
    first = ["--host", "localhost", "--port", str(port), "--device", "north", "--client", "phone", "--client", "tablet"]
    assert main(["broker", "init", str(folder), *first]) == 0
    second = ["--passwords", "--password-port", str(password_port), "--sensor", "probe=plant/+/air"]
    assert main(["broker", "init", str(folder), *second, "--device", "board", "--client", "watch", *flags]) == 0
    with made_broker(folder, port, password_port) as process:
        yield Site(folder, port, password_port, process)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with broker(tmp_path / "broker") as made:
        yield made


@pytest.fixture
def opened() -> Iterator[Callable[[Session], Session]]:
    sessions: list[Session] = []

    def keep(session: Session) -> Session:
        sessions.append(session)
        return session

    yield keep
    for session in sessions:
        session.close()


def reload(site: Site) -> None:
    """SIGHUP, and wait until the log says that it was heard."""
    log = site.folder / "mosquitto.log"
    before = log.read_text().count("Reloading config")
    site.process.send_signal(signal.SIGHUP)
    end_s = time.monotonic() + 60
    while log.read_text().count("Reloading config") == before:
        assert time.monotonic() < end_s
        time.sleep(0.02)


class TestPasswords:
    def test_each_gets_in_with_its_own_and_with_no_others(self, site: Site, opened) -> None:
        assert opened(site.connect("probe", secret=site.secret("probe"))).next() == "in"
        assert opened(site.connect("board", secret=site.secret("board"))).next() == "in"
        assert opened(site.connect("probe", secret=site.secret("board"))).next() == "refused"
        assert opened(site.connect("phone", secret=site.secret("board"))).next() == "refused"
        assert opened(site.connect("probe", secret="")).next() == "refused"

    def test_a_password_does_not_open_the_listener_for_certificates(self, site: Site, opened) -> None:
        context = ssl.create_default_context(cafile=site.folder / "ca.crt")
        assert opened(Session(context, "probe", site.secret("probe"), site.port)).next() == "out"

    def test_nor_a_certificate_that_for_passwords(self, site: Site, opened) -> None:
        context = ssl.create_default_context(cafile=site.folder / "ca.crt")
        context.load_cert_chain(site.folder / "north.crt", site.folder / "north.key")
        assert opened(Session(context, "north", None, site.password_port)).next() == "refused"

    def test_the_access_list_holds_by_delivery(self, site: Site, opened) -> None:
        watch = opened(site.connect("watch", secret=site.secret("watch")))
        assert watch.next() == "in"
        watch.client.subscribe([("stonechat/#", 1), ("plant/#", 1)])
        assert watch.next() == "subscribed"
        probe = opened(site.connect("probe", secret=site.secret("probe")))
        board = opened(site.connect("board", secret=site.secret("board")))
        assert (probe.next(), board.next()) == ("in", "in")
        for session, topic in [
            (probe, "stonechat/1/board/out/state"),  # a sensor speaks as a device
            (board, "stonechat/1/north/out/state"),  # a device as another
            (board, "stonechat/1/board/out/reply/phone/1"),  # to another client
            (board, "stonechat/1/board/out/state"),
        ]:
            session.client.publish(topic, b"x", qos=1).wait_for_publish(60)
        assert watch.next() == "stonechat/1/board/out/state"

    def test_a_reader_gets_its_topic_and_may_not_write_it(self, tmp_path: Path, opened) -> None:
        with broker(tmp_path / "broker", "--reader", "flow=plant/+/air", "--sensor", "flow=plant/+/advice") as site:
            flow = opened(site.connect("flow", secret=site.secret("flow")))
            assert flow.next() == "in"
            flow.client.subscribe([("plant/#", 1)])
            assert flow.next() == "subscribed"
            flow.client.publish("plant/forged/air", b"x", qos=1).wait_for_publish(60)
            probe = opened(site.connect("probe", secret=site.secret("probe")))
            assert probe.next() == "in"
            probe.client.publish("plant/a/air", b"x", qos=1).wait_for_publish(60)
            assert flow.next() == "plant/a/air"

    def test_without_encryption_nobody_is_heard(self, site: Site) -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.username_pw_set("probe", site.secret("probe"))
        client.connect("localhost", site.password_port)
        while client.loop(0.1) == paho.MQTT_ERR_SUCCESS:
            assert not client.is_connected()

    def test_a_folder_of_passwords_alone_has_one_listener_and_keeps_to_them(self, tmp_path: Path) -> None:
        port = free_port()
        init = ["broker", "init", str(tmp_path)]
        assert main([*init, "--host", "localhost", "--passwords", "--port", str(port), "--client", "phone"]) == 0
        assert main([*init, "--device", "north"]) == 0
        assert {path.name for path in tmp_path.glob("*.password")} == {"phone.password", "north.password"}
        assert not (tmp_path / "north.crt").exists()
        assert "require_certificate" not in (tmp_path / "mosquitto.conf").read_text()
        with made_broker(tmp_path, port) as process:
            made = Site(tmp_path, port, port, process)
            session = made.connect("north", secret=made.secret("north"))
            assert session.next() == "in"
            session.close()

    def test_a_second_call_keeps_passwords_even_where_the_files_have_moved(self, tmp_path: Path) -> None:
        init = ["broker", "init", str(tmp_path), "--passwords"]
        assert main([*init, "--host", "localhost", "--client", "phone"]) == 0
        before = (tmp_path / "passwords").read_text()
        (tmp_path / "phone.password").unlink()  # given to the phone
        assert main([*init, "--client", "phone"]) == 0
        assert (tmp_path / "passwords").read_text() == before and not (tmp_path / "phone.password").exists()

    def test_both_kinds_can_be_asked_for_at_once(self, tmp_path: Path) -> None:
        flags = ["--passwords", "--certificates", "--host", "localhost", "--client", "phone"]
        assert main(["broker", "init", str(tmp_path), *flags]) == 0
        assert (tmp_path / "phone.crt").is_file() and (tmp_path / "phone.password").is_file()

    def test_one_port_for_both_is_refused(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        flags = ["--passwords", "--certificates", "--host", "a", "--client", "x", "--port", "1", "--password-port", "1"]
        assert main(["broker", "init", str(tmp_path), *flags]) == 2
        assert "need a port each" in capfd.readouterr().err


@contextmanager
def device(fleet: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A device with a model that repeats its prompt in upper case; its log is beside the fleet file."""
    script = ROOT / "tests" / "toolkit" / "scripted_device.py"
    command = [sys.executable, str(script), str(fleet), "--device", name, "--state-dir", str(fleet.parent / "state")]
    path = fleet.with_suffix(".log")
    with path.open("w") as log:
        serving = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end_s = time.monotonic() + 120
            while f" as {name}" not in path.read_text():
                assert serving.poll() is None and time.monotonic() < end_s, path.read_text()
                time.sleep(0.05)
            yield serving
        finally:
            serving.terminate()
            assert serving.wait(60) == 0


def everything_that_shows() -> str:
    """The command lines of all processes, one a line, as `ps` and any user see them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").replace(b"\n", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(found)


class TestSecrets:
    def test_no_secret_is_printed_logged_or_in_a_process_list(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """init with and without --json, serve, ask, renew, list and the broker's log."""
        with broker(tmp_path / "broker", "--json", "--device", "north") as site:
            fleet = tmp_path / "fleet.yaml"
            fleet.write_text(FLEET.format(port=site.password_port))
            ask = [sys.executable, "-m", "toolkit", "ask", "--broker", f"mqtts://watch@localhost:{site.password_port}"]
            ask += ["--password-file", str(site.folder / "watch.password"), "--certs", str(site.folder)]
            with device(fleet, "north"):
                asking = subprocess.Popen(
                    [*ask, "--device", "north", "good morning"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    text=True, cwd=ROOT,
                )  # fmt: skip
                while asking.poll() is None and not Path(f"/proc/{asking.pid}/cmdline").read_bytes():
                    time.sleep(0.001)  # Popen returns when exec has begun; the command line is there a little later
                shown = [everything_that_shows()]
                answer, errors = asking.communicate(timeout=120)
                shown += [answer, errors, everything_that_shows()]
                assert answer.split() == ["GOOD", "MORNING"], errors
            secrets = [site.secret(name) for name in ("north", "probe", "board", "watch")]
            assert main(["broker", "list", str(site.folder), "--json"]) == 0
            assert main(["broker", "renew", str(site.folder), "probe", "--json"]) == 0
            secrets.append(site.secret("probe"))
            out, err = capfd.readouterr()
            files = [fleet.with_suffix(".log"), site.folder / "mosquitto.log"]
            files += [path for path in site.folder.iterdir() if path.suffix != ".password"]
            shown += [out, err, *(path.read_text() for path in files)]
        assert any(str(fleet) in text for text in shown)  # the lists did have them
        assert "watch.password" in shown[0]
        assert len(set(secrets)) == 5 and all(len(secret) == 32 for secret in secrets)
        assert [text for text in shown for secret in secrets if secret in text] == []

    def test_the_files_are_their_owners_alone(self, site: Site) -> None:
        paths = [*site.folder.glob("*.password"), site.folder / "passwords"]
        assert len(paths) == 4
        assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}

    @pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto_passwd is not installed")
    def test_the_file_is_of_the_kind_that_mosquitto_passwd_makes(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "theirs").write_text("probe:secret\n")
        subprocess.run(["mosquitto_passwd", "-U", str(tmp_path / "theirs")], check=True)
        theirs = (tmp_path / "theirs").read_text().strip().split("$")
        (ours,) = [line.split("$") for line in (site.folder / "passwords").read_text().splitlines() if "probe" in line]
        assert [ours[:3], *map(len, ours[3:])] == [theirs[:3], *map(len, theirs[3:])]


def documented_commands() -> list[str]:
    """The shell examples of docs/guides/broker.md."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs/guides/broker.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def greenhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """greenhouse-pi online, and phone with a certificate and a password; the folder is called broker."""
    folder, port, password_port = tmp_path_factory.mktemp("greenhouse"), free_port(), free_port()
    ports = ["--port", str(port), "--password-port", str(password_port)]
    both = ["--passwords", "--certificates", "--device", "greenhouse-pi", "--client", "phone"]
    assert main(["broker", "init", str(folder / "broker"), "--host", "localhost", *ports, *both]) == 0
    (folder / "fleet.yaml").write_text(FLEET.format(port=password_port).replace("north", "greenhouse-pi"))
    with made_broker(folder / "broker", port, password_port) as process:
        site = Site(folder / "broker", port, password_port, process)
        with device(folder / "fleet.yaml", "greenhouse-pi") as site.device:
            await_ready(
                password_port, "greenhouse-pi", ca=site.folder / "ca.crt", login=("phone", site.secret("phone"))
            )
            yield site


@pytest.mark.skipif(shutil.which("mosquitto_rr") is None, reason="mosquitto-clients is not installed")
@pytest.mark.parametrize("command", documented_commands())
def test_the_commands_of_the_documentation_work_and_show_no_password(greenhouse: Site, command: str) -> None:
    for port, ours in (("8883", greenhouse.port), ("8884", greenhouse.password_port)):
        command = command.replace(f"-h broker.local -p {port} ", f"-h localhost -p {ours} ")
    home = greenhouse.folder.parent
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    assert greenhouse.device is not None
    greenhouse.device.send_signal(signal.SIGSTOP)  # no answer before the process list was looked at
    running = subprocess.Popen(["sh", "-c", command], cwd=home, env=environment, **pipes)
    try:
        shown = [everything_that_shows()]
        while running.poll() is None and "\nmosquitto_rr -h localhost" not in shown[-1]:
            shown.append(everything_that_shows())
    finally:
        greenhouse.device.send_signal(signal.SIGCONT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert '"text":"IT IS 38 °C. WHAT SHOULD I DO?"' in out
    assert any("mosquitto_rr -h localhost" in text for text in shown)
    assert not any(greenhouse.secret("phone") in text for text in [*shown, out, err])


class TestRevocation:
    def test_a_revoked_password_ends_at_a_reload_and_its_connection_with_it(self, site: Site, opened) -> None:
        secret = site.secret("board")
        live = opened(site.connect("board", secret=secret))
        assert live.next() == "in"
        assert main(["broker", "revoke", str(site.folder), "board"]) == 0
        reload(site)
        assert live.next() == "out"
        assert opened(site.connect("board", secret=secret)).next() == "refused"
        assert opened(site.connect("probe", secret=site.secret("probe"))).next() == "in"
        assert "board" not in (site.folder / "acl").read_text() and not (site.folder / "board.password").exists()

    def test_a_revoked_certificate_gets_in_no_more_after_a_reload(self, site: Site, opened, tmp_path: Path) -> None:
        stolen = shutil.copytree(site.folder, tmp_path / "stolen")
        assert opened(site.connect("phone", own=stolen)).next() == "in"
        assert main(["broker", "revoke", str(site.folder), "phone"]) == 0
        reload(site)
        assert opened(site.connect("phone", own=stolen)).next() == "out"
        assert opened(site.connect("tablet", own=site.folder)).next() == "in"
        assert "user phone" not in (site.folder / "acl").read_text()

    def test_a_restart_ends_the_connections_of_revoked_certificates_too(self, tmp_path: Path, opened) -> None:
        with broker(tmp_path / "broker") as site:
            stolen = shutil.copytree(site.folder, tmp_path / "stolen")
            live = opened(site.connect("phone", own=stolen))
            assert live.next() == "in"
            assert main(["broker", "revoke", str(site.folder), "phone"]) == 0
        assert live.next() == "out"
        with made_broker(site.folder, site.port):
            assert opened(site.connect("phone", own=stolen)).next() == "out"
            assert opened(site.connect("tablet", own=site.folder)).next() == "in"

    def test_certificates_that_were_renewed_before_are_revoked_too(self, site: Site, opened, tmp_path: Path) -> None:
        old = shutil.copytree(site.folder, tmp_path / "old")
        assert main(["broker", "renew", str(site.folder), "phone"]) == 0
        new = shutil.copytree(site.folder, tmp_path / "new")
        assert (old / "phone.crt").read_bytes() != (new / "phone.crt").read_bytes()
        assert opened(site.connect("phone", own=old)).next() == "in"
        assert opened(site.connect("phone", own=new)).next() == "in"
        assert main(["broker", "revoke", str(site.folder), "phone"]) == 0
        reload(site)
        assert opened(site.connect("phone", own=old)).next() == "out"
        assert opened(site.connect("phone", own=new)).next() == "out"

    def test_who_comes_back_gets_a_new_certificate_and_the_old_one_stays_out(
        self, site: Site, opened, tmp_path: Path
    ) -> None:
        old = shutil.copytree(site.folder, tmp_path / "old")
        assert main(["broker", "revoke", str(site.folder), "phone"]) == 0
        assert main(["broker", "init", str(site.folder), "--client", "phone"]) == 0
        reload(site)
        assert opened(site.connect("phone", own=old)).next() == "out"
        assert opened(site.connect("phone", own=site.folder)).next() == "in"

    def test_a_folder_of_an_earlier_release_gets_a_list_of_revoked_certificates(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["broker", "init", str(tmp_path), "--host", "a.local", "--client", "phone", "--port", "9999"]) == 0
        config = tmp_path / "mosquitto.conf"
        config.write_text("".join(line for line in config.open() if not line.startswith("crlfile")) + "# mine\n")
        for name in ("issued.pem", "crl.pem"):
            (tmp_path / name).unlink()
        assert main(["broker", "revoke", str(tmp_path), "phone"]) == 0
        assert "was rewritten; the previous one is" in capfd.readouterr().err
        assert f"crlfile {tmp_path}/crl.pem" in config.read_text() and "listener 9999" in config.read_text()
        assert "# mine" in (tmp_path / "mosquitto.conf.old").read_text()

    @pytest.mark.parametrize(
        "names, words",
        [
            (["fone"], "does not know 'fone'; did you mean 'phone'?"),
            (["phone", "zzz"], "does not know 'zzz'; it knows: phone"),
            (["broker"], "is not revoked but replaced: `stonechat broker renew`"),
        ],
    )
    def test_a_name_that_cannot_be_revoked_is_told_and_nothing_is_changed(
        self, names: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["broker", "init", str(tmp_path), "--host", "a", "--client", "phone"]) == 0
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert main(["broker", "revoke", str(tmp_path), *names]) == 2
        assert words in capfd.readouterr().err
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestRenewal:
    def test_a_new_password_takes_the_old_ones_place_at_a_reload(self, site: Site, opened) -> None:
        old = site.secret("probe")
        assert main(["broker", "renew", str(site.folder), "probe"]) == 0
        reload(site)
        assert opened(site.connect("probe", secret=old)).next() == "refused"
        assert opened(site.connect("probe", secret=site.secret("probe"))).next() == "in"

    def test_the_broker_shows_its_new_certificate_after_a_reload(self, site: Site, opened) -> None:
        before = ssl.get_server_certificate(("localhost", site.password_port))
        assert main(["broker", "renew", str(site.folder), "broker"]) == 0
        reload(site)
        assert ssl.get_server_certificate(("localhost", site.password_port)) != before
        assert opened(site.connect("probe", secret=site.secret("probe"))).next() == "in"  # for the same host

    def test_only_what_expires_by_then_is_renewed(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        init = ["broker", "init", str(tmp_path)]
        assert main([*init, "--host", "a.local", "--client", "phone"]) == 0
        assert main([*init, "--client", "guest", "--days", "7"]) == 0
        capfd.readouterr()
        assert main(["broker", "list", str(tmp_path), "--json"]) == 0
        entries = json.loads(capfd.readouterr().out)["entries"]
        assert [(e["name"], e["expires_soon"]) for e in entries] == [
            ("broker", False),
            ("guest", True),
            ("phone", False),
        ]
        assert main(["broker", "renew", str(tmp_path), "--expiring", "30", "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["renewed"] == {"guest": ["certificate"]}
        assert main(["broker", "renew", str(tmp_path), "--expiring", "30"]) == 0
        assert capfd.readouterr().out == "no certificate expires within 30 days\n"

    @pytest.mark.parametrize("flags", [[], ["phone", "--expiring", "3"]])
    def test_it_has_to_be_told_whose(self, flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["broker", "renew", str(tmp_path), *flags]) == 2
        assert "either names, or --expiring DAYS" in capfd.readouterr().err


def test_a_folder_that_init_has_not_made_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for action in (["list"], ["revoke"], ["renew"]):
        assert main(["broker", *action, str(tmp_path), *(["x"] if action != ["list"] else [])]) == 2
        assert "has no ca.crt; expected a folder that `stonechat broker init` has made" in capfd.readouterr().err
    assert os.listdir(tmp_path) == []
