"""`stonechat task harvest` makes examples of what devices have kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from device_runtime.tasks.examples import read_examples
from device_runtime.tasks.file import load
from toolkit.cli import main

TASK = Path(__file__).parents[2] / "examples" / "log-triage" / "task.yaml"
ANSWER = {"category": "network", "priority": "high"}


def entry(text: str, answer: Any = ANSWER, local: Any = None, task: str = "log-triage", time: str = "1") -> str:
    ours = None if local is None else {"text": json.dumps(local)}
    return json.dumps({"time": time, "task": task, "input": {"text": text}, "answer": answer, "local": ours})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    lines = [
        entry("link down", time="1"),
        entry("link down", {"category": "network", "priority": "normal"}, time="2"),  # asked again: the newest counts
        entry("disk full", {"category": "storage", "priority": "high"}, {"category": "storage", "priority": "high"}),
        entry("x", {"category": "unheard"}),
        entry("x", task="boiler"),
        '{"time": "3", "task": "log-tri',  # a power cut
    ]
    (tmp_path / "examples.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(*arguments: Any) -> int:
    return main(["task", "harvest", str(TASK), *map(str, arguments)])


def test_the_newest_answer_of_each_input(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--from", state, "-o", tmp_path / "out.jsonl", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["input"]["text"]: row["answer"]["priority"] for row in found} == {
        "link down": "normal",
        "disk full": "high",
    }
    assert said["examples"] == 2
    assert said["left_out"] == {
        "answered again later": 1, "whose answer does not fit the task": 1, "of another task": 1,
    }  # fmt: skip


def test_only_what_was_corrected(state: Path, tmp_path: Path) -> None:
    assert run("--from", state / "examples.jsonl", "-o", tmp_path / "out.jsonl", "--corrected") == 0
    assert "disk full" not in (tmp_path / "out.jsonl").read_text()


def test_nothing_is_overwritten_and_nothing_is_an_error(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    assert run("--from", state, "-o", tmp_path / "out.jsonl") == 2
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    (tmp_path / "other").mkdir()
    assert run("--from", tmp_path / "other", "-o", tmp_path / "new.jsonl") == 2
    assert "state folder of a device that escalates" in capsys.readouterr().err
    assert not (tmp_path / "new.jsonl").exists()


def test_a_damaged_line_costs_that_line_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept.jsonl"
    whole = entry("link down").encode()
    kept.write_bytes(b"\n".join([entry("caf\u00e9").encode("latin-1")[:-9] + b"\xe9", whole, whole[:40]]))
    assert run("--from", kept, "-o", tmp_path / "out.jsonl", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["unread"] == [f"{kept}:1", f"{kept}:3"] and json.loads(said.out)["examples"] == 1
    assert f"{kept}:3: left out: no whole line of JSON in UTF-8; a power cut" in said.err
    kept.write_bytes(whole[:40])
    assert run("--from", kept, "-o", tmp_path / "none.jsonl") == 2
    assert "no line of it is a JSON object in UTF-8. Expected the state folder" in capsys.readouterr().err


def test_half_a_character_costs_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, out = tmp_path / "kept.jsonl", tmp_path / "out.jsonl"
    as_bytes = entry("link @ down").encode().replace(b"@", b"\xed\xa0\x80")
    kept.write_bytes(b"\n".join([entry("link \ud800 down").encode(), entry("disk full").encode(), as_bytes]))
    assert run("--from", kept, "-o", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["examples"], said["unread"]) == (1, [f"{kept}:1", f"{kept}:3"])
    assert json.loads(out.read_bytes().decode())["input"] == {"text": "disk full"}
    (tmp_path / "examples.jsonl").write_text(entry("link \ud800 down"))  # as examples, to be scored
    bundle = TASK.parent / "bundle"
    assert main(["eval", str(bundle), "--examples", str(tmp_path / "examples.jsonl")]) == 2
    assert "examples.jsonl:1: the line holds half of a surrogate pair" in capsys.readouterr().err


def test_records_are_known_for_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"time": "1", "device": "house", "model": "log-triage", "text": json.dumps(ANSWER), "finish": "stop"}
    (tmp_path / "records.jsonl").write_text(f"{json.dumps(record)}\n" * 10)
    assert run("--from", tmp_path / "records.jsonl", "-o", tmp_path / "out.jsonl") == 2
    assert "10 of records of answers, which are no examples: see `stonechat records --examples`" in (
        capsys.readouterr().err
    )


def test_a_device_without_examples_does_not_keep_those_of_another(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "st-server"
    empty.mkdir()
    assert run("--from", empty, "--from", state, "-o", tmp_path / "out.jsonl") == 0
    assert f"{empty} has no examples yet" in capsys.readouterr().err
    assert run("--from", tmp_path / "slip", "--from", state, "-o", tmp_path / "new.jsonl") == 2


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """A text may have characters at which `str.splitlines` ends a line."""
    (tmp_path / "kept.jsonl").write_text(entry("disk sda1 failed\u0085 badly\u2028now") + "\n", encoding="utf-8")
    assert run("--from", tmp_path / "kept.jsonl", "-o", tmp_path / "out.jsonl") == 0
    task = load(TASK)
    found = read_examples(tmp_path / "out.jsonl", task.inputs, task.answer)
    assert [example.input["text"] for example in found] == ["disk sda1 failed\u0085 badly\u2028now"]
