"""Who may come in, what is too much, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.brokers import free_port
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel
from toolkit.cli import main

TOKEN = "a-token-of-these-tests"
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "it is hot"}]}


def call(url: str, path: str = "/v1/chat/completions", body: object = ASK, method: str = "", **headers: str):
    """(status, headers, parsed body) of one request."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with suppress(BrokenPipeError):  # a refusal comes before all of a large body is sent
        connection.request(method or ("GET" if data is None else "POST"), path, data, named)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), json.loads(text) if text.startswith(b"{") else text.decode()


@pytest.fixture(scope="module")
def open_url(scripted) -> str:
    return scripted()[0]


@pytest.fixture(scope="module")
def token_url(scripted) -> str:
    return scripted(token=TOKEN, origins=("https://chat.local",))[0]


class TestToken:
    def test_the_right_one_is_let_in(self, token_url):
        status, _, said = call(token_url, Authorization=f"Bearer {TOKEN}")
        assert (status, said["choices"][0]["message"]["content"]) == (200, "IT IS HOT")

    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
    @pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"])
    def test_no_other_is(self, token_url, headers, path):
        status, sent, said = call(token_url, path, None if path == "/v1/models" else ASK, **headers)
        assert status == 401 and sent["www-authenticate"] == "Bearer"
        assert said["error"]["code"] == "invalid_api_key" and said["error"]["type"] == "authentication_error"

    def test_not_in_the_address(self, token_url):
        assert call(token_url, f"/v1/models?token={TOKEN}&api_key={TOKEN}", None)[0] == 401

    def test_other_machines_are_not_let_in_without_one(self, capsys):
        assert main(["gateway", "--broker", "mqtt://localhost:1", "--host", "0.0.0.0"]) == 2
        assert "no token" in capsys.readouterr().err

    def test_a_short_one_is_refused(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "token").write_text("1234\n")
        assert main(["gateway", "--broker", "mqtt://localhost:1", "--token-file", str(tmp_path / "token")]) == 2
        assert "4 characters" in capsys.readouterr().err
        monkeypatch.setenv("STONECHAT_TOKEN", "abc")
        assert main(["gateway", "--broker", "mqtt://localhost:1"]) == 2
        assert "$STONECHAT_TOKEN has 3 characters" in capsys.readouterr().err


class TestBrowsers:
    def test_a_name_that_was_pointed_here_is_refused(self, open_url):
        status, _, said = call(open_url, Host="attacker.example")
        assert (status, said["error"]["code"]) == (403, "host_not_allowed")

    @pytest.mark.parametrize("half", ["[", "[::1", "a]b"])
    def test_half_an_address_is_refused_as_well(self, open_url, half):
        assert call(open_url, Host=half)[0] == 403
        assert call(open_url, Origin=f"http://{half}")[0] == 403

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8383", "LOCALHOST:1"])
    def test_this_machines_names_are_not(self, open_url, host):
        assert call(open_url, Host=host)[0] == 200

    def test_a_page_of_another_site_may_not_ask_whatever_it_says_of_its_content(self, open_url):
        for kind in ("text/plain", "application/json"):
            status, sent, _ = call(open_url, Origin="https://attacker.example", Content_Type=kind)
            assert status == 403 and not any(name.lower().startswith("access-control") for name in sent)

    def test_a_page_of_this_server_may_also_through_a_proxy_that_speaks_tls(self, token_url):
        for origin in ("http://wall.local", "https://wall.local"):
            sent = {"Origin": origin, "Host": "wall.local", "Authorization": f"Bearer {TOKEN}"}
            assert call(token_url, **sent)[0] == 200
        assert call(token_url, Origin="https://wall.local:1", Host="wall.local")[0] == 403

    def test_a_site_that_is_allowed_by_name_may(self, token_url):
        origin = {"Origin": "https://chat.local"}
        status, sent, _ = call(token_url, body=None, method="OPTIONS", **origin, Access_Control_Request_Method="POST")
        assert status == 204 and sent["access-control-allow-origin"] == "https://chat.local"
        status, sent, _ = call(token_url, **origin, Authorization=f"Bearer {TOKEN}")
        assert status == 200 and sent["access-control-allow-origin"] == "https://chat.local"
        assert call(token_url, Origin="https://other.local", Authorization=f"Bearer {TOKEN}")[0] == 403


class TestBounds:
    @pytest.mark.parametrize("size", [1_100_000, 6_000_000])
    def test_a_large_body(self, open_url, size):
        """A client that sends all of it before it reads gets the answer, too."""
        status, _, said = call(open_url, body=b" " * size)
        assert status == 413 and "1,048,576 bytes" in said["error"]["message"]

    def test_a_client_that_announces_a_large_body_and_waits_gets_its_answer(self, open_url, monkeypatch):
        monkeypatch.setattr("toolkit.web.guard.DRAIN_S", 0.3)
        with socket.create_connection(("127.0.0.1", urlsplit(open_url).port), timeout=30) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000\r\n\r\n{")
            assert b" 413 " in raw.recv(64)

    def test_a_large_body_that_does_not_say_so(self, open_url):
        with socket.create_connection(("127.0.0.1", urlsplit(open_url).port), timeout=30) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            for _ in range(20):
                try:
                    raw.sendall(chunk)
                except OSError:
                    break
            assert b" 413 " in raw.recv(64)

    def test_a_body_that_dribbles_is_cut_off(self, open_url, monkeypatch):
        monkeypatch.setattr("toolkit.web.guard.BODY_S", 0.3)
        with socket.create_connection(("127.0.0.1", urlsplit(open_url).port), timeout=30) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{")
            assert b" 408 " in raw.recv(64)

    def test_a_head_that_does_not_come(self, open_url, monkeypatch):
        monkeypatch.setattr("toolkit.web.server.HEAD_S", 0.3)
        with socket.create_connection(("127.0.0.1", urlsplit(open_url).port), timeout=30) as raw:
            raw.sendall(b"GET /v1/models HTTP/1.1\r\nX-Slow: ")
            assert raw.recv(64) == b""

    def test_a_client_that_does_not_read_is_given_up(self, scripted, monkeypatch):
        monkeypatch.setattr("toolkit.web.stream.SEND_S", 0.3)
        url, _ = scripted(ScriptedModel(["word " * 200_000] * 30))  # 30 MB, more than what systems buffer
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(30)
            raw.connect(("127.0.0.1", urlsplit(url).port))
            body = json.dumps({**ASK, "stream": True})
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            raw.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
            assert call(url, "/v1/models", None)[0] == 200  # others are served meanwhile
            time.sleep(1.0)
            received = b""
            while chunk := raw.recv(1 << 20):
                received = (received + chunk)[-100:]
        assert b"[DONE]" not in received

    @pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1/models/", "/v1/models/scripted/", "/health/"])
    def test_a_slash_at_the_end_is_no_other_address(self, open_url, path):
        """Clients do not send their body again to where a redirection leads."""
        assert call(open_url, path, ASK if "chat" in path else None)[0] == 200

    def test_what_is_not_there(self, open_url):
        status, _, said = call(open_url, "/v1/images/generations")
        assert status == 404 and "/v1/chat/completions" in said["error"]["message"]
        assert call(open_url, "/v1/chat/completions", None)[0] == 405

    def test_a_full_queue_is_429_with_when_to_come_back(self, scripted):
        url, model = scripted(ScriptedModel(["a", "b"], gated=True), queue=1)
        results: list[tuple] = []
        threads = [threading.Thread(target=lambda: results.append(call(url))) for _ in range(4)]
        threads[0].start()
        wait_until(lambda: bool(model.asked))  # one is being answered, one waits, and two find no place
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: len(results) == 2)
        for status, sent, said in results:
            assert status == 429 and int(sent["retry-after"]) >= 1
            assert (said["error"]["type"], said["error"]["code"]) == ("rate_limit_error", "busy")
        model.gate.release(10)
        for thread in threads:
            thread.join(30)
        assert sorted(status for status, _, _ in results) == [200, 200, 429, 429]


class TestGoingAway:
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_goes_away_ends_its_answer(self, scripted, stream):
        url, model = scripted(ScriptedModel(["a"] * 1000, gated=True))
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.request("POST", "/v1/chat/completions", json.dumps({**ASK, "stream": stream}))
        wait_until(lambda: len(model.asked) == 1)
        if stream:
            model.gate.release()
            assert connection.getresponse().readline().startswith(b"data: ")
        connection.close()
        connection = None
        # the next one is answered, which it is only when the first has ended: there were 999 pieces to come
        later: list[tuple] = []
        thread = threading.Thread(target=lambda: later.append(call(url)))
        thread.start()
        wait_until(lambda: len(model.asked) == 2)
        model.gate.release(1001)
        thread.join(30)
        assert later[0][0] == 200

    def test_one_that_waits_gives_its_place_back(self, scripted):
        url, model = scripted(ScriptedModel(["a"], gated=True), queue=1)
        first = threading.Thread(target=lambda: call(url))
        first.start()
        wait_until(lambda: len(model.asked) == 1)
        waiting = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        waiting.request("POST", "/v1/chat/completions", json.dumps(ASK))
        wait_until(lambda: call(url)[0] == 429)
        waiting.close()
        done: list[int] = []

        def ask() -> None:
            while not done:
                if (status := call(url)[0]) != 429:
                    done.append(status)

        again = threading.Thread(target=ask)
        again.start()
        time.sleep(0.2)
        model.gate.release(10)
        again.join(30)
        first.join(30)
        assert done == [200] and len(model.asked) == 2

    def test_a_model_that_fails_is_500_and_the_next_request_is_answered(self, scripted):
        url, model = scripted()
        model.fails_with = ValueError("secret of the inside")
        status, _, said = call(url)
        assert status == 500 and "secret" not in json.dumps(said)
        model.fails_with = None
        assert call(url)[0] == 200


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "toolkit", "gateway", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={k: v for k, v in os.environ.items() if k != "STONECHAT_TOKEN"},
    )  # fmt: skip


def test_the_command_serves_until_ctrl_c_also_in_the_middle_of_a_stream(pi_bundle: Path):
    port = free_port()
    process = start(str(pi_bundle), f"other={pi_bundle}", "--port", str(port), "--threads", "1")
    try:
        assert process.stderr is not None
        assert f"serving gqa-tied, other at http://127.0.0.1:{port}/v1" in process.stderr.readline()
        connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=30)
        connection.request("POST", "/v1/chat/completions", json.dumps({**ASK, "model": "other", "stream": True}))
        assert connection.getresponse().readline().startswith(b"data: ")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == "stopped\n"
    finally:
        process.kill()


def test_an_address_that_is_taken(pi_bundle: Path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["gateway", str(pi_bundle), "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["x", "--broker", "mqtt://localhost"], ["x", "--pool", "herd"]])
def test_either_bundles_or_a_broker(words, capsys):
    assert main(["gateway", *words]) == 2
    assert "Say what to serve" in capsys.readouterr().err


def test_two_bundles_of_one_name(pi_bundle: Path, capsys):
    assert main(["gateway", str(pi_bundle), str(pi_bundle)]) == 2
    assert "two bundles are called 'gqa-tied'" in capsys.readouterr().err


class TestTls:
    """A certificate or a key that is of no use is said before anything is served."""

    def started(self, certificate: Path, key: Path) -> int:
        bundle = Path(__file__).parents[3] / "examples" / "log-triage" / "bundle"
        return main(["gateway", str(bundle), "--port", "0", "--tls-cert", str(certificate), "--tls-key", str(key)])

    def test_a_file_that_is_no_pem(self, tmp_path, capsys):
        certificate, key = tmp_path / "gateway.der", tmp_path / "gateway.key"
        certificate.write_bytes(b"\x30\x82\xff\xfe")
        key.write_text("-----BEGIN PRIVATE KEY-----\n")
        assert self.started(certificate, key) == 2
        assert f"{certificate} is no PEM file" in capsys.readouterr().err
        assert self.started(tmp_path / "nowhere", key) == 2
        assert "nowhere cannot be read: No such file or directory. Check the path." in capsys.readouterr().err

    def test_pem_that_is_no_certificate(self, tmp_path, capsys):
        pem = tmp_path / "gateway.crt"
        pem.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        assert self.started(pem, pem) == 2
        said = capsys.readouterr().err
        assert f"{pem} and {pem} cannot be used for TLS" in said and "serving" not in said
