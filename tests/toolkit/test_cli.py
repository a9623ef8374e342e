"""What the command line prints, to the letter.

stdout, stderr and exit code of each call stand in tests/toolkit/golden/. After an intended change, write them again
and read the difference before you commit it:

    STONECHAT_GOLDEN=write .venv/bin/python -m pytest tests/toolkit/test_cli.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime.bundle.trust import PublicKey
from toolkit.signing.bundles import pack_bundle
from toolkit.signing.keys import read_signing_key

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoints" / "gqa-tied"
# Prompts whose likeliest tokens lead by 0.8 or more: another processor's rounding does not change the answer.
QUESTION = "hello"
INTERRUPTED = '{"error": {"code": "interrupted", "message": "interrupted"}}'

# What differs from one machine or release to the next. Widths stay.
CHANGING = [
    (re.compile(r"(sha256\s+)[0-9a-f]{64}"), r"\g<1>0123456789abcdef"),
    (re.compile(r"sha256 [0-9a-f]{16}"), "sha256 0123456789abcdef"),
    (re.compile(r"(\"sha256\": )\"[0-9a-f]{64}\""), r'\1"…"'),
    (
        re.compile(r"(?m)^(perplexity|divergence|  \w+)  .*(\n {3,}.*)*$"),
        lambda line: re.sub(r"\d+\.\d+", "1.0", line[0]),
    ),
    (re.compile(r"(?m)^(most is lost in  ).*(\n {3,}.*)*$"), r"\1…"),
    (
        re.compile(r"(\"(?:\w*ratio\w*|kl_divergence|top1_agreement|\w+_(?:perplexity|ms|per_s|mb))\": )[\d.]+"),
        r"\g<1>1.0",
    ),
    (re.compile(r"(\"worst_layers\": )\[[^]]*\]"), r"\1[…]"),
    (re.compile(r"stonechat \d+\.\d+\.\d+\S*"), "stonechat 0.0.0"),
    (re.compile(r"(fresh, id )[0-9a-f]{16}"), r"\1…"),
    (re.compile(r"(\.zip: )[\d,]+( bytes)"), r"\1…\2"),
    (re.compile(r"(clock says |\()20\d\d-\S+Z( now)?"), r"\1…\2"),
    (re.compile(r"(\"converter\": )\"[^\"]+\""), r'\1"0.0.0"'),
]


STATE = tempfile.TemporaryDirectory()  # roll-outs of this machine's user are none of these tests' business


def stonechat(*arguments: object, cwd: Path | None = None, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80", "PYTHONUTF8": "1", "XDG_STATE_HOME": STATE.name}
    command = [sys.executable, "-m", "toolkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, input=text)


def assert_golden(name: str, done: subprocess.CompletedProcess[str]) -> None:
    found = f"exit code {done.returncode}\n--- stdout\n{done.stdout}--- stderr\n{done.stderr}"
    for pattern, replacement in CHANGING:
        found = pattern.sub(replacement, found)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("STONECHAT_GOLDEN") == "write":
        file.write_text(found, encoding="utf-8")
    assert file.is_file(), f"{file} is missing; see the top of {__file__}"
    expected = file.read_text(encoding="utf-8")
    if "usage:" in expected and sys.version_info[:2] != (3, 11):
        pytest.skip("argparse of Python 3.11 wrote the golden file; others wrap and quote in other ways")
    assert found == expected


@pytest.fixture(scope="module")
def here(pi_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a checkpoint and a text, so that messages have short paths."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(pi_bundle, folder / "bundle")
    shutil.copytree(CHECKPOINT, folder / "checkpoint")
    damaged = shutil.copytree(pi_bundle, folder / "damaged")
    os.truncate(damaged / "model.tflite", 1000)
    (folder / "file").write_text("not a bundle")
    add_signed_bundles(folder)
    return folder


def add_signed_bundles(folder: Path) -> None:
    """Keys that are the same in every run, bundles that they have signed, and one that is damaged."""
    for name, seed in (("plant-2026", 1), ("plant-2025", 2), ("stranger", 3)):
        private = Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))
        for file, encryption in (
            (f"{name}.key", serialization.NoEncryption()),
            (f"{name}-protected.key", serialization.BestAvailableEncryption(b"secret")),
        ):
            (folder / "mine").mkdir(exist_ok=True)
            (folder / "mine" / file).write_bytes(
                private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
            )
        public = PublicKey(name, private.public_key().public_bytes_raw())
        (folder / "mine" / f"{name}.pub").write_text(public.to_text())
    for keys in ("keys", "changing-keys"):
        (folder / keys / "retired").mkdir(parents=True)
        shutil.copy(folder / "mine" / "plant-2026.pub", folder / keys)
    shutil.copy(folder / "mine" / "plant-2025.pub", folder / "keys" / "retired")
    shutil.copy(folder / "mine" / "plant-2025.pub", folder / "changing-keys")
    dated = {"issued": "2025-01-01T00:00:00Z", "expires": "2025-02-01T00:00:00Z"}
    for target, name, changes in (
        ("signed", "plant-2026", {"security_counter": 3, "boards": ["raspberry-pi-5-4gb"]}),
        ("by-a-stranger", "stranger", {}),
        ("by-a-retired-key", "plant-2025", {}),
        ("expired", "plant-2026", dated),
    ):
        key = read_signing_key(folder / "mine" / f"{name}.key", None)
        pack_bundle(folder / "bundle", folder / f"{target}.zip", changes, [key])
    content = bytearray((folder / "signed.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "damaged.zip").write_bytes(content)
    shutil.copytree(folder / "bundle", folder / "to-sign")


SHOWN = {
    "help": ["--help"],
    "version": ["--version"],
    "help-convert": ["convert", "--help"],
    "help-run": ["run", "--help"],
    "help-inspect": ["inspect", "--help"],
    "help-eval": ["eval", "--help"],
    "help-check": ["check", "--help"],
    "help-boards": ["boards", "--help"],
    "boards-list": ["boards", "list"],
    "boards-show": ["boards", "show", "rp2040"],
    "check-fits": ["check", "bundle", "--board", "raspberry-pi-zero-2-w"],
    "help-broker": ["broker", "--help"],
    "help-broker-init": ["broker", "init", "--help"],
    "help-broker-list": ["broker", "list", "--help"],
    "help-broker-renew": ["broker", "renew", "--help"],
    "help-broker-revoke": ["broker", "revoke", "--help"],
    "help-slots": ["slots", "--help"],
    "help-slots-install": ["slots", "install", "--help"],
    "help-flash": ["flash", "--help"],
    "help-bench": ["bench", "--help"],
    "help-bridge": ["bridge", "--help"],
    "help-device": ["device", "--help"],
    "help-device-init": ["device", "init", "--help"],
    "help-deploy": ["deploy", "--help"],
    "help-doctor": ["doctor", "--help"],
    "help-rollout": ["rollout", "--help"],
    "help-rollout-resume": ["rollout", "resume", "--help"],
    "help-trace": ["trace", "--help"],
    "help-key": ["key", "--help"],
    "help-key-new": ["key", "new", "--help"],
    "help-bundle": ["bundle", "--help"],
    "help-bundle-pack": ["bundle", "pack", "--help"],
    "help-bundle-verify": ["bundle", "verify", "--help"],
    "key-new": ["key", "new", "fresh", "-o", "made"],
    "key-show": ["key", "show", "mine/plant-2026.pub"],
    "key-show-json": ["key", "show", "mine/plant-2026.key", "--json"],
    "key-retire": ["key", "retire", "mine/plant-2025.pub", "--keys", "changing-keys"],
    "bundle-pack": [
        "bundle",
        "pack",
        "bundle",
        "-o",
        "packed.zip",
        "--security-counter",
        3,
        "--expires",
        "2099-01-31",
        "--board",
        "raspberry-pi-5-4gb",
        "--trial-prompt",
        QUESTION,
        "--trial-max-new",
        12,
        "--key",
        "mine/plant-2026.key",
    ],
    "bundle-sign": ["bundle", "sign", "to-sign", "--key", "mine/plant-2026.key"],
    "bundle-verify": ["bundle", "verify", "signed.zip", "--keys", "keys", "--board", "raspberry-pi-5-4gb"],
    "bundle-verify-json": ["bundle", "verify", "signed.zip", "--keys", "keys", "--json"],
    "bundle-unpack": ["bundle", "unpack", "signed.zip", "-o", "unpacked"],
    "inspect": ["inspect", "bundle"],
    "inspect-json": ["inspect", "bundle", "--json"],
    "run": ["run", "bundle", QUESTION, "--max-new", 12],
    "run-json": ["run", "bundle", QUESTION, "--max-new", 12, "--json"],
    "run-raw": ["run", "bundle", "valve", "--raw", "--max-new", 4],
    "run-stop": ["run", "bundle", QUESTION, "--max-new", 12, "--stop", "}}"],
    "trace": ["trace", "bundle", "--tokens", "0,5,6", "-o", "trace.npz"],
    "trace-checkpoint": ["trace", "checkpoint", "--tokens", "0,5,6", "--layers", "-o", "trace.npz", "--json"],
}
REFUSED = {
    "no-command": [],
    "unknown-command": ["fly"],
    "unknown-flag": ["run", "bundle", "x", "--maximum", 3],
    "abbreviated-flag": ["run", "bundle", "x", "--max", 3],
    "several-faults": ["convert", "--profil", "pi", "--contxt=64"],
    "missing-argument": ["run", "bundle"],
    "wrong-number": ["run", "bundle", "x", "--max-new", 0],
    "too-many-threads": ["run", "bundle", "x", "--threads", 5_000_000],
    "trace-into-a-folder": ["trace", "bundle", "--tokens", "0", "-o", "."],
    "wrong-profile": ["convert", "checkpoint", "--profile", "big", "-o", "out"],
    "wrong-temperature": ["run", "bundle", "x", "--temperature", -1],
    "wrong-tokens": ["trace", "bundle", "--tokens", "1,two", "-o", "t.npz"],
    "raw-and-system": ["run", "bundle", "x", "--raw", "--system", "s"],
    "empty-prompt": ["run", "bundle", "", "--raw"],
    "missing-bundle": ["run", "nowhere", "x"],
    "missing-bundle-json": ["run", "nowhere", "x", "--json"],
    "not-a-bundle": ["inspect", "checkpoint"],
    "file-as-bundle": ["inspect", "file"],
    "damaged-bundle": ["run", "damaged", "x"],
    "damaged-bundle-json": ["inspect", "damaged", "--json"],
    "bridge-missing-bundle": ["bridge", "--port", "/dev/ttyACM0", "--device", "mcu", "--bundle", "missing"],
    "bridge-no-port": ["bridge", "--device", "mcu"],
    "unknown-backend": ["run", "bundle", "x", "--backend", "gpu"],
    "backend-of-the-other-profile": ["run", "bundle", "x", "--backend", "tflm"],
    "long-prompt": ["run", "bundle", "pump " * 300],
    "bench-too-long": ["bench", "bundle", "--prompt-tokens", 200, "--new-tokens", 200],
    "trace-too-large-a-token": ["trace", "bundle", "--tokens", "0,384", "-o", "t.npz"],
    "trace-too-many-tokens": ["trace", "bundle", "--tokens", ",".join(["7"] * 257), "-o", "t.npz"],
    "trace-into-nowhere": ["trace", "bundle", "--tokens", "0", "-o", "no/such/folder/t.npz"],
    "rollout-no-action": ["rollout"],
    "rollout-of-no-such-id": ["rollout", "show", "yesterday"],
    "deploy-to-a-group-without-its-file": ["deploy", "bundle", "--to", "fleet:all"],
    "deploy-no-target": ["deploy", "bundle"],
    "deploy-no-bundle": ["deploy", "nowhere", "--to", "pi@host"],
    "deploy-wrong-target": ["deploy", "bundle", "--to=-oProxyCommand=x"],
    "device-no-action": ["device"],
    "device-restart-of-systemd": [
        "device",
        "init",
        "pi@host",
        "--device",
        "x",
        "--fleet",
        "f.yaml",
        "--restart",
        "sv restart stonechat",
    ],
    "doctor-half": ["doctor", "--device", "x"],
    "slots-of-nothing": ["slots", "show", "nowhere"],
    "slots-into-a-bundle": ["slots", "install", "bundle", "bundle"],
    "check-missing-file": ["check", "fleet.yaml"],
    "check-bundle-without-a-board": ["check", "bundle"],
    "check-a-board-for-a-file": ["check", "file", "--board", "rp2040"],
    "check-wrong-percent": ["check", "bundle", "--board", "rp2040", "--allow", "-1"],
    "check-does-not-fit": ["check", "bundle", "--board", "rp2040"],
    "convert-does-not-fit": ["convert", "checkpoint", "--board", "raspberry-pi-zero", "-o", "out"],
    "boards-unknown": ["boards", "show", "rp2400"],
    "boards-check-a-text": ["boards", "check", "file"],
    "eval-missing-text": ["eval", "bundle", "--text", "nothing.txt"],
    "eval-too-wide-a-window": ["eval", "bundle", "--window", 300],
    "eval-against-a-bundle": ["eval", "bundle", "--against", "bundle"],
    "empty-instruction": ["convert", "checkpoint", "--profile", "pi", "--prefix", " ", "-o", "out"],
    "no-profile": ["convert", "checkpoint", "-o", "out"],
    "flash-nothing": ["flash", "--board", "esp32-s3"],
    "flash-a-linux-board": ["flash", "file", "--board", "raspberry-pi-5-4gb"],
    "flash-what-is-no-image-json": ["flash", "file", "--board", "esp32-s3", "--json"],
    "flash-a-bundle-of-the-other-profile": ["flash", "--model", "bundle", "--board", "esp32-s3"],
    "unknown-board": ["convert", "checkpoint", "--board", "rasberry-pi-5", "-o", "out"],
    "key-bad-name": ["key", "new", "Plant 2026"],
    "key-exists": ["key", "new", "plant-2026", "-o", "mine"],
    "key-missing": ["key", "show", "nowhere.pub"],
    "key-protected": ["bundle", "sign", "to-sign", "--key", "mine/plant-2026-protected.key"],
    "sign-with-a-public-key": ["bundle", "sign", "to-sign", "--key", "mine/plant-2026.pub"],
    "retire-an-unknown-key": ["key", "retire", "mine/stranger.pub", "--keys", "keys"],
    "verify-unsigned": ["bundle", "verify", "bundle", "--keys", "keys"],
    "verify-unsigned-json": ["bundle", "verify", "bundle", "--keys", "keys", "--json"],
    "verify-wrong-key": ["bundle", "verify", "by-a-stranger.zip", "--keys", "keys"],
    "verify-retired-key": ["bundle", "verify", "by-a-retired-key.zip", "--keys", "keys"],
    "verify-damaged": ["bundle", "verify", "damaged.zip", "--keys", "keys"],
    "verify-downgraded": ["bundle", "verify", "signed.zip", "--keys", "keys", "--security-counter", 4],
    "verify-expired": ["bundle", "verify", "expired.zip", "--keys", "keys"],
    "verify-another-board": ["bundle", "verify", "signed.zip", "--keys", "keys", "--board", "raspberry-pi-4-2gb"],
    "verify-another-board-json": [
        "bundle",
        "verify",
        "signed.zip",
        "--keys",
        "keys",
        "--board",
        "raspberry-pi-4-2gb",
        "--json",
    ],
    "verify-without-keys": ["bundle", "verify", "signed.zip", "--keys", "bundle"],
    "unpack-what-is-no-zip": ["bundle", "unpack", "file", "-o", "out"],
    "unpack-what-a-stranger-has-signed": ["bundle", "unpack", "by-a-stranger.zip", "-o", "out", "--keys", "keys"],
    "unpack-into-a-folder": ["bundle", "unpack", "signed.zip", "-o", "bundle"],
    "pack-what-has-expired": ["bundle", "pack", "bundle", "-o", "out", "--expires", "2020-01-31"],
    "pack-a-version-of-words": ["bundle", "pack", "bundle", "-o", "out", "--version", "the good one"],
    "pack-until-someday": ["bundle", "pack", "bundle", "-o", "out", "--expires", "someday"],
    "pack-an-answer-without-a-question": ["bundle", "pack", "bundle", "-o", "out", "--trial-expect", "4"],
    "pack-a-file": ["bundle", "pack", "signed.zip", "-o", "out"],
    "pack-into-nowhere": ["bundle", "pack", "bundle", "-o", "no/such/folder/b.zip"],
    "unpack-into-nowhere": ["bundle", "unpack", "signed.zip", "-o", "no/such/folder"],
    "pack-into-a-folder": ["bundle", "pack", "bundle", "-o", "checkpoint"],
    "convert-a-bundle": ["convert", "bundle", "--profile", "pi", "-o", "out"],
}


@pytest.mark.parametrize("name", SHOWN)
def test_output(name: str, here: Path) -> None:
    done = stonechat(*SHOWN[name], cwd=here)
    assert (done.returncode, done.stderr) == (0, "")  # no chatter of native libraries, no progress bar
    assert_golden(name, done)


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str, here: Path) -> None:
    done = stonechat(*REFUSED[name], cwd=here)
    assert done.returncode in (1, 2, 4, 5)
    assert "Traceback" not in done.stderr
    assert_golden(name, done)
    assert not (here / "out").exists() and not (here / "t.npz").exists()


@pytest.mark.parametrize("name", [name for name in REFUSED if name.endswith("-json")])
def test_an_error_as_json_has_a_code_and_a_message(name: str, here: Path) -> None:
    done = stonechat(*REFUSED[name], cwd=here)
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"code", "message"}
    assert error["code"] in ("configuration", "bundle", "signature", "does_not_fit")
    assert done.stderr == ""


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(SHOWN) | set(REFUSED)


def test_a_prompt_can_come_from_standard_input(here: Path) -> None:
    flags = ["--max-new", 12]
    assert stonechat("run", "bundle", "-", *flags, cwd=here, text=QUESTION).stdout == (
        stonechat("run", "bundle", QUESTION, *flags, cwd=here).stdout
    )


def test_a_line_that_is_not_utf_8_ends_no_conversation(here: Path) -> None:
    """Python reads the standard input of a desktop's locale strictly."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "STONECHAT_CACHE": str(here / "cache")}
    words = ["chat", str(here / "bundle"), "--max-new", "2", "--conversation", "talk"]
    command = [sys.executable, "-m", "toolkit", *words]
    done = subprocess.run(command, capture_output=True, env=environment, input=b"caf\xe9\nhello\n")
    said = done.stderr.decode()
    assert done.returncode == 0 and "'\\udce9'; give it in UTF-8" in said and "kept as talk: " in said, said
    again = subprocess.run(command, capture_output=True, env=environment, input=b"and?\n")
    assert again.returncode == 0 and b"kept as talk: " in again.stderr


def test_a_seed_draws_the_same_answer_in_every_process(here: Path) -> None:
    command = ["run", "bundle", QUESTION, "--max-new", 12, "--temperature", 1, "--seed", 5]
    assert stonechat(*command, cwd=here).stdout == stonechat(*command, cwd=here).stdout


def test_the_text_and_the_json_of_one_question_agree(here: Path) -> None:
    command = ["run", "bundle", QUESTION, "--max-new", 12]
    result = json.loads(stonechat(*command, "--json", cwd=here).stdout)
    assert result["text"] + "\n" == stonechat(*command, cwd=here).stdout
    assert result["completion_tokens"] == 12 and result["finish"] == "length"
    assert result["ttft_ms"] > 0 and result["load_ms"] > 0 and result["peak_rss_mb"] > 10


def test_the_traces_of_a_checkpoint_and_its_bundle_can_be_compared_name_by_name(here: Path) -> None:
    arrays = {}
    for source in ("checkpoint", "bundle"):
        done = stonechat("trace", source, "--tokens", "0,5,6,7,8", "--layers", "-o", f"{source}.npz", cwd=here)
        assert done.returncode == 0, done.stderr
        arrays[source] = dict(np.load(here / f"{source}.npz"))
    names = ["tokens", "logits", *(f"layers.{i}.{part}" for i in (0, 1) for part in ("attention_out", "out"))]
    for traced in arrays.values():
        assert sorted(traced) == sorted(names)
        assert traced["tokens"].tolist() == [0, 5, 6, 7, 8]
        assert traced["logits"].shape == (5, 384)
        assert all(traced[name].shape == (5, 64) for name in names[2:])
    for name in names[1:]:  # token 0 is the prefix: the graph has no rows of its layers
        expected, found = arrays["checkpoint"][name][1:], arrays["bundle"][name][1:]
        assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.12, name
    np.testing.assert_allclose(arrays["bundle"]["logits"][0], arrays["checkpoint"]["logits"][0], atol=1e-4)


def test_bench_prints_every_figure(here: Path) -> None:
    flags = ["--runs", 1, "--prompt-tokens", 16, "--new-tokens", 8]
    done = stonechat("bench", "bundle", *flags, "--json", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert len(result["runs"]) == 1
    assert set(result["figures"]) == {
        "load_ms", "ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_mb",
    }  # fmt: skip
    for figure, values in result["figures"].items():
        assert values["min"] == values["median"] == values["max"] == result["runs"][0][figure] > 0
    assert result["figures"]["load_ms"]["median"] < result["figures"]["ttft_ms"]["median"]
    assert result["bytes_per_token"] > 50_000


def test_listings_fit_80_columns() -> None:
    """Where a line is longer, it is one word that cannot be cut, such as a hash or a path."""
    for name in ("boards-list", "boards-show", "bundle-verify", "inspect", "check-fits", "slots-show", "key-show"):
        file = GOLDEN / f"{name}.txt"
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            assert len(line) <= 80 or " " not in line.strip(), f"{name}: {line}"


def test_bench_takes_what_fits_a_short_context_unless_told(here: Path) -> None:
    bundle = Path(__file__).parents[2] / "examples/home-commands/bundle"  # of 89 positions
    done = stonechat("bench", bundle, "--runs", 1, "--json", cwd=here)
    assert done.returncode == 0, done.stderr


def test_bench_in_text_has_a_line_for_each_figure(here: Path) -> None:
    done = stonechat("bench", "bundle", "--runs", 1, "--prompt-tokens", 8, "--new-tokens", 4, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    labels = [re.split(r" {2,}", line)[0] for line in done.stdout.splitlines()[1:]]
    assert labels == ["load", "start to first token", "prefill", "decode", "peak memory", "bytes per token"]


def test_bench_passes_on_why_it_failed(here: Path) -> None:
    done = stonechat("bench", "bundle", "--runs", 1, "--backend", "tflm", cwd=here)
    assert done.returncode in (1, 2)
    assert "'tflm' cannot run a graph of the profile 'pi'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_ctrl_c_is_one_line_and_130(flags: list[str], here: Path) -> None:
    command = [sys.executable, "-m", "toolkit", "bench", "bundle", "--runs", "1000", *flags]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not children.read_text():
        time.sleep(0.005)  # until it measures
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ("" if not flags else f"{INTERRUPTED}\n")
    assert err.strip() == "stonechat: interrupted"


def test_ctrl_c_during_a_conversion_leaves_nothing_behind(here: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "toolkit", "convert", "checkpoint", "--profile", "pi", "-o", str(tmp_path / "b")]
    process = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "stonechat: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    command = f"{sys.executable} -m toolkit inspect bundle --json | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=here, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{0\n", "")


def test_a_full_disk_behind_stdout_is_an_error(here: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", "inspect", "bundle"],
            cwd=here,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "stonechat: No space left on device. Free some, or choose a place on another disk.\n"


def test_a_terminal_that_knows_only_ascii_shows_question_marks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = stonechat("inspect", "bundle", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sha256" in done.stdout and "?" in done.stdout


def test_native_chatter_can_be_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STONECHAT_NATIVE_LOG", "1")
    done = stonechat("run", "bundle", "x", "--max-new", 1, cwd=here)
    assert done.returncode == 0
    assert "INFO" in done.stderr


def test_what_the_system_says_of_a_path_comes_with_the_next_step(tmp_path, capsys):
    from toolkit.cli import main

    assert main(["task", "new", str(tmp_path / "pump")]) == 0
    (tmp_path / "file").write_text("")
    for output, said in (
        (tmp_path / "nowhere" / "cases.jsonl", "No such file or directory. Check the path; the folder"),
        (tmp_path / "file" / "cases.jsonl", "Not a directory. Check the path: a part of it is a file"),
    ):
        assert main(["task", "generate", str(tmp_path / "pump"), "--cases", "2", "-o", str(output)]) == 2
        assert f"{output} cannot be written: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "name"),
    [("pump", "pump"), ("Pümpe", "p-mpe"), ("Hall 3", "hall-3"), ("水", "task"), ("a" * 80, "a" * 64)],
)
def test_a_new_task_that_is_not_called_as_its_folder_says_how(tmp_path, capsys, folder, name):
    from device_runtime.tasks.file import load
    from toolkit.cli import main

    assert main(["task", "new", str(tmp_path / folder)]) == 0
    out = capsys.readouterr().out
    assert load(tmp_path / folder).name == name
    assert (f"the task is called {name}: " in out) == (folder != name)
    assert main(["task", "new", str(tmp_path / "other" / folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name


def test_a_schema_that_cannot_be_read_is_not_called_broken_json(tmp_path, capsys):
    from toolkit.cli import main

    asked = ["ask", "--device", "north", "x", "--schema"]
    assert main([*asked, "nofile"]) == 2
    said = capsys.readouterr().err
    assert "nofile cannot be read: No such file or directory. Check the path." in said
    assert "not JSON" not in said and ".." not in said
    (tmp_path / "broken.json").write_text("{")
    assert main([*asked, str(tmp_path / "broken.json")]) == 2
    assert "broken.json is not JSON: Expecting property name" in capsys.readouterr().err
