"""What the page asks of the server: who may, what changes, and what comes by itself."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from device_runtime.bundle.folder import Bundle
from tests.support.brokers import free_port
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel
from tests.toolkit.dashboard.conftest import FLEET
from toolkit.broker.access import Access
from toolkit.cli import main
from toolkit.dashboard.app import PAGES, STATIC
from toolkit.rollout.control import hold
from toolkit.rollout.files import RolloutFiles, default_folder
from toolkit.rollout.rollout import Plan, Rollout

TOKEN = "a-token-of-these-tests"
LINK = {"name": "cold", "from": "plant/+/air", "prompt": "{{ temp_c }} °C.", "to": "plant/cold"}


def fill(disk: Path) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))


class Events:
    """`/api/events`, as a browser reads it."""

    def __init__(self, url: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        self._connection.request("GET", "/api/events", headers=headers)
        self.response = self._connection.getresponse()

    def next(self) -> dict:
        while not (line := self.response.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        return json.loads(line[6:])

    def until(self, wanted) -> dict:
        while not wanted(some := self.next()):
            pass
        return some

    def close(self) -> None:
        self.response.close()
        self._connection.close()


class TestWhoMay:
    def test_only_what_belongs_to_the_page_is_served(self, dashboard):
        page = dashboard()
        status, headers, text = page.call("/")
        assert status == 200 and headers["content-type"].startswith("text/html") and "app.js" in text
        assert "script-src 'self'" in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"
        for path in (
            "/../app.py",
            "/%2e%2e/app.py",
            "/app.py",
            "/vendor/../../app.py",
            "/etc/passwd",
            "/vendor/LICENSES.txt",
        ):
            assert page.call(path)[0] == 404, path

    def test_nothing_without_the_token_but_the_login(self, dashboard):
        page = dashboard(token=TOKEN)
        assert page.call("/")[0] == 200 and page.call("/api/me")[2] == {
            "login": True,
            "known": False,
            "read_only": False,
        }
        for path, body in (
            ("/api/events", None), ("/api/links", None), ("/api/v1/models", None), ("/api/links/check", {}),
            ("/api/links/save", {}), ("/api/links/try", {}), ("/api/v1/chat/completions", {}),
            ("/api/rollouts/x/abort", {}),
        ):  # fmt: skip
            assert page.call(path, body)[0] == 401, path
            assert page.call(path, body, Authorization=f"Bearer {TOKEN}", Cookie="stonechat=x")[0] == 401
        assert page.call("/api/login", {"token": "wrong"})[0] == 401
        status, headers, _ = page.call("/api/login", {"token": TOKEN})
        assert status == 200
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        known = {"Cookie": cookie.partition(";")[0]}
        assert page.call("/api/links", **known)[0] == 200
        events = Events(page.url, **known)
        assert events.next()["all"]
        events.close()
        assert page.call("/api/logout", {}, **known)[0] == 200
        assert page.call("/api/links", **known)[0] == 401

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"X_Stonechat": ""}, 403),
            ({"Origin": "https://attacker.example"}, 403),
            ({"Host": "attacker.example"}, 403),
            ({"Origin": "null"}, 403),
            ({}, 200),
        ],
    )
    def test_a_page_of_another_site_changes_nothing(self, dashboard, headers, status):
        page = dashboard()
        sent = {"was": None, "link": LINK, "devices": ["north"], "base": page.call("/api/links")[2]["base"]}
        assert page.call("/api/links/save", sent, **headers)[0] == status
        assert ("cold" in page.fleet.read_text(encoding="utf-8")) == (status == 200)

    def test_read_only_shows_and_changes_nothing(self, dashboard):
        page = dashboard(read_only=True)
        assert page.call("/api/links")[0] == 200
        for path in ("/api/links/check", "/api/links/save", "/api/v1/chat/completions", "/api/rollouts/x/pause"):
            status, _, said = page.call(path, {})
            assert (status, said["error"]["code"]) == (403, "read_only")

    def test_other_machines_need_a_token(self, tmp_path, capsys):
        (tmp_path / "fleet.yaml").write_text(FLEET)
        assert main(["dashboard", str(tmp_path / "fleet.yaml"), "--host", "0.0.0.0"]) == 2
        assert "no token" in capsys.readouterr().err


class TestLive:
    def test_everything_first_then_what_changes(self, dashboard, on_air):
        page = dashboard()
        events = Events(page.url)
        first = events.next()
        assert first["all"] and first["broker"]["connected"]
        rows = {row["id"]: row for row in first["devices"]}
        assert rows["north"] | {"state": "unknown", "planned": True, "links": ["hot"]} == rows["north"]
        assert [link["name"] for link in first["links"]["links"]] == ["hot"]
        device = on_air(ScriptedModel(["yes"]), pool="herd")
        name = device.topics.device

        def row_of(some: dict) -> dict:
            return next((row for row in some.get("devices", ()) if row["id"] == name), {})

        ready = row_of(events.until(lambda some: row_of(some).get("state") == "ready" and "pool" in row_of(some)))
        assert (ready["pool"], ready["planned"], ready["models"]) == ("herd", False, ["default"])
        events.close()

    def test_answers_of_links_come_once_each(self, dashboard, peer):
        page, client = dashboard(), peer()
        events = Events(page.url)
        assert events.next()["answers"] == []
        for number in range(3):
            client.publish(
                "stonechat/1/north/out/link/hot",
                {"answer": {"n": number}, "confidence": {"n": 0.5}, "reading": {"temp_c": 90},
                 "topic": "plant/3/boiler", "link": "hot", "device": "north", "time": f"2026-11-27T15:20:0{number}Z"},
            )  # fmt: skip
        got: list[dict] = []
        while len(got) < 3:
            got += events.next().get("answers", [])
        assert [answer["answer"]["n"] for answer in got] == [0, 1, 2]
        assert (
            got[0] | {"link": "hot", "device": "north", "confidence": {"n": 0.5}, "topic": "plant/3/boiler"} == got[0]
        )
        events.close()
        again = Events(page.url)
        assert len(again.next()["answers"]) == 3  # a page that was loaded again has them as well
        again.close()

    def test_many_messages_are_few_events_for_a_page(self, dashboard, peer):
        page, client = dashboard(), peer()
        events = Events(page.url)
        events.next()
        for number in range(300):
            client.client.publish("stonechat/1/north/out/health", json.dumps({"queue": number}), qos=1)
        count, queue = 0, -1
        while queue != 299:
            some = events.next()
            count += 1
            for row in some.get("devices", ()):
                queue = row.get("health", {}).get("queue", queue)
        assert count < 100
        events.close()

    def test_what_cannot_be_read_is_left_out(self, dashboard, peer):
        page, client = dashboard(), peer()
        events = Events(page.url)
        events.next()
        for topic in ("state", "info", "health", "link/hot", "ota"):
            client.client.publish(f"stonechat/1/north/out/{topic}", b"\xff not json", qos=1)
        client.publish("stonechat/1/north/out/state", {"state": "ready", "boot": 1})
        states: list[str] = []  # the first message that is told of may be any of them
        while "ready" not in states:
            states += [row["state"] for row in events.next().get("devices", ()) if row["id"] == "north"]
        assert set(states) <= {"unknown", "ready"}
        events.close()


class TestAsking:
    def test_any_device_and_the_answer_streams(self, dashboard, on_air):
        page, device = dashboard(), on_air(ScriptedModel(["Open", " it."]))
        model = f"{device.topics.device}/default"
        wait_until(lambda: model in [m["id"] for m in page.call("/api/v1/models")[2]["data"]])
        ask = {"model": model, "messages": [{"role": "user", "content": "hot?"}], "stream": True}
        status, headers, text = page.call("/api/v1/chat/completions", ask)
        assert status == 200 and headers["content-type"].startswith("text/event-stream")
        pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == "Open it."


class TestLinks:
    def test_a_dry_run_asks_the_device_where_there_is_no_bundle(self, dashboard, on_air):
        device = on_air(ScriptedModel(['{"ok": true}']), device="north")
        device.client.client.unsubscribe("#")
        page = dashboard(FLEET.replace("model: advisor", "model: default").replace("  advisor:", "  default:"))
        link = page.call("/api/links")[2]["links"][0] | {"answer": "{type: object, properties: {ok: {type: boolean}}}"}
        readings = '{"topic": "plant/3/boiler", "reading": {"temp_c": 91}}\nplant/4/boiler {"temp_c": 20}\nother/x {}'
        asked = {"was": "hot", "link": link, "devices": ["north"], "readings": readings}
        status, _, said = page.call("/api/links/try", asked)
        assert status == 200, said
        assert (said["where"], said["asleep"], said["of_no_link"]) == ("north", 1, 1)
        assert said["answers"][0]["answer"] == {"ok": True}
        assert page.fleet.read_text(encoding="utf-8").count("ok") == 0  # nothing was saved

    def test_a_dry_run_with_the_bundle_here(self, dashboard, pi_bundle):
        page = dashboard(FLEET.replace("bundle: nowhere", f'bundle: "{pi_bundle}", max_new: 4'))
        link = page.call("/api/links")[2]["links"][0]
        asked = {"was": "hot", "link": link, "devices": ["north"], "readings": 'plant/3/boiler {"temp_c": 91}'}
        status, _, said = page.call("/api/links/try", asked)
        assert status == 200 and said["where"] == "this machine" and said["answers"][0]["text"]

    def test_readings_that_are_none(self, dashboard):
        page = dashboard()
        link = page.call("/api/links")[2]["links"][0]
        asked = {"was": "hot", "link": link, "devices": ["north"], "readings": "{broken"}
        status, _, said = page.call("/api/links/try", asked)
        assert status == 400 and "not JSON" in said["error"]["message"]
        assert page.call("/api/links/try", asked | {"devices": [], "readings": "plant/1/boiler 1"})[0] == 400

    def test_a_full_disk_ends_no_dry_run(self, dashboard, small_disk, pi_bundle, monkeypatch):
        page = dashboard(FLEET.replace("bundle: nowhere", f'bundle: "{pi_bundle}", max_new: 4'))
        monkeypatch.setattr("tempfile.tempdir", str(small_disk))
        monkeypatch.setenv("STONECHAT_CACHE", str(small_disk / "cache"))
        fill(small_disk)
        link = page.call("/api/links")[2]["links"][0]
        asked = {"was": "hot", "link": link, "devices": ["north"], "readings": 'plant/3/boiler {"temp_c": 91}\nx'}
        status, _, said = page.call("/api/links/try", asked)
        assert status == 400 and "line:2: found 'x'" in said["error"]["message"]
        status, _, said = page.call("/api/links/try", asked | {"readings": asked["readings"].splitlines()[0]})
        assert status == 200 and said["answers"][0]["text"], said

    def test_saving_shows_on_every_page(self, dashboard):
        page = dashboard()
        events = Events(page.url)
        base = events.next()["links"]["base"]
        saved = page.call("/api/links/save", {"was": None, "link": LINK, "devices": ["south"], "base": base})
        assert saved[0] == 200
        some = events.until(lambda some: "links" in some)
        assert [link["name"] for link in some["links"]["links"]] == ["hot", "cold"]
        again = page.call("/api/links/save", {"was": None, "link": LINK, "devices": ["south"], "base": base})
        assert again[0] == 400 and "cold" in json.dumps(again[2]["faults"])  # the name is taken
        other = page.call("/api/links/save", {"was": None, "link": LINK | {"name": "x"}, "devices": [], "base": base})
        assert (other[0], other[2]["error"]["code"]) == (409, "changed")
        events.close()

    @pytest.mark.parametrize("full", [True, False], ids=["full", "read-only"])
    def test_a_file_that_cannot_be_written_stays_as_it_was(self, full, dashboard, small_disk, tmp_path, caplog):
        fleet = small_disk / "fleet.yaml"
        fleet.write_text(FLEET, encoding="utf-8")
        page = dashboard(fleet)
        found = page.call("/api/links")[2]
        asked = {"was": None, "link": LINK, "devices": ["south"], "base": found["base"]}
        if full:
            fill(small_disk)
            why, status, code = "No space left on device. Free some and save again.", 507, "disk_full"
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
            why, status, code = "Read-only file system. Save again once", 403, "not_writable"
        before = sorted(path.name for path in small_disk.iterdir())
        for path, body in (("save", asked), ("delete", {"was": "hot", "base": found["base"]})):
            answer = page.call(f"/api/links/{path}", body)
            assert (answer[0], answer[2]["error"]["code"]) == (status, code), answer
            assert f"fleet.yaml cannot be written: {why}" in answer[2]["error"]["message"]
        assert fleet.read_text(encoding="utf-8") == FLEET
        assert sorted(path.name for path in small_disk.iterdir()) == before
        assert "Traceback" not in caplog.text
        if full:
            (small_disk / "filler").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert page.call("/api/links/save", asked)[0] == 200

    @pytest.mark.parametrize(
        "body", [{}, {"link": []}, {"link": {}, "devices": "x"}, {"link": {"name": 1}, "devices": []}]
    )
    def test_bodies_that_are_none(self, dashboard, body):
        assert dashboard().call("/api/links/check", body)[0] == 400


class TestRollouts:
    @pytest.fixture
    def one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutFiles:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        files = RolloutFiles(default_folder())
        devices = ("north", "south")
        plan = Plan("20260101-000000-abcd", "/b", "0" * 64, "m", "2", str(tmp_path / "fleet.yaml"), "all", devices)
        files.write(replace(Rollout.of(plan), canaries=("north",)))
        return files

    def test_pause_and_abort(self, dashboard, one):
        page = dashboard()
        events = Events(page.url)
        shown = events.until(lambda some: some.get("rollouts"))["rollouts"][0]
        assert (shown["id"], shown["counts"]["waiting"]) == ("20260101-000000-abcd", 2)
        assert page.call("/api/rollouts/20260101-000000-abcd/pause", {})[2]["paused"]
        assert one.read("20260101-000000-abcd").paused
        assert page.call("/api/rollouts/20260101-000000-abcd/abort", {})[2]["stage"] == "aborted"
        events.until(lambda some: some.get("rollouts", [{}])[0].get("stage") == "aborted")
        assert page.call("/api/rollouts/20260101-000000-abcd/pause", {})[0] == 400
        events.close()

    @pytest.fixture
    def crowded(self, dashboard, one, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutFiles:
        """The same on a small disk."""
        monkeypatch.setenv("XDG_STATE_HOME", str(small_disk))
        files = RolloutFiles(default_folder())
        files.write(one.read("20260101-000000-abcd"))
        return files

    @pytest.mark.parametrize(
        ("full", "carried_out"), [(True, True), (True, False), (False, False)], ids=["wish", "full", "read-only"]
    )
    def test_a_file_that_cannot_be_written_stays_as_it_was(
        self, full, carried_out, dashboard, crowded, small_disk, monkeypatch, caplog
    ):
        rollout_id = "20260101-000000-abcd"
        page = dashboard()
        before = crowded.read(rollout_id)
        with ExitStack() as stack:
            if carried_out:
                stack.enter_context(crowded.carrying_out(rollout_id))
            names = sorted(path.name for path in crowded.folder.iterdir())
            if full:
                fill(small_disk)
                why, status = "No space left on device. Free some and try again.", 507
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
                why, status = "Read-only file system. Try again once this user may write there.", 400
            events = Events(page.url)
            events.until(lambda some: some.get("rollouts", [{}])[0].get("paused") is not carried_out)
            ending = "wish" if carried_out else "json"
            for action in ("pause", "abort") if carried_out else ("pause", "abort", "resume"):
                answer = page.call(f"/api/rollouts/{rollout_id}/{action}", {})
                assert answer[0] == status, answer
                said = answer[2]["error"]["message"]
                assert said == f"{crowded.folder / rollout_id}.{ending} cannot be written: {why}"
            assert sorted(path.name for path in crowded.folder.iterdir()) == names
            assert crowded.read(rollout_id) == before and "Traceback" not in caplog.text
        if full:
            (small_disk / "filler").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert page.call(f"/api/rollouts/{rollout_id}/abort", {})[2]["stage"] == "aborted"
        assert events.until(lambda some: some.get("rollouts", [{}])[0].get("stage") == "aborted")  # it still looks
        events.close()

    def test_a_process_that_ends_before_it_has_paused_is_not_waited_for(self, crowded):
        """As one does that finds the disk full when it wants to keep what it was asked."""
        rollout_id = "20260101-000000-abcd"
        with ThreadPoolExecutor() as pool:
            with crowded.carrying_out(rollout_id):
                paused = pool.submit(hold, crowded, rollout_id, "pause")
                wait_until(lambda: crowded.take_wish(rollout_id) == "pause")
            assert paused.result(5).paused

    def test_the_page_has_the_last_words_of_a_process_that_ended(self, dashboard, one, pi_bundle):
        page = dashboard()
        events = Events(page.url)
        assert page.call("/api/rollouts/20260101-000000-abcd/resume", {})[0] == 200
        shown = events.until(lambda some: some.get("rollouts", [{}])[0].get("error"))["rollouts"][0]
        assert shown["error"].startswith("`rollout resume` ended with 2: stonechat: ") and "/b" in shown["error"]
        assert shown["error"].endswith("; see 20260101-000000-abcd.log beside its file.")
        events.close()

    def test_what_there_is_not(self, dashboard, one):
        page = dashboard()
        for path in ("x/pause", "20260101-000000-abcd/delete", "..%2f..%2fetc/pause", ".x/abort"):
            assert page.call(f"/api/rollouts/{path}", {})[0] in (400, 404)

    @pytest.mark.slow
    def test_resuming_carries_it_on_in_a_process_of_its_own(self, dashboard, on_air, port, pi_bundle):
        """The device has no slot folder, so that the roll-out ends with its refusal: what counts is who says so."""
        device = on_air(ScriptedModel(["x"]))
        name = device.topics.device
        fleet = FLEET.replace("schema: 1", f'schema: 1\nbroker: {{url: "mqtt://127.0.0.1:{port}"}}').replace(
            "south", name
        )
        page = dashboard(fleet)
        bundle = Bundle.open(pi_bundle)
        plan = Plan(
            "20260101-000000-abcd", str(pi_bundle), bundle.manifest_sha256, "m", "2", str(page.fleet), "all", (name,)
        )
        files = RolloutFiles(default_folder())
        files.write(replace(Rollout.of(plan), paused=True))
        events = Events(page.url)
        assert events.until(lambda some: some.get("rollouts"))["rollouts"][0]["paused"]
        assert page.call(f"/api/rollouts/{plan.id}/resume", {})[0] == 200
        ended = events.until(lambda some: some.get("rollouts", [{}])[0].get("ended"))["rollouts"][0]
        assert ended["stage"] == "stopped" and ended["counts"]["failed"] == 1
        assert "slot folder" in ended["devices"][name]["message"]
        events.close()

    def test_without_an_operator_nobody_resumes_from_here(self, dashboard, one):
        page = dashboard(operator=None)
        status, _, said = page.call("/api/rollouts/20260101-000000-abcd/resume", {})
        assert status == 403 and "stonechat rollout resume 20260101-000000-abcd" in said["error"]["message"]


def test_the_role_at_the_broker_sees_asks_and_orders_nothing():
    access = Access()
    access.add_dashboard("wall")
    rights = access.rights["wall"]
    assert "read stonechat/1/+/out/ota" in rights and "write stonechat/1/+/in/generate/wall" in rights
    assert not [right for right in rights if right.startswith("write") and "/in/ota" in right]
    writes = [right for right in rights if right.startswith(("readwrite", "write")) and not right.endswith("/wall")]
    assert writes == ["write stonechat/1/announce"]  # asks who is there


def test_the_page_is_light_and_comes_from_here_alone():
    total = sum(len(gzip.compress(path.read_bytes(), 6)) for path in PAGES.values())
    assert total < 300_000  # the limit that was asked for; it is about a tenth
    for path in STATIC.rglob("*"):
        if path.suffix in (".js", ".css", ".html") and path.parent.name != "vendor":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text), path.name
            assert "dangerouslySetInnerHTML" not in text and "insertAdjacentHTML" not in text


def test_the_command_serves_until_sigterm(port, tmp_path):
    (tmp_path / "fleet.yaml").write_text(FLEET, encoding="utf-8")
    command = [sys.executable, "-m", "toolkit", "dashboard", str(tmp_path / "fleet.yaml"), "--port", str(free_port())]
    command += ["--broker", f"mqtt://127.0.0.1:{port}"]
    environment = {name: value for name, value in os.environ.items() if name != "STONECHAT_TOKEN"}
    environment["XDG_STATE_HOME"] = str(tmp_path)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "for this machine alone" in line
        url = re.search(r"http://\S+[0-9]", line)[0]
        events = Events(url)
        assert events.next()["all"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 and process.stderr.read() == "stopped\n"
        events.close()
    finally:
        process.kill()


def test_two_pages_at_once(dashboard, peer):
    page, client = dashboard(), peer()
    pages = [Events(page.url) for _ in range(2)]
    for events in pages:
        events.next()
    threads = []
    for events in pages:
        thread = threading.Thread(target=events.until, args=(lambda some: "devices" in some,))
        thread.start()
        threads.append(thread)
    client.publish("stonechat/1/south/out/state", {"state": "busy", "boot": 1})
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for events in pages:
        events.close()
