"""With --json every command prints one JSON object, whatever happens."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from device_runtime.errors import MissingExtraError
from toolkit.brain.router_training import train_router
from toolkit.cli import main
from toolkit.cli.command import parser
from toolkit.cli.output import print_json


def leaves(of: argparse.ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command and every action of one, with its parser."""
    nested = next((a for a in of._actions if isinstance(a, argparse._SubParsersAction)), None)
    if nested is None:
        yield words, of
    for name, sub in nested.choices.items() if nested else ():
        yield from leaves(sub, *words, name)


COMMANDS = dict(leaves(parser()))
WITH_JSON = [words for words, of in COMMANDS.items() if "--json" in of._option_string_actions]


def is_required(action: argparse.Action) -> bool:
    return action.required and not isinstance(action, argparse._SubParsersAction)


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """What a wrong command line prints, as JSON and on stderr."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    found = json.loads(out)
    assert set(found) == {"error"}
    return found["error"], err


def test_most_commands_take_it() -> None:
    assert len(WITH_JSON) > 50


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_flag_that_a_command_does_not_have_is_an_object(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a command without --json: who asks for JSON reads JSON."""
    error, err = error_of([*command, "--no-such-flag", "--json"], capsys)
    assert error["code"] == "configuration"
    assert "unrecognized arguments: --no-such-flag" in error["message"]
    assert f"See `stonechat {' '.join(command)} --help`." in error["message"]
    assert err.startswith(f"usage: stonechat {' '.join(command)} ")
    assert "error: unrecognized arguments: --no-such-flag" in err


@pytest.mark.parametrize(
    "command", [words for words in WITH_JSON if any(map(is_required, COMMANDS[words]._actions))], ids=" ".join
)
@pytest.mark.parametrize("place", ["last", "first"])
def test_what_is_missing_is_an_object(place: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    error, err = error_of([*command, "--json"] if place == "last" else ["--json", *command], capsys)
    assert error["code"] == "configuration" and "required: " in error["message"]
    assert "required: " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly", "--json"], "invalid choice: 'fly'"),
        (["--json"], "required: COMMAND"),
        (["task", "--json"], "required: ACTION"),
        (["run", "b", "x", "--jsn", "--json"], "unrecognized arguments: --jsn; did you mean --json? See "),
        (["task", "generate", "pump", "-o", "x", "--cases", "0", "--json"], "'0' is not a whole number of at least 1"),
        (["convert", "c", "-o", "x", "--profile", "big", "--json"], "invalid choice: 'big'"),
        (["ask", "--json", "--device", "a", "--pool", "b", "hi"], "--pool: not allowed with argument --device"),
    ],
)
def test_other_wrong_lines_are_objects(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(words, capsys)[0]["message"]


@pytest.mark.parametrize("words", [["ask", "--device", "house", "--jsn", "x"], ["run", "b", "x", "--", "--json"]])
def test_without_it_a_wrong_line_is_text_alone(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err


def test_one_command_does_not_answer_for_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "nowhere", "--json"]) != 0
    assert "error" in json.loads(capsys.readouterr().out)
    assert main(["inspect", "nowhere"]) != 0
    assert capsys.readouterr().out == ""


def test_a_missing_package_has_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sklearn.linear_model", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError) as caught:
        train_router({}, [])
    assert caught.value.fields == {"package": "scikit-learn", "extra": "train"}


class Slow(io.StringIO):
    """A reader that keeps the command waiting, until Ctrl-C."""

    def flush(self) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_after_the_object_prints_no_second_one() -> None:
    with contextlib.redirect_stdout(Slow()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(["families", "--json"]) == 130
    assert set(json.loads(out.getvalue())) == {"families"} and err.getvalue() == "\nstonechat: interrupted\n"


def test_a_figure_that_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"ratio": float("nan"), "of": [1.5, {"low": float("-inf")}], "text": "NaN"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "ratio": None, "of": [1.5, {"low": None}], "text": "NaN",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("closed", "out"), [(">&-", ""), ("<&- 2>&-", "{"), ("<&- >&- 2>&-", "")], ids=["out", "others", "all"]
)
def test_a_stream_that_is_closed_ends_no_command(closed: str, out: str) -> None:
    """As some schedulers start one: Python has None in its place."""
    command = f'exec "$0" -m toolkit boards show rp2040 --json {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:1], done.stderr) == (0, out, "")
