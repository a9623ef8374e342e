"""`stonechat fleet` and `stonechat chat`, with scripted devices on a real broker, and what `ask --pool` waits for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

import device_runtime
from device_runtime.client.roll_call import roll_call
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState, HealthReport, Info, LinkAnswer, State
from device_runtime.mqtt.strict_json import dump
from device_runtime.mqtt.topics import DeviceTopics
from device_runtime.records.typed_json import write
from tests.support.brokers import mosquitto
from tests.support.scripted_fleet import Device, fleet_file

ROOT = Path(__file__).parents[2]
WHY = (  # as a device says it
    "the answer of link 'words' cannot be given: The vocabulary of this bundle, of 512 tokens, cannot spell the "
    "answer: the property 'Tür' (no token for 'ü'). Give other names, or take another model."
)
LISTED = """\
device  state    stonechat  pool  models
newer   unknown  -          -     -
north   ready    0.1.0      herd  scripted
south   lost     0.0.9      -     boiler (boiler-advisor 3)
west    unknown  -          herd  scripted

links that a device leaves out, and why
  south words  the answer of link 'words' cannot be given: The vocabulary of
               this bundle, of 512 tokens, cannot spell the answer: the property
               'Tür' (no token for 'ü'). Give other names, or take another
               model.
  south hall  line one\\n\\x1b[31mline two

last answers
  south overheating  {"severity": "alarm"}
  south words  Open [31m the window.
"""
STONECHAT = [sys.executable, "-c", "import sys; from toolkit.cli import main; sys.exit(main())"]


def stonechat(*arguments: str, stdin: str = "", timeout: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STONECHAT, *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture(scope="module")
def fleet(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three devices: `north` of the pool `herd` is online, `south` is lost, and `west` never was there."""
    folder = tmp_path_factory.mktemp("fleet")
    path = fleet_file(folder, {"north": ", pool: herd", "south": "", "west": ", pool: herd"})
    path.write_text(path.read_text().replace("schema: 1", f"schema: 1\nbroker: {{url: 'mqtt://127.0.0.1:{port}'}}"))
    said = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    said.connect("127.0.0.1", port)
    said.loop_start()
    south = DeviceTopics("south")
    retained = {
        south.state: State(DeviceState.LOST, 4).to_json(),
        south.info: Info(
            "south",
            "Pi",
            "0.0.9",
            ("boiler",),
            bundles={"boiler": "boiler-advisor 3"},
            links_refused={"words": WHY, "hall": "line one\n\x1b[31mline two"},
        ).to_json(),
        south.health: dump(write(HealthReport(answers=41, tps_p50=51.25))),
        south.link("overheating"): dump(write(LinkAnswer(answer={"severity": "alarm"}, link="overheating"))),
        # An earlier answer of the same link, kept for one of the topics that it reads: not its last one.
        south.link("overheating", "boiler-1"): dump(write(LinkAnswer(answer={"severity": "ok"}, link="overheating"))),
        south.link("words"): dump(write(LinkAnswer(text="Open\x1b[31m the\nwindow.", link="words"))),
        DeviceTopics("newer").state: b'{"state":"dreaming","boot":1}',
    }
    for topic, payload in retained.items():
        said.publish(topic, payload, qos=1, retain=True).wait_for_publish(10)
    said.disconnect()
    device = Device(folder, port, "north", path)
    device.start(ready=True)
    yield path
    device.stop()


def test_the_fleet_is_listed_with_states_models_pools_refused_links_and_last_answers(fleet: Path):
    done = stonechat("fleet", "--fleet", str(fleet))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace(device_runtime.__version__, "0.1.0") == LISTED
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_json_has_every_field_and_a_pool_its_members(fleet: Path, port: int):
    done = stonechat("fleet", "--broker", f"mqtt://127.0.0.1:{port}", "--json")
    rows = {row["device"]: row for row in json.loads(done.stdout)["devices"]}
    assert set(rows) == {"newer", "north", "south"}
    south = rows["south"]
    assert (south["state"], south["boot"], south["answers"], south["tps_p50"]) == ("lost", 4, 41, 51.25)
    assert south["links"]["overheating"] == {"severity": "alarm"}
    assert south["links_refused"]["words"] == WHY and rows["north"]["links_refused"] == {}
    members = json.loads(stonechat("fleet", "--fleet", str(fleet), "--pool", "herd", "--json").stdout)
    assert [row["device"] for row in members["devices"]] == ["north", "west"]


def test_a_fleet_of_nobody_is_no_error_and_says_what_to_do(fleet: Path, port: int):
    done = stonechat("fleet", "--broker", f"mqtt://127.0.0.1:{port}", "--pool", "nobody")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no device is known in the pool 'nobody'" in done.stderr and "stonechat serve" in done.stderr


def test_the_roll_call_ends_as_soon_as_the_broker_has_said_all(fleet: Path, port: int):
    started_s = time.monotonic()
    found = roll_call(BrokerAddress("127.0.0.1", port), wait_s=60.0)
    assert set(found) == {"newer", "north", "south"}
    assert time.monotonic() - started_s < 30  # far from the 60 s, also on a busy machine


@pytest.mark.parametrize("whom", [("--device", "north"), ("--pool", "herd")], ids=["device", "pool"])
def test_a_conversation_with_a_device_or_a_pool(fleet: Path, port: int, whom: tuple[str, str]):
    done = stonechat("chat", *whom, "--broker", f"mqtt://127.0.0.1:{port}", stdin="hello\n\nopen it\n/new\nbye\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "HELLO\nOPEN IT\nBYE\n", "")


def test_an_error_in_a_conversation_does_not_end_it(fleet: Path, port: int):
    broker = ("--broker", f"mqtt://127.0.0.1:{port}")
    done = stonechat("chat", "--device", "south", *broker, stdin="hello\nagain\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("device 'south' is lost") == 2


@pytest.mark.parametrize("arguments", [(), ("--device", "a", "--pool", "b"), ("bundle", "--device", "a")])
def test_a_conversation_needs_just_one_partner(arguments: tuple[str, ...]):
    done = stonechat("chat", *arguments)
    assert done.returncode == 2 and "one of BUNDLE, --port PORT, --device ID and --pool GROUP" in done.stderr


def test_what_a_pool_is_waited_for_is_said(port: int):
    done = stonechat(
        "ask", "--broker", f"mqtt://127.0.0.1:{port}", "--pool", "nobody", "--timeout", "4", "hi", timeout=120
    )
    assert done.returncode == 3
    assert "nobody took it within 2 s; asking pool 'nobody' again, for" in done.stderr
