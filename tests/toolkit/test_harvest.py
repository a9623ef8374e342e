"""`stonechat task harvest` makes examples of what devices have kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
