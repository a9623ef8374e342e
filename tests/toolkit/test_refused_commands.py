"""A command that is refused leaves nothing behind: no empty folder, no half of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_runtime.client import remote
from tests.support.tuned_encoder import BERT
from toolkit.cli import main, options

BUNDLE = str(Path(__file__).parents[2] / "examples" / "log-triage" / "bundle")
TASK = """\
task: 1
name: few
kind: tiny
about: Says what a note asks for.
input: {text: 60}
answer: {type: object, additionalProperties: false, required: [a], properties: {a: {enum: [x, y]}}}
examples: few.jsonl
"""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "few.yaml", "-o", "made"], "few has 1 case to train with; expected at least 10"),
        (["train", "few.yaml", "-o", "new/folder/made"], "few has 1 case to train with"),
        (["train", "few.yaml", "--kind", "classify", "-o", "made"], "few has 1 case to train with"),
        (["train", "few.yaml", "--kind", "tune", "--from", str(BERT), "-o", "new/made"], "few has 1 case"),
        (
            ["train", "few.yaml", "--kind", "tune", "--from", "GQA", "-o", "made", "--layers", "1"],
            "few has 0 cases to train with",
        ),
        (["task", "generate", "few.yaml", "-o", "more.jsonl"], "few has no `truth` to generate cases from"),
        (["task", "generate", "few.yaml", "-o", "new/more.jsonl"], "new/more.jsonl cannot be written: No such file"),
        (["firmware", "export", "PI", "--for", "zephyr", "-o", "new/firmware"], "has the profile 'pi'"),
        (["convert", "GQA", "--profile", "pi", "--context", "9", "-o", "new/made"], "--context is 9"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_nothing_is_left_of_it(
    command: list[str], words: str, tmp_path: Path, pi_bundle: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "few.yaml").write_text(TASK)
    (tmp_path / "few.jsonl").write_text(json.dumps({"input": {"text": "hello"}, "answer": {"a": "x"}}) + "\n")
    places = {"PI": str(pi_bundle), "GQA": str(BERT.parents[1] / "checkpoints" / "gqa-tied")}
    monkeypatch.chdir(tmp_path)
    assert main([places.get(word, word) for word in command]) != 0
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.jsonl", "few.yaml"]


def test_an_earlier_training_is_no_reason_to_take_its_folder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.yaml").write_text(TASK)
    (tmp_path / "few.jsonl").write_text(json.dumps({"input": {"text": "hello"}, "answer": {"a": "x"}}) + "\n")
    (tmp_path / "made.training").mkdir()
    (tmp_path / "made.training" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "few.yaml", "-o", "made"]) == 2
    assert (tmp_path / "made.training" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ["records", "fleet.yaml", "--timeout"],
        ["correct", "--device", "house", "--link", "logs", "category=network", "--timeout"],
        ["chat", "--device", "house", "--timeout"],
        ["fleet", "--wait"],
        ["gateway", "--timeout"],
        ["dashboard", "fleet.yaml", "--timeout"],
        ["slots", "install", "bundle", "--trial-timeout-s"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("seconds", ["nan", "-1", "0", "1e11", "inf", "soon"])
def test_a_time_that_nothing_can_wait_is_refused(
    command: list[str], seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of more than some years the system's clocks know nothing, and a message's expiry ends at 136."""
    with pytest.raises(SystemExit) as end:
        main([*command[:-1], f"{command[-1]}={seconds}"])
    assert end.value.code == 2
    assert f"{seconds!r} is not a number of seconds above 0, at most 86400" in capsys.readouterr().err


def test_no_command_waits_longer_than_the_client_does() -> None:
    assert options.LONGEST_S == remote.LONGEST_S


@pytest.mark.parametrize(
    "command", [["bundle", "pack", BUNDLE, "-o", "x.zip"], ["bundle", "sign", BUNDLE], ["firmware", "build", BUNDLE]]
)
def test_a_security_counter_has_four_bytes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A time such as 202611291200 has more, and ended in a traceback once it was written for a microcontroller."""
    with pytest.raises(SystemExit) as end:
        main([*command, "--security-counter", "202611291200"])
    assert end.value.code == 2
    assert "'202611291200' is more than 4294967295" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["explain", "{}", "disk full"], ["bench", "{}"], ["eval", "{}", "--task", "."]])
def test_a_packed_bundle_where_a_folder_is_read_says_how_to_unpack_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "logs.zip"
    assert main(["bundle", "pack", BUNDLE, "-o", str(packed)]) == 0
    assert main([word.format(packed) for word in command]) == 2
    assert f"unpack it with `stonechat bundle unpack {packed} -o DIR`" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["mqtt://broker.local", "broker.local:8883", "bad host", "", "a..b", "-a", "x" * 64])
def test_a_broker_is_reached_under_a_name_or_an_address(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A certificate for anything else would be taken by no client, and nobody had said so."""
    with pytest.raises(SystemExit) as end:
        main(["broker", "init", str(tmp_path / "site"), f"--host={host}"])
    assert end.value.code == 2 and not (tmp_path / "site").exists()
    assert f"{host!r} is no name or address of a machine" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["broker.local", "192.168.1.5", "fd00::1", "bröker.local", "*.site.local", "pi_4"])
def test_a_broker_may_have_any_name_that_a_certificate_has(host: str, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    assert main(["broker", "init", str(tmp_path / "site"), "--host", host]) == 0
    assert (tmp_path / "site" / "broker.crt").is_file()


def test_a_certificate_that_ends_after_the_last_date_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["broker", "init", str(tmp_path / "site"), "--host", "x", "--days", "999999999"])
    assert not (tmp_path / "site").exists()
    assert "'999999999' is more than 36500" in capsys.readouterr().err
