"""Examples from a teacher: what is believed, what is not, and servers that are busy, wrong or gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.tasks.file import Teacher, load, loads
from toolkit.cli import main
from toolkit.examples.readings import generated
from toolkit.examples.teacher import Taught, taught, teacher_of, unanswered

EXAMPLES = Path(__file__).parents[3] / "examples"
FALL = load(EXAMPLES / "fall-alert")
READING = {"peak_g": 3.4, "posture_after": "lying", "still_s": 75, "heart_bpm": 88}
RIGHT = {"level": "call_help", "reason": "impact"}


class Says:
    """A teacher that says one thing."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def ask(self, given: Mapping[str, Any]) -> Any:
        return self.said


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "no JSON object"),
        ("call_help", "no JSON object"),
        ({"level": "call_help"}, "not of the schema"),
        ({"level": "panic", "reason": "impact"}, "not of the schema"),
        ({**RIGHT, "advice": "run"}, "not of the schema"),
        ({"level": "none", "reason": "none"}, "against the rules"),
    ],
)
def test_an_answer_that_does_not_fit_is_not_believed_and_the_reason_is_counted(said: Any, reason: str) -> None:
    result = Taught()
    assert list(taught(FALL, Says(said), [READING], result)) == []
    assert result.believed == 0 and result.rejected == {reason: 1}
    assert result.shown[0]["said"] == said and result.shown[0]["fault"].startswith(reason)


def test_an_answer_that_fits_schema_and_rules_becomes_an_example() -> None:
    result = Taught()
    (example,) = taught(FALL, Says(RIGHT), [READING], result)
    assert example.input == READING and example.answer == RIGHT and result.believed == 1


def test_readings_are_drawn_anew_for_another_seed_and_the_same_for_the_same() -> None:
    first, again, other = ([r for r, _ in zip(unanswered(FALL, 20, s), range(20), strict=False)] for s in (1, 1, 2))
    assert first == again != other


@contextmanager
def server(answer: Callable[[int, Any], tuple[int, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """A server at the wire; `answer` gives status and body for the number of the request and what was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), body))
            status, content = answer(len(asked), body)
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", asked
    finally:
        http.shutdown()
        http.server_close()


def message(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def test_a_server_is_asked_with_task_schema_and_key_and_again_while_it_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "s3")
    fenced = f"```json\n{json.dumps(RIGHT)}\n```"
    with server(lambda number, body: (503, {}) if number == 1 else (200, message(fenced))) as (url, asked):
        task = replace(FALL, teacher=Teacher(url=url, model="big", key="A_KEY"))
        with teacher_of(task) as teacher:
            assert teacher.ask(READING) == RIGHT
    path, headers, body = asked[1]
    assert len(asked) == 2 and path == "/v1/chat/completions" and headers["Authorization"] == "Bearer s3"
    assert body["model"] == "big" and body["response_format"]["json_schema"]["schema"] == FALL.answer
    assert "level is one of none, check, call_help" in body["messages"][0]["content"]
    assert "peak_g 03.40 posture_after lying" in body["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [(401, {"error": "who are you"}, "refuses with 401"), (200, {"text": "hi"}, "not as a chat completions")],
)
def test_a_server_that_refuses_or_is_something_else_is_named(status: int, content: Any, expected: str) -> None:
    with server(lambda number, body: (status, content)) as (url, _):
        task = replace(FALL, teacher=Teacher(url=url, model="big"))
        with teacher_of(task) as teacher, pytest.raises(UnreachableError, match=expected):
            teacher.ask(READING)


def test_a_key_that_is_not_set_is_said_before_anything_is_asked() -> None:
    with pytest.raises(ConfigurationError, match="NO_SUCH_KEY, which is not set"):
        teacher_of(replace(FALL, teacher=Teacher(url="http://127.0.0.1:9/v1", model="m", key="NO_SUCH_KEY")))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{}", "either `bundle`"),
        ("{url: 'http://h/v1'}", "no `model`"),
        ("{bundle: b, key: K}", "those are of a server"),
        ("{bundel: b}", "bundle"),
    ],
)
def test_faults_of_a_teacher_are_found_when_the_task_is_read(written: str, expected: str) -> None:
    text = (EXAMPLES / "fall-alert/task.yaml").read_text(encoding="utf-8")
    with pytest.raises(ConfigurationError, match=expected):
        loads(f"{text}\nteacher: {written}\n")


def test_a_bundle_teaches_a_task_that_has_no_rules_from_its_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The committed fall bundle as the teacher: its answers to 12 readings are those of the rules it was trained on."""
    text = (EXAMPLES / "fall-alert/task.yaml").read_text(encoding="utf-8")
    text = (
        text[: text.index("truth:")] + f"teacher: {{bundle: {EXAMPLES / 'fall-alert/bundle'}, inputs: asked.jsonl}}\n"
    )
    (tmp_path / "task.yaml").write_text(text, encoding="utf-8")
    cases = list(generated(FALL, 12, 3))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"input": c["input"]}) + "\n" for c in cases))
    out = tmp_path / "taught.jsonl"
    assert main(["task", "generate", str(tmp_path), "-o", str(out), "--teacher", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["believed"] == 12
    found = {json.dumps(e["input"]): e["answer"] for e in map(json.loads, out.read_text().splitlines())}
    assert found == {json.dumps(c["input"]): c["answer"] for c in cases}
    assert main(["task", "generate", str(EXAMPLES / "fall-alert"), "-o", f"{out}.2", "--teacher"]) == 2
    assert "names no teacher" in capsys.readouterr().err


def test_where_no_answer_is_believed_there_is_still_one_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / "fall-alert/task.yaml").read_text(encoding="utf-8")
    out = tmp_path / "taught.jsonl"
    with server(lambda number, body: (200, message("I do not know."))) as (url, _):
        (tmp_path / "task.yaml").write_text(f"{text}\nteacher: {{url: '{url}', model: m}}\n", encoding="utf-8")
        command = ["task", "generate", str(tmp_path), "-o", str(out), "--teacher", "--cases", "2", "--json"]
        assert main(command) == 2
    said, err = capsys.readouterr()
    assert json.loads(said)["believed"] == 0
    assert "No answer of the teacher is believed" in err and not out.exists()


def test_examples_that_may_have_been_corrected_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tmp_path / "cases.jsonl"
    command = ["task", "generate", str(EXAMPLES / "fall-alert"), "-o", str(cases), "--cases", "3"]
    assert main(command) == 0
    cases.write_text("corrected")
    assert main(command) == 2
    assert "is there already, and its examples may have been corrected by hand" in capsys.readouterr().err
    assert cases.read_text() == "corrected"
