"""`stonechat check`: every fault of a fleet file, and of what it asks of its bundles, without a broker."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from device_runtime.fleet import file as fleet_file
from device_runtime.fleet.yaml_schema import ListOf, MapOf, OneOrMore, Record, Text
from tests.support.random_checkpoint import random_checkpoint
from toolkit.cli import main

ROOT = Path(__file__).parents[2]
FLEET = """\
schema: 1
models:
  tiny: {{bundle: "{bundle}", max_new: {max_new}, system: {system}}}
devices:
  north: {{model: tiny, links: [decide]}}
  south: {{model: tiny}}
links:
  - name: decide
    from: plant/+/soil
    prompt: "{{{{ moisture }}}}"
    answer: {{type: object, properties: {{valve: {{type: boolean}}}}, required: [valve]}}
    to: plant/{{{{ topic[1] }}}}/decision
"""

Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Check:
    def run(bundle: object, *flags: str, max_new: int = 60, system: str = "Be brief.") -> tuple[int, str, str]:
        file = tmp_path / "fleet.yaml"
        file.write_text(FLEET.format(bundle=bundle, max_new=max_new, system=json.dumps(system)))
        code = main(["check", str(file), *flags])
        return code, *capfd.readouterr()

    return run


def test_a_good_file(check: Check, pi_bundle: Path) -> None:
    code, out, err = check(pi_bundle)
    assert (code, err) == (0, "")
    assert out.endswith("fleet.yaml: 1 model, 2 devices, 1 link; no faults\n")


def test_a_bundle_on_another_machine_is_said_to_be_unchecked(check: Check, tmp_path: Path) -> None:
    code, out, _ = check(tmp_path / "elsewhere", max_new=1)
    assert code == 0
    assert f"the bundle of tiny is not on this machine ({tmp_path}/elsewhere); what links ask" in out


def test_a_link_that_no_device_has_is_told(check: Check, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check(tmp_path / "elsewhere")
    file = tmp_path / "fleet.yaml"
    file.write_text(file.read_text().replace(", links: [decide]", ""))
    assert main(["check", str(file)]) == 0
    assert "the link decide is in the `links` of no device; nobody listens" in capfd.readouterr().out
    assert main(["check", str(file), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["links_unserved"] == ["decide"]


def test_json(check: Check, pi_bundle: Path) -> None:
    result = json.loads(check(pi_bundle, "--json")[1])
    assert {name: result[name] for name in ("models", "devices", "links", "bundles_elsewhere")} == {
        "models": 1, "devices": 2, "links": 1, "bundles_elsewhere": {},
    }  # fmt: skip


def test_an_answer_that_its_limit_has_no_room_for(check: Check, pi_bundle: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    code, out, err = check(pi_bundle, max_new=3)
    assert (code, out) == (2, "")
    assert "device 'north': the answer of link 'decide' cannot be given: The shortest answer" in err
    assert "'south'" not in err


def test_every_contradiction_of_every_device_comes_at_once(check: Check, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    checkpoint = open_checkpoint(ROOT / "tests" / "data" / "checkpoints" / "gqa-tied")
    bundle = convert(checkpoint, tmp_path / "baked", Options("pi", 256, instruction="close(valve)", fast=True))
    code, _, err = check(bundle.path, max_new=3)
    assert code == 2
    assert err.count("has an instruction baked in") == 2  # a line for each device
    assert err.count("cannot be given") == 1


def test_a_bundle_without_a_chat_template(check: Check, tmp_path: Path) -> None:
    bundle = convert(random_checkpoint(), tmp_path / "plain", Options("pi", 256, fast=True))
    code, _, err = check(bundle.path)
    assert code == 2
    assert "has no chat template, and a device is asked in messages" in err


def test_what_devices_send_is_rendered(check: Check, pi_bundle: Path, tmp_path: Path) -> None:
    """A template that takes no system message fails every request of a device with `system`."""
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    bundle = Path(shutil.copytree(pi_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["chat_template"] = refusing + manifest["chat_template"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = check(bundle)
    assert code == 2
    assert "device 'north': the chat template of the model 'tiny' cannot render a system message and a user's" in err
    assert "System role not supported" in err


def test_a_damaged_bundle(check: Check, pi_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{")
    code, _, err = check(bundle)
    assert code in (1, 2) and "manifest.json is not JSON" in err


def test_the_faults_of_the_file_itself_have_their_places(capfd: pytest.CaptureFixture[str]) -> None:
    faulty = ROOT / "tests" / "device_runtime" / "fleet" / "faulty.yaml"
    assert main(["check", str(faulty)]) == 2
    assert "faulty.yaml:4:41: devices.Greenhouse.links[0]: there is no link 'too-hto'; did you mean 'too-hot'?" in (
        capfd.readouterr().err
    )


def files_of(folder: Path, device: str = "", **more: object) -> Path:
    """A fleet file with the log bundle, and more fields at its top and of its device."""
    bundle = ROOT / "examples" / "log-triage" / "bundle"
    entry = {"model": "logs", **json.loads(device or "{}")}
    path = folder / "fleet.yaml"
    path.write_text(
        json.dumps({"schema": 1, "models": {"logs": {"bundle": str(bundle)}}, "devices": {"house": entry}, **more})
    )
    return path


def test_every_file_that_is_named_is_looked_at_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "router.json").write_text("{}")
    (tmp_path / "key").write_text("two\nlines")
    (tmp_path / "certs").mkdir()
    for name in ("ca.crt", "house.crt", "house.key"):
        (tmp_path / "certs" / name).write_text("no certificate")
    (tmp_path / "passwords").mkdir()
    (tmp_path / "passwords" / "house.password").write_text("")
    (tmp_path / "keys").mkdir()
    escalate = {"to": {"url": "http://server.local/v1", "model": "large", "key_file": "key"}}
    house = json.dumps({"router": {"file": "router.json"}, "escalate": escalate})
    broker = {"url": "mqtts://broker.local", "certs": "certs", "password_file": "passwords"}
    file = files_of(tmp_path, house, router={"file": "nowhere.json"}, broker=broker, keys="keys")
    assert main(["check", str(file)]) == 2
    faults = capfd.readouterr().err.splitlines()
    for number, (place, what) in enumerate([
        ("router.file", f"{tmp_path}/nowhere.json cannot be read: No such file or directory. Make it"),
        ("devices.house.router.file", f"{tmp_path}/router.json is no router of format 1"),
        ("devices.house.escalate.to.key_file", f"{tmp_path}/key holds no API key"),
        ("keys", f"{tmp_path}/keys has no *.pub"),
        ("broker.password_file, house.password", f"the password file {tmp_path}/passwords/house.password is empty"),
        ("broker.certs", f"the certificates {tmp_path}/certs/ca.crt"),
    ]):  # fmt: skip
        assert f"{file}: {place}: {what}" in faults[number]
    assert len(faults) == 6


def test_a_file_where_a_folder_belongs_and_the_reverse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither is "not on this machine"; and nobody waits for a pipe."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    escalate = {"to": {"url": "http://server.local/v1", "model": "large", "key_file": "folder"}}
    broker = {"url": "mqtts://broker.local", "certs": "file", "password_file": "pipe"}
    models = {"logs": {"bundle": "file"}}
    file = files_of(tmp_path, json.dumps({"escalate": escalate}), broker=broker, keys="file", models=models)
    assert main(["check", str(file)]) == 2
    err = capfd.readouterr().err
    for fault in (
        f"devices.house.escalate.to.key_file: {tmp_path}/folder is a folder; name a file.",
        f"keys: {tmp_path}/file is a file; name a folder with public keys.",
        f"broker.password_file, pipe: {tmp_path}/pipe is no ordinary file; name a file.",
        f"broker.certs: {tmp_path}/file is a file; name a folder with ca.crt, DEVICE.crt and DEVICE.key.",
        f"models.logs.bundle: {tmp_path}/file is a file; name the folder of a bundle, or a folder of slots",
    ):
        assert f"{file}: {fault}" in err
    assert len(err.splitlines()) == 5


def test_what_is_secret_may_be_on_the_device_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    escalate = {"to": {"url": "http://server.local/v1", "model": "large", "key_file": "/etc/stonechat/no-such-key"}}
    file = files_of(
        tmp_path, json.dumps({"escalate": escalate}),
        broker={"url": "mqtts://broker.local", "certs": "certs", "password_file": "passwords"},
    )  # fmt: skip
    assert main(["check", str(file), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["files_elsewhere"]
    assert found == {
        "devices.house.escalate.to.key_file": "/etc/stonechat/no-such-key",
        "broker.password_file, passwords": f"{tmp_path}/passwords",
        "broker.certs, ca.crt": f"{tmp_path}/certs/ca.crt",
    }
    assert main(["check", str(file)]) == 0
    assert f"broker.certs, ca.crt is not on this machine, or not to be read by you ({tmp_path}/certs/ca.crt)" in (
        capfd.readouterr().out
    )


def test_a_variable_that_a_path_needs_is_told_at_its_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = files_of(tmp_path, json.dumps({"router": {"file": "${NO_SUCH_VARIABLE}/router.json"}}), keys="${NEITHER}")
    assert main(["check", str(file)]) == 2
    err = capfd.readouterr().err
    assert "devices.house.router.file: '${NO_SUCH_VARIABLE}/router.json' needs the environment variable NO_SUCH" in err
    assert "keys: '${NEITHER}' needs the environment variable NEITHER, which is not set" in err


def test_a_router_of_other_models_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = files_of(tmp_path, json.dumps({"router": {"file": str(ROOT / "examples" / "router" / "router.json")}}))
    assert main(["check", str(file)]) == 0
    assert (
        "router.json finds texts for home-commands, log-triage, and there are no such model here"
        in capfd.readouterr().out
    )


def test_no_field_of_a_fleet_file_names_a_path_that_check_does_not_know() -> None:
    """A new one belongs into `device_runtime/fleet/named_files.py`, and into the tests above."""

    def paths(reader: object, at: str = "") -> Iterator[str]:
        if isinstance(reader, Record):
            for name, field in reader.fields.items():
                if isinstance(field.reader, Text) and field.reader.expected.startswith("the path of"):
                    yield f"{at}{name}"
                yield from paths(field.reader, f"{at}{name}.")
        elif isinstance(reader, ListOf | MapOf | OneOrMore):
            yield from paths(reader.item, at)

    assert sorted(paths(fleet_file.FLEET)) == [
        "broker.certs", "broker.password_file", "devices.escalate.to.key_file", "devices.router.file", "keys",
        "links.escalate.to.key_file", "models.bundle", "router.file",
    ]  # fmt: skip


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*/fleet.yaml")), ids=lambda file: file.parent.name)
def test_the_examples_have_no_faults(
    file: Path, pi_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STONECHAT_BUNDLE", str(pi_bundle))
    assert main(["check", str(file)]) == 0
    assert "no faults" in capfd.readouterr().out
