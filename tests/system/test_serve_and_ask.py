"""The whole story with real parts: a converted model, mosquitto, `stonechat serve`, sensors, `stonechat ask`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_runtime.update.slots import lock
from tests.support.brokers import mosquitto
from tests.support.mqtt_peer import Peer

STONECHAT = [sys.executable, "-m", "toolkit"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEVICE = "test-pi"
FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  tiny: {{bundle: "{bundle}", threads: 1, max_new: 8}}
devices:
  test-pi: {{model: tiny, links: [too-hot]}}
links:
  - name: too-hot
    from: plant/+/air
    when: temp_c > 30
    prompt: "{{{{ topic[1] }}}} {{{{ temp_c }}}}"
    to: plant/{{{{ topic[1] }}}}/advice
    deadline_s: 30
"""
# Joins the file above, on a device of its own.
DECISION = """\
  - name: too-dry
    from: plant/+/soil
    prompt: "{{ topic[1] }} {{ moisture }}"
    answer:
      type: object
      properties: {severity: {enum: [ok, warn]}, valve: {type: boolean}}
      required: [severity, valve]
      additionalProperties: false
    to: plant/{{ topic[1] }}/decision
"""
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("mosquitto_sub is not installed (Debian: apt install mosquitto-clients)")
    with mosquitto(tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture(scope="module")
def device(port: int, pi_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """`stonechat serve` with a real model, ready."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "fleet.yaml").write_text(FLEET.format(port=port, bundle=pi_bundle))
    command = [*STONECHAT, "serve", str(folder / "fleet.yaml"), "--device", DEVICE, "--state-dir", str(folder)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            wait_for(port, f"stonechat/1/{DEVICE}/out/state", lambda state: state["state"] == "ready")
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (folder / "log").read_text()


def wait_for(port: int, topic: str, wanted, count: int = 20) -> dict:
    """The first message on `topic` that is `wanted`."""
    command = ["mosquitto_sub", "-p", str(port), "-t", topic, "-C", str(count), "-W", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if wanted(message):
                process.kill()
                return message
    raise AssertionError(f"nothing fitting came on {topic}")


def local_answer(bundle: Path, prompt: str) -> str:
    done = subprocess.run(
        [*STONECHAT, "run", str(bundle), prompt, "--max-new", "8", "--json"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)["text"]


def ask(port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    broker = f"mqtt://127.0.0.1:{port}"
    return subprocess.run(
        [*STONECHAT, "ask", "--broker", broker, "--device", DEVICE, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_ask_prints_what_run_prints(device, port, pi_bundle):
    done = ask(port, "how are you")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == local_answer(pi_bundle, "how are you") + "\n"


def test_ask_json_counts_tokens(device, port, pi_bundle):
    answer = json.loads(ask(port, "how are you", "--json").stdout)
    assert answer["text"] == local_answer(pi_bundle, "how are you")
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["ttft_ms"] > 0


def test_a_prompt_longer_than_the_context_is_refused_by_name(device, port):
    done = ask(port, "word " * 2000)
    assert done.returncode != 0
    assert "context" in done.stderr


def test_a_hot_reading_wakes_the_model_and_a_cool_one_does_not(device, port, pi_bundle):
    listening = Peer(port)
    listening.subscribe("plant/+/advice")
    for house, reading in (("north", {"temp_c": 20}), ("south", {"temp_c": 35.5})):
        publish = ["mosquitto_pub", "-p", str(port), "-t", f"plant/{house}/air", "-m", json.dumps(reading)]
        subprocess.run(publish, check=True)
    topic, advice = listening.next()
    listening.close()
    assert topic == "plant/south/advice"
    assert advice["text"] == local_answer(pi_bundle, "south 35.5")


def deciding_fleet(port: int, bundle: Path, device: str, max_new: int) -> str:
    fleet = (
        FLEET.format(port=port, bundle=bundle).replace(DEVICE, device).replace("links: [too-hot]", "links: [too-dry]")
    )
    return fleet.replace("max_new: 8", f"max_new: {max_new}") + DECISION


def test_a_link_with_a_schema_gives_an_answer_that_fits_it(port, pi_bundle, tmp_path):
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    (tmp_path / "fleet.yaml").write_text(deciding_fleet(port, pi_bundle, "decider", 60))
    command = [*STONECHAT, "serve", str(tmp_path / "fleet.yaml"), "--device", "decider", "--state-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    decisions = Peer(port)
    decisions.subscribe("plant/+/decision")
    try:
        wait_for(port, "stonechat/1/decider/out/state", lambda state: state["state"] == "ready")
        publish = ["mosquitto_pub", "-p", str(port), "-t", "plant/north/soil", "-m", '{"moisture": 12}']
        subprocess.run(publish, check=True)
        _, decision = decisions.next()
    finally:
        decisions.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert decision["reading"] == {"moisture": 12}
    assert set(decision["answer"]) == {"severity", "valve"}
    assert decision["answer"]["severity"] in ("ok", "warn")
    assert isinstance(decision["answer"]["valve"], bool)


def test_a_link_whose_answer_never_fits_its_limit_is_left_out(port, pi_bundle, tmp_path):
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    (tmp_path / "fleet.yaml").write_text(deciding_fleet(port, pi_bundle, "decider-2", 8))
    command = [*STONECHAT, "serve", str(tmp_path / "fleet.yaml"), "--device", "decider-2", "--state-dir", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(port, "stonechat/1/decider-2/out/state", lambda state: state["state"] == "ready")
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    why = "the answer of link 'too-dry' cannot be given: The shortest answer that fits the schema has"
    assert f"link too-dry is left out until its model or the fleet file is another: {why}" in err


def test_a_question_with_a_schema_is_answered_in_json(device, port, tmp_path):
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    done = ask(port, "is it hot", "--schema", str(tmp_path / "schema.json"), "--max-new", "30")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["a"] in (True, False)


def test_a_schema_that_needs_more_tokens_than_it_gets_is_refused_by_name(device, port, tmp_path):
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    done = ask(port, "is it hot", "--schema", str(tmp_path / "schema.json"), "--max-new", "2")
    assert done.returncode != 0
    assert "the answer may have 2; raise max_new" in done.stderr


def test_a_killed_device_is_announced_as_lost(port, pi_bundle, tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(FLEET.format(port=port, bundle=pi_bundle).replace(DEVICE, "doomed-pi"))
    command = [*STONECHAT, "serve", str(fleet), "--device", "doomed-pi", "--state-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port, "stonechat/1/doomed-pi/out/state", lambda state: state["state"] == "ready")
    process.kill()
    process.wait()
    lost = wait_for(port, "stonechat/1/doomed-pi/out/state", lambda state: state["state"] == "lost")
    assert lost["boot"] == 1


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("free", ""),
        ("read-only", "no folder can be written in {cache}; set STONECHAT_CACHE to a place where one can"),
        ("a file", "no folder can be written in {cache}; set STONECHAT_CACHE to a place where one can"),
        ("full", r"the disk of {cache} has no \d+ MB free; free as much there"),
    ],
)
def test_it_says_once_that_packed_weights_cannot_be_kept(
    place, said, port, pi_bundle, tmp_path, request: pytest.FixtureRequest
):
    """Two models of one bundle are opened, each with its weights."""
    device, cache = f"unkept-{place.replace(' ', '-')}", tmp_path / "cache"
    if place in ("read-only", "full"):
        cache = request.getfixturevalue("small_disk")
    if place == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
    elif place == "full":
        (cache / "filler").write_bytes(bytes(shutil.disk_usage(cache).free - 100_000))
    elif place == "a file":
        cache.write_text("")
    model = f'  tiny: {{bundle: "{pi_bundle}", threads: 1, max_new: 8}}\n'
    fleet = FLEET.format(port=port, bundle=pi_bundle).replace(model, model + model.replace("tiny", "other"))
    fleet = fleet.replace(f"{DEVICE}: {{model: tiny", f"{device}: {{model: [tiny, other]")
    fleet = fleet.replace("- name: too-hot\n", "- name: too-hot\n    model: tiny\n")
    (tmp_path / "fleet.yaml").write_text(fleet)
    command = [*STONECHAT, "serve", str(tmp_path / "fleet.yaml"), "--device", device, "--state-dir", str(tmp_path)]
    with open(tmp_path / "log", "w") as log:
        environment = {**os.environ, "STONECHAT_CACHE": str(cache)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(port, f"stonechat/1/{device}/out/state", lambda state: state["state"] == "ready")
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "packed weights" in line]
    assert code == 0 and len(lines) == bool(said), lines
    if said:
        why = "packed weights cannot be kept, so each start is slower and takes more memory: "
        assert re.search(f"{why}{said.format(cache=cache)}$", lines[0])


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an instruction."""
    from converters.checkpoints import open_checkpoint
    from converters.convert import Options, convert

    checkpoint = open_checkpoint(Path(__file__).parents[1] / "data" / "checkpoints" / "gqa-tied")
    options = Options("pi", 256, instruction="close(valve)", fast=True)
    return convert(checkpoint, tmp_path_factory.mktemp("baked") / "bundle", options).path


def serve(folder: Path, port: int, bundle: Path, system: str | None, device: str) -> subprocess.Popen[str]:
    fleet = FLEET.format(port=port, bundle=bundle).replace(DEVICE, device)
    if system is not None:
        fleet = fleet.replace("max_new: 8}", f'max_new: 8, system: "{system}"}}')
    (folder / "fleet.yaml").write_text(fleet)
    command = [*STONECHAT, "serve", str(folder / "fleet.yaml"), "--device", device, "--state-dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("system", [None, "close(valve)"])
def test_a_baked_instruction_serves_links_and_questions(system, port, baked, tmp_path):
    device = f"baked-{'with' if system else 'without'}"
    process = serve(tmp_path, port, baked, system, device)
    try:
        wait_for(port, f"stonechat/1/{device}/out/state", lambda state: state["state"] == "ready")
        broker = f"mqtt://127.0.0.1:{port}"
        command = [*STONECHAT, "ask", "--broker", broker, "--device", device, "how are you", "--json"]
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
        assert answer["text"] == local_answer(baked, "how are you")
        assert answer["usage"]["cached_tokens"] > 5
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_fleet_that_contradicts_a_baked_instruction_does_not_start(port, baked, tmp_path):
    process = serve(tmp_path, port, baked, "Sing.", "baked-wrong")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the model 'tiny' has a system message here, but its bundle has an instruction baked in" in err
    assert "Traceback" not in err


def test_one_damaged_bundle_of_a_device_leaves_its_other_models_serving(port, tmp_path):
    """With every cause there is: files that are cut, none at all, a manifest that is none, a slot without a bundle."""
    for name in ("cut", "unreadable"):
        shutil.copytree(EXAMPLES / "log-triage" / "bundle", tmp_path / name)
    os.truncate(tmp_path / "cut" / "model.tflite", 1000)
    (tmp_path / "unreadable" / "manifest.json").write_text("{")
    with lock(tmp_path / "slots", make=True):
        pass
    bundles = {"cut": "cut", "gone": "nowhere", "unreadable": "unreadable", "slots": "slots",
               "home": str(EXAMPLES / "home-commands" / "bundle")}  # fmt: skip
    fleet = {
        "schema": 1, "broker": {"url": f"mqtt://127.0.0.1:{port}"}, "devices": {"house": {"model": list(bundles)}},
        "models": {name: {"bundle": path, "threads": 1} for name, path in bundles.items()},
    }  # fmt: skip
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))
    command = [*STONECHAT, "serve", str(tmp_path / "fleet.yaml"), "--device", "house", "--state-dir", str(tmp_path)]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log, text=True) as process:
        try:
            wait_for(port, "stonechat/1/house/out/state", lambda state: state["state"] == "ready")
            info = wait_for(port, "stonechat/1/house/out/info", lambda info: True)
            options = ["--broker", f"mqtt://127.0.0.1:{port}"]
            asked = [*STONECHAT, "ask", *options, "--device", "house", "--model"]
            answer = subprocess.run([*asked, "home", "turn on the lamp"], capture_output=True, text=True, timeout=60)
            refused = subprocess.run([*asked, "cut", "error: disk"], capture_output=True, text=True, timeout=60)
            listed = subprocess.run([*STONECHAT, "fleet", *options], capture_output=True, text=True, timeout=60)
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    words = {"cut": "model.tflite has 1,000 bytes", "gone": "nowhere", "unreadable": "manifest.json", "slots": "slots"}
    assert {name: words[name] in why for name, why in info["not_open"].items()} == dict.fromkeys(words, True)
    assert answer.returncode == 0 and json.loads(answer.stdout)
    assert refused.returncode != 0 and "the model 'cut' is not open:" in refused.stderr
    assert "Copy the bundle again" in refused.stderr
    assert "house: cut is not open." in " ".join(listed.stdout.split())
