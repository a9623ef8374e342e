"""Roll-outs: what is decided, what is kept, and the whole over a real broker with devices that run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.ota_messages import Phase, Report
from device_runtime.update.active import read_state
from device_runtime.update.install import install
from device_runtime.update.slots import lock
from device_runtime.update.staging import peek
from device_runtime.update.trial import try_pending
from tests.support.brokers import mosquitto
from tests.support.update_bundles import variant
from toolkit.cli import main
from toolkit.rollout.back import way_back
from toolkit.rollout.files import RolloutFiles
from toolkit.rollout.rollout import DevicePhase, Plan, Rollout, Stage
from toolkit.rollout.run import Runner
from toolkit.signing.bundles import sign_bundle
from toolkit.signing.keys import new_key

TEN = tuple(f"pi-{n}" for n in range(10))


def plan(devices: tuple[str, ...] = TEN, **changes: object) -> Plan:
    base = Plan("20260101-000000-abcd", "/b", "0" * 64, "m", "2", "/f.yaml", "all", devices)
    return replace(base, **changes)


def ended(rollout: Rollout, device: str, phase: Phase = Phase.CONFIRMED) -> Rollout:
    rollout = rollout.ordered(device, f"s-{device}")
    return rollout.heard(device, Report(f"s-{device}", phase, "m", message="why"))


class TestDecisions:
    def test_canaries_come_first_and_the_rest_only_when_they_run_it(self):
        rollout = Rollout.of(plan(canary_percent=20)).choose_canaries(TEN)
        assert rollout.due(TEN) == ["pi-0", "pi-1"]
        rollout = ended(rollout, "pi-0")
        assert (rollout.stage, rollout.due(TEN)) == (Stage.CANARY, ["pi-1"])
        rollout = ended(rollout, "pi-1")
        assert (rollout.stage, rollout.due(TEN)) == (Stage.FLEET, list(TEN[2:]))

    def test_there_is_always_a_canary_and_it_is_on_the_air(self):
        assert plan(canary_percent=0).canaries == 1
        rollout = Rollout.of(plan(canary_percent=0)).choose_canaries(["pi-7", "pi-3"])
        assert rollout.canaries == ("pi-3",)

    def test_a_failed_canary_stops_everything(self):
        rollout = ended(Rollout.of(plan()).choose_canaries(TEN), "pi-0", Phase.ROLLED_BACK)
        assert (rollout.stage, rollout.due(TEN)) == (Stage.STOPPED, [])
        assert rollout.devices["pi-0"].message == "why"

    def test_it_stops_when_more_than_the_threshold_have_failed(self):
        rollout = ended(Rollout.of(plan(max_failed_percent=20)).choose_canaries(TEN), "pi-0")
        for device in ("pi-1", "pi-2"):
            rollout = ended(rollout, device, Phase.REFUSED)
        assert rollout.stage is Stage.FLEET
        assert ended(rollout, "pi-3", Phase.REFUSED).stage is Stage.STOPPED

    def test_no_more_than_so_many_at_once(self):
        rollout = ended(Rollout.of(plan(parallel=3)).choose_canaries(TEN), "pi-0")
        assert len(rollout.due(TEN)) == 3
        assert len(rollout.ordered("pi-1", "s").due(TEN)) == 2

    def test_devices_that_are_not_on_the_air_wait_and_hold_up_nobody(self):
        rollout = ended(Rollout.of(plan()).choose_canaries(TEN), "pi-0")
        assert rollout.due(["pi-5"]) == ["pi-5"]
        for device in TEN[1:-1]:
            rollout = ended(rollout, device)
        assert (rollout.stage, rollout.count(DevicePhase.WAITING)) == (Stage.FLEET, 1)
        assert ended(rollout, "pi-9").stage is Stage.DONE

    def test_reports_of_another_order_change_nothing(self):
        rollout = Rollout.of(plan()).choose_canaries(TEN).ordered("pi-0", "s")
        for device, session in (("pi-0", "other"), ("pi-1", "s"), ("stranger", "s")):
            assert rollout.heard(device, Report(session, Phase.CONFIRMED, "m")) is rollout

    def test_it_is_known_what_those_who_failed_have_in_common(self):
        rollout = Rollout.of(plan(canary_percent=20)).choose_canaries(TEN)
        for device, code in (("pi-0", "does_not_fit"), ("pi-1", "rolled_back")):
            rollout = rollout.ordered(device, f"s-{device}")
            report = Report(f"s-{device}", Phase.REFUSED, "m", code=code, message="why")
            rollout = rollout.heard(device, report)
            if device == "pi-0":
                assert rollout.codes == {"does_not_fit"}
        assert rollout.codes == {"does_not_fit", "rolled_back"}

    def test_paused_and_aborted_begin_nothing(self):
        rollout = Rollout.of(plan()).choose_canaries(TEN)
        assert replace(rollout, paused=True).due(TEN) == []
        assert rollout.abort().due(TEN) == []
        assert ended(rollout, "pi-0", Phase.REFUSED).abort().stage is Stage.STOPPED


class Machine(RuleBasedStateMachine):
    """Whatever devices do, and in whatever order: the rules of a roll-out hold."""

    def __init__(self) -> None:
        super().__init__()
        self.rollout = Rollout.of(plan(canary_percent=30.0, parallel=2, max_failed_percent=30.0))
        self.ended: dict[str, DevicePhase] = {}

    @rule(on_air=st.lists(st.sampled_from(TEN), unique=True))
    def begin(self, on_air: list[str]) -> None:
        self.rollout = self.rollout.choose_canaries(on_air)
        for device in self.rollout.due(on_air):
            assert device in on_air
            assert self.rollout.stage is not Stage.CANARY or device in self.rollout.canaries
            self.rollout = self.rollout.ordered(device, f"s-{device}")

    @rule(device=st.sampled_from(TEN), phase=st.sampled_from(Phase))
    def report(self, device: str, phase: Phase) -> None:
        self.rollout = self.rollout.heard(device, Report(f"s-{device}", phase, "m"))

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.rollout = replace(self.rollout, paused=paused)

    @precondition(lambda self: not self.rollout.ended)
    @rule()
    def abort(self) -> None:
        self.rollout = self.rollout.abort()

    @rule()
    def keep(self) -> None:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            files = RolloutFiles(Path(folder))
            files.write(self.rollout)
            assert files.read(self.rollout.plan.id) == self.rollout

    @invariant()
    def rules(self) -> None:
        r = self.rollout
        assert r.count(DevicePhase.UPDATING) <= r.plan.parallel
        for device, phase in self.ended.items():
            assert r.devices[device].phase is phase  # an end is an end
        self.ended = {name: d.phase for name, d in r.devices.items() if d.phase.ended}
        others = [d for name, d in r.devices.items() if name not in r.canaries]
        if any(d.phase is not DevicePhase.WAITING for d in others):
            failed = sum(r.devices[c].phase is DevicePhase.FAILED for c in r.canaries)
            assert all(r.devices[c].phase.ended for c in r.canaries)
            assert failed * 100 <= 30 * len(r.canaries)
        if r.stage is Stage.DONE:
            assert all(d.phase.ended for d in r.devices.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=40)


class TestFiles:
    def test_a_roll_out_that_is_not_there_names_those_that_are(self, tmp_path):
        files = RolloutFiles(tmp_path)
        files.write(Rollout.of(plan()))
        with pytest.raises(ConfigurationError, match="no roll-out 'x'; there are 20260101-000000-abcd"):
            files.read("x")
        for bad in ("", "../x", ".x"):
            with pytest.raises(ConfigurationError, match="no id of a roll-out"):
                files.read(bad)

    @given(st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b'{"schema":2}', b'{"schema":1,"plan":{}}']))
    def test_a_damaged_file_is_our_own_error(self, content):
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            (Path(folder) / "r.json").write_bytes(content)
            with pytest.raises(ConfigurationError, match="cannot be read"):
                RolloutFiles(Path(folder)).read("r")

    def test_one_process_carries_it_out(self, tmp_path):
        files = RolloutFiles(tmp_path)
        with files.carrying_out("r"):
            assert files.is_carried_out("r")
            with pytest.raises(ConfigurationError, match="carried out by another process"), files.carrying_out("r"):
                pass
        assert not files.is_carried_out("r")


class Site:
    """A broker, a fleet file, and devices that run."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.devices: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self.devices[name] = subprocess.Popen(
                [
                    sys.executable, "-m", "toolkit", "serve", self.folder / name / "fleet.yaml", "--device", name,
                    "--keys", self.folder / "keys", "--state-dir", self.folder / name / "state",
                ],
                stderr=(self.folder / f"{name}.log").open("ab"),
            )  # fmt: skip

    def stop(self) -> None:
        for process in self.devices.values():
            process.terminate()
        for process in self.devices.values():
            process.wait(30)

    def versions(self) -> dict[str, str]:
        found = {}
        for name in NAMES:
            folder = self.folder / name / "models" / "assistant"
            state = read_state(folder)
            manifest = peek(folder / state.active) if state.active else None
            found[name] = manifest.version if manifest else "?"
        return found


NAMES = tuple(f"pi-{n}" for n in range(5))
FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models: {{assistant: {{bundle: models/assistant, threads: 1}}}}
devices:
{devices}
"""


@pytest.fixture(scope="module")
def bundles(pi_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Versions 1, 2 and 3, which run, and `broken`. Signed. Read only."""
    folder = tmp_path_factory.mktemp("versions")
    key = new_key("plant", folder, None)
    with LanguageModel.open(pi_bundle, threads=1) as model:
        said = "".join(model.generate([{"role": "user", "content": "hello"}], max_new=4))
    made = {"keys": folder}
    for version, counter, expect in (("1", 1, said), ("2", 2, said), ("broken", 3, "never"), ("3", 3, said)):
        trial = {"prompt": "hello", "expect": expect, "max_new": 4}
        made[version] = variant(pi_bundle, folder / version, version, security_counter=counter, trial=trial)
        sign_bundle(made[version], {}, [key])
    return made


@pytest.fixture
def site(bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Five devices with version 1, in a group, on a broker of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "operator"))
    (tmp_path / "broker").mkdir()
    with mosquitto(tmp_path / "broker") as port:
        lines = "\n".join(f"  {name}: {{model: assistant, groups: [herd]}}" for name in NAMES)
        text = FLEET.format(port=port, devices=lines)
        (tmp_path / "fleet.yaml").write_text(text)
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "plant.pub").write_bytes((bundles["keys"] / "plant.pub").read_bytes())
        for name in NAMES:
            with lock(tmp_path / name / "models" / "assistant", make=True) as slots:
                install(bundles["1"], slots)
                if name == NAMES[0]:
                    try_pending(slots, threads=1)
                else:  # the same bundle: one trial will do
                    slots.attempt()
                    slots.confirm(1, replace(slots.state.last, outcome="confirmed"))
            (tmp_path / name / "fleet.yaml").write_text(text)
        site = Site(tmp_path, port)
        yield site
        site.stop()


def deploy(site: Site, bundle: Path, *flags: str) -> int:
    return main(["deploy", str(bundle), "--to", "fleet:herd", "--fleet", str(site.folder / "fleet.yaml"), *flags])


def unwrapped(text: str) -> str:
    """With single blanks in place of line breaks: texts are printed in lines of at most 80 columns."""
    return " ".join(text.split())


def test_a_bad_bundle_stops_at_the_canary_and_a_good_one_reaches_everybody(site, bundles, capfd):
    site.start(*NAMES)
    assert deploy(site, bundles["broken"], "--wait", "60") == 6
    out, err = capfd.readouterr()
    assert "stopped (1 failed, 4 waiting)" in unwrapped(out)
    assert "pi-" in err and "expected an answer with 'never'" in err
    assert set(site.versions().values()) == {"1"}

    assert deploy(site, bundles["2"], "--parallel", "2", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["stage"], len(shown["canaries"])) == ("done", 1)
    assert {d["phase"] for d in shown["devices"].values()} == {"confirmed"}
    assert set(site.versions().values()) == {"2"}
    assert main(["rollout", "list"]) == 0
    listed = capfd.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in listed] == ["stopped (1 failed, 4 waiting)", "done (5 confirmed)"]
    assert main(["rollout", "list", "--json"]) == 0
    rollouts = json.loads(capfd.readouterr().out)["rollouts"]
    assert [(one["stage"], one["id"] == shown["id"]) for one in rollouts] == [("stopped", False), ("done", True)]


def test_the_operator_vanishes_and_another_process_goes_on(site, bundles, capfd):
    site.start(*NAMES[:3])  # two are switched off
    command = [sys.executable, "-m", "toolkit", "deploy", bundles["2"], "--to", "fleet:herd", "--fleet",
               site.folder / "fleet.yaml", "--parallel", "1", "--wait", "300"]  # fmt: skip
    laptop = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert laptop.stderr is not None
    for line in laptop.stderr:
        if "runs 2" in line:  # the canary
            break
    laptop.send_signal(signal.SIGKILL)
    laptop.wait()
    (rollout_id,) = RolloutFiles(site.folder / "operator" / "stonechat" / "rollouts").ids()

    assert main(["rollout", "resume", rollout_id]) == 3
    out, err = capfd.readouterr()
    assert "fleet, paused (3 confirmed, 2 waiting)" in unwrapped(out)
    assert f"go on with: stonechat rollout resume {rollout_id}" in err
    assert list(site.versions().values()) == ["2", "2", "2", "1", "1"]

    site.start(*NAMES[3:])
    assert main(["rollout", "resume", rollout_id, "--wait", "60"]) == 0
    assert "done (5 confirmed)" in unwrapped(capfd.readouterr().out)
    assert set(site.versions().values()) == {"2"}
    assert main(["rollout", "abort", rollout_id]) == 2
    assert "is done already" in capfd.readouterr().err


def test_pause_and_abort_from_another_terminal(site, bundles, capfd):
    site.start(NAMES[0])
    done: list[int] = []
    terminal = threading.Thread(target=lambda: done.append(_in_process(site, bundles["2"])))
    terminal.start()
    files = RolloutFiles(site.folder / "operator" / "stonechat" / "rollouts")
    _until(lambda: bool(files.ids()) and files.read(files.ids()[0]).count(DevicePhase.CONFIRMED) == 1)
    (rollout_id,) = files.ids()
    assert main(["rollout", "pause", rollout_id]) == 0
    terminal.join(30)
    assert done == [1]
    assert "fleet, paused (1 confirmed, 4 waiting)" in unwrapped(capfd.readouterr().out)
    assert main(["rollout", "abort", rollout_id, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["stage"] == "aborted"
    assert main(["rollout", "resume", rollout_id]) == 2


def _in_process(site: Site, bundle: Path) -> int:
    command = [sys.executable, "-m", "toolkit", "deploy", bundle, "--to", "fleet:herd", "--fleet",
               site.folder / "fleet.yaml", "--wait", "300"]  # fmt: skip
    return subprocess.run(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def _until(what: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(ConfigurationError):  # between two versions of a file there is none
            if what():
                return
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "fleet:herd"], "needs --fleet FLEET.yaml"),
        (["--to", "fleet:hord", "--fleet", "fleet.yaml"], "no device in the group 'hord'; did you mean 'herd'?"),
    ],
)
def test_a_roll_out_that_cannot_begin_says_why(tmp_path, monkeypatch, capfd, flags, message):
    monkeypatch.chdir(tmp_path)
    lines = "  pi-1: {model: assistant, groups: [herd]}"
    (tmp_path / "fleet.yaml").write_text(FLEET.format(port=1, devices=lines))
    assert main(["deploy", "bundle", *flags]) == 2
    assert message in capfd.readouterr().err


def test_a_fleet_is_brought_back_to_the_bundle_before_by_a_manifest_that_counts_higher(site, bundles, capfd):
    site.start(*NAMES[:2])  # the others are switched off
    for version in ("2", "3"):
        assert deploy(site, bundles[version], "--wait", "5") == 3
    err = capfd.readouterr().err
    assert "pi-0: has all of it, and tries it" in err
    files = RolloutFiles(site.folder / "operator" / "stonechat" / "rollouts")
    second, third = files.ids()
    assert list(site.versions().values()) == ["3", "3", "1", "1", "1"]

    key = ["--key", str(bundles["keys"] / "plant.key")]
    assert main(["rollout", "back", third, *key, "--wait", "60"]) == 0
    assert "2 to 2 devices of herd" in capfd.readouterr().err
    assert list(site.versions().values()) == ["2", "2", "1", "1", "1"]
    slots = site.folder / "pi-0" / "models" / "assistant"
    assert read_state(slots).security_counter == 4  # that of version 3, and one more
    assert files.read(third).stage is Stage.ABORTED
    assert peek(bundles["2"]).security_counter == 2  # the operator's copy stays as it was

    assert main(["rollout", "back", second, *key]) == 2
    assert "No earlier roll-out is known here" in capfd.readouterr().err


def test_there_is_no_way_back_from_what_nobody_has_taken(tmp_path):
    left = Rollout.of(plan())
    with pytest.raises(ConfigurationError, match="No device of roll-out 20260101-000000-abcd has taken its bundle"):
        way_back(left, RolloutFiles(tmp_path), "20260102-000000-abcd", None, [])


@pytest.mark.parametrize("way", ["deploy", "back", "back to a packed one"])
def test_what_a_full_disk_ends_leaves_nothing_and_can_be_begun_again(
    way, bundles, small_disk, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("XDG_STATE_HOME", str(small_disk))
    fleet, packed = tmp_path / "fleet.yaml", tmp_path / "1.zip"
    names = tuple(f"pi-{n}" for n in range(100))  # so many that their file takes more than a block of the disk
    lines = "\n".join(f"  {name}: {{model: assistant, groups: [herd]}}" for name in names)
    fleet.write_text(FLEET.format(port=1, devices=lines))  # nobody listens there
    assert main(["bundle", "pack", str(bundles["1"]), "-o", str(packed)]) == 0
    files = RolloutFiles(small_disk / "stonechat" / "rollouts")
    left = plan(names, bundle=str(bundles["2"]), fleet=str(fleet))
    done = Rollout.of(left).choose_canaries(names)
    for name in names:
        done = ended(done, name)
    files.write(done)
    words = ["deploy", str(packed), "--to", "fleet:herd", "--fleet", str(fleet)]
    if way != "deploy":
        to = packed if "packed" in way else bundles["1"]
        words = ["rollout", "back", left.id, "--key", str(bundles["keys"] / "plant.key"), "--bundle", str(to)]
    before = sorted(path.name for path in files.folder.iterdir())
    blocks = sum(-(-file.stat().st_size // 4096) for file in bundles["1"].iterdir())  # of the disk, for the bundle
    room = 4096 * (
        blocks - 1 if way == "back" else blocks + 1
    )  # then it is the bundle that does not fit, else what comes after it
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    capfd.readouterr()
    assert main([*words, "--json"]) == 1
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["code"] == "disk_full" and error["path"].startswith(str(files.folder)), error
    assert "cannot be written: No space left on device. Free some and try again." in error["message"]
    assert sorted(path.name for path in files.folder.iterdir()) == before
    (small_disk / "filler").unlink()
    assert main([*words, "--json"]) == 3  # as far as the broker, which is not there
    assert json.loads(capfd.readouterr().out)["error"]["code"] == "unreachable"
    assert len(files.ids()) == 2


@pytest.mark.parametrize("what", ["bundle", "fleet", "packed", "model"])
def test_what_is_not_utf_8_is_refused_by_its_name_and_leaves_nothing(what, bundles, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("state\udcff" if what == "packed" else "state")))
    fleet, bundle = tmp_path / ("fleet\udcff.yaml" if what == "fleet" else "fleet.yaml"), bundles["1"]
    fleet.write_text(FLEET.format(port=1, devices="  pi-1: {model: assistant, groups: [herd]}"))
    if what == "bundle":
        bundle = shutil.copytree(bundle, tmp_path / "b\udcff")
    elif what == "packed":
        assert main(["bundle", "pack", str(bundle), "-o", str(tmp_path / "1.zip")]) == 0
        bundle = tmp_path / "1.zip"
    more = ["--model", "m\udcff"] if what == "model" else []
    capfd.readouterr()
    assert main(["deploy", str(bundle), "--to", "fleet:herd", "--fleet", str(fleet), *more, "--json"]) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    what = "bundle" if what == "packed" else what
    assert error["code"] == "configuration"
    assert re.fullmatch(rf"the {what} '.*\\udcff.*' is not UTF-8, and .*; give it another name\.", error["message"])
    assert not list(tmp_path.glob("state*/stonechat/rollouts/*"))


@pytest.mark.parametrize("url", ["ftp://host/b", "https://", "host/bundles", "https://host/b?x=1", "http://[::1"])
def test_a_url_is_checked_where_it_is_typed(url, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "bundle", "--to", "fleet:herd", "--fleet", "fleet.yaml", "--url", url])
    assert ended.value.code == 2
    assert "expected http:// or https://HOST/PATH" in capfd.readouterr().err


def test_a_transfer_shows_its_progress_by_quarters():
    said: list[str] = []
    runner = Runner(Rollout.of(plan()).ordered("pi-0", "s"), None, None, said.append)
    for done in (0, 10, 300, 310, 1000):
        runner._take(("pi-0", Report("s", Phase.FETCHING, "m", done_bytes=done * 10**6, total_bytes=10**9)))
    for _ in range(2):
        runner._take(("pi-0", Report("s", Phase.TRIAL, "m")))
    runner._take(("pi-0", Report("of another order", Phase.FETCHING, "m", done_bytes=1, total_bytes=2)))
    assert said == [
        "pi-0: has 0% of 1,000.0 MB", "pi-0: has 30% of 1,000.0 MB", "pi-0: has 100% of 1,000.0 MB",
        "pi-0: has all of it, and tries it",
    ]  # fmt: skip
