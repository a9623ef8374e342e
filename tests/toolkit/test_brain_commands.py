"""`stonechat router ask`, `explain` and `compare`, as a person types them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_runtime.engine.opening import open_model
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import load
from toolkit.cli import main
from toolkit.train.pipeline import ordinary

EXAMPLES = Path(__file__).parents[2] / "examples"


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_router_says_which_model_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = EXAMPLES / "router" / "fleet.yaml"
    found = said(capsys, "router", "ask", fleet, "--device", "house", "blinds down please")
    assert found["model"] == "home-commands" and found["why"].startswith("the router's classifier")
    found = said(capsys, "router", "ask", fleet, "--device", "house", '{"ph": 7}')
    assert found == {"model": None, "why": "no model of this device is for it"}
    found = said(capsys, "router", "ask", fleet, '{"ph": 7}')
    assert found == {"model": None, "why": "no model of the fleet is for it"}


def test_a_model_for_logs_in_json_gets_no_readings_that_name_their_sensor() -> None:
    """A task of logs has JSON objects among its texts, and nothing that is for no task was one."""
    pytest.importorskip("sklearn")
    from device_runtime.brain.text_classifier import NONE
    from toolkit.brain.router_training import background_texts, train_router

    levels, parts = ("info", "warn", "error", "fatal"), ("db", "web", "mail queue", "auth service", "backup job")
    said = ("connection refused", "request timed out", "disk is full", "login failed", "job finished", "out of memory")
    lines = [json.dumps({"level": x, "logger": y, "msg": z}) for x in levels for y in parts for z in said]
    router = train_router({"logs": lines}, list(background_texts())).classifier
    assert router.choose('{"level": "error", "logger": "mail queue", "msg": "disk is full again"}')[0] == "logs"
    for reading in ('{"sensor": "wine cellar", "humidity": 40}', '{"level": 3.5, "tank": "web shop"}'):
        assert router.choose(reading)[0] == NONE and router.probabilities(reading)[NONE] > 0.7  # 0.2 of the second


def test_a_fleet_without_a_router_is_not_said_to_have_no_model_for_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = EXAMPLES / "router" / "fleet.yaml"
    found = said(capsys, "router", "ask", fleet, "blinds down please")
    assert found["model"] is None
    assert found["why"] == (
        "it is a text, and no router's file distinguishes home-commands, log-triage: "
        f"{fleet} has no `router` for the whole fleet, at its top; --device ID asks that of one device"
    )
    assert main(["router", "ask", str(fleet), "blinds down please"]) == 0
    out, err = capsys.readouterr()
    assert out == found["why"] + "\n" and not err


def test_a_router_is_trained_on_no_readings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["router", "train", str(EXAMPLES / "router" / "fleet.yaml"), "--device", "house", "--cases", "20"]
    task = EXAMPLES / "boiler-advisor" / "task.yaml"
    assert main([*command, "--task", f"home-commands={task}", "-o", str(tmp_path / "r.json")]) == 2
    assert "reads fields, and home-commands reads texts" in capsys.readouterr().err


def test_training_a_router_asks_for_scikit_learn_before_it_makes_a_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "sklearn"] or ["sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    fleet = EXAMPLES / "router" / "fleet.yaml"
    assert main(["router", "train", str(fleet), "--device", "house", "-o", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr().err
    assert "pip install '.[train]'` in a checkout" in said and "examples of" not in said


def test_the_field_that_moves_the_answer_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    hot = '{"temp_c": 99, "bar": 1.4, "flow_l_min": 12}'
    usual = '{"temp_c": 60, "bar": 1.5, "flow_l_min": 12}'
    found = said(capsys, "explain", EXAMPLES / "boiler-advisor" / "bundle", hot, "--instead", usual)
    assert found["answer"]["severity"] == "alarm"
    first, *others = found["moved_by"]
    assert first["left_out"] == "temp_c" and first["answer"]["severity"] == "ok" and first["change"] == 1
    assert all(other["change"] < 1 for other in others)


def test_what_stands_in_for_a_field_is_ordinary(capsys: pytest.CaptureFixture[str]) -> None:
    """The middle of the boiler's ranges, 450 °C and 45 bar, would be a sensor's fault."""
    found = said(capsys, "explain", EXAMPLES / "boiler-advisor" / "bundle", '{"temp_c": 99, "bar": 1, "flow_l_min": 9}')
    assert found["instead"] == {"temp_c": 46.0, "bar": 1.72, "flow_l_min": 16.2}
    first, *others = found["moved_by"]
    assert first["left_out"] == "temp_c" and first["answer"]["cause"] != "sensor_fault"
    assert all(other["answer"]["cause"] == "overheat" for other in others)


@pytest.mark.parametrize(
    ("example", "given", "answered", "why"),
    [
        ("boiler-advisor", '{"temp_c": 99, "bar": 1.4}', False, "flow_l_min is not there; expected a number of l/min"),
        ("boiler-advisor", '{"temp_c": "hot", "bar": 1, "flow_l_min": 9}', False, "temp_c is 'hot'; expected a number"),
        ("log-triage", f"eth3: link is {'down' * 100}", True, "the text has 414 characters"),
    ],
)
def test_an_input_unlike_those_of_the_training_is_explained_as_the_device_answers_it(
    capsys: pytest.CaptureFixture[str], example: str, given: str, answered: bool, why: str
) -> None:
    bundle = EXAMPLES / example / "bundle"
    assert main(["explain", str(bundle), given]) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[0] != "null") == answered and f"unfamiliar: {why}" in err
    found = said(capsys, "explain", bundle, given)
    assert found["unfamiliar"] is True and found["reason"].startswith(why)
    with open_model(bundle) as model:
        device = json.loads("".join(model.generate(given)))
    assert device == found["answer"] and (device is not None) == answered


def test_what_is_wrong_with_a_field_is_explained_by_the_answer_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = EXAMPLES / "boiler-advisor" / "bundle"
    first, *others = said(capsys, "explain", bundle, '{"temp_c": "hot", "bar": 1, "flow_l_min": 9}')["moved_by"]
    assert first["left_out"] == "temp_c" and first["answer"]["severity"] == "ok" and first["change"] == 1
    assert all(other["answer"] is None and other["change"] == 0 for other in others)


def test_ordinary_values_are_those_of_readings_without_an_answer() -> None:
    task = load(EXAMPLES / "fall-alert")
    quiet = [{"peak_g": g, "posture_after": "sitting", "still_s": 9, "heart_bpm": 70} for g in (1, 2, 9)]
    loud = [{"peak_g": 50, "posture_after": "lying", "still_s": 900, "heart_bpm": 30}] * 5
    examples = [Example(reading, {"level": "none", "reason": "none"}) for reading in quiet]
    examples += [Example(reading, {"level": "call_help", "reason": "heart"}) for reading in loud]
    assert ordinary(task, examples) == {"peak_g": 2, "posture_after": "sitting", "still_s": 9, "heart_bpm": 70}
    assert ordinary(replace(task, none={}), examples)["peak_g"] == 50
    assert ordinary(load(EXAMPLES / "log-triage"), []) == {}


def test_what_is_no_reading_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(EXAMPLES / "boiler-advisor" / "bundle"), "hot"]) == 2
    assert "expected a JSON object with temp_c, bar, flow_l_min" in capsys.readouterr().err


def test_a_stand_in_for_no_field_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    bundle, hot = str(EXAMPLES / "boiler-advisor" / "bundle"), '{"temp_c": 99, "bar": 1.4, "flow_l_min": 12}'
    assert main(["explain", bundle, hot, "--instead", '{"tmp_c": 60}']) == 2
    assert "--instead names tmp_c; the bundle's fields are temp_c, bar, flow_l_min" in capsys.readouterr().err


def test_data_is_not_cut_by_a_stop_text() -> None:
    bundle = EXAMPLES / "home-commands" / "bundle"
    with open_model(bundle) as model, pytest.raises(ConfigurationError, match="stop cannot end"):
        model.generate("light on", stop=["on"])  # type: ignore[call-arg]


def test_local_beside_escalated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = {"took_ms": 10, "energy": {"j": 0.06, "mwh": 0.02, "how": "computed: 6 W"}, "route": {"where": "here"}}
    far = {"took_ms": 1000, "energy": {"j": 0.06, "how": "computed: 6 W"}, "route": {"where": "http://server"}}
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, [local, local, far])))
    found = said(capsys, "compare", tmp_path / "r.jsonl", "--far-w", 100, "--grid", 360)
    assert (found["local"]["answers"], found["local"]["j"]) == (2, 0.06)
    # 100 W for a second, and the device's own attempt; 360 g a kWh are 0.1 mg a joule
    assert found["escalated"]["j"] == 100.06 and found["escalated"]["mg_co2"] == pytest.approx(10.006)


@pytest.mark.parametrize(
    "line",
    [
        "no record", "[1]", '{"a": 1}', "[" * 100_000, '{"took_ms": "long"}', '{"took_ms": NaN}', '{"took_ms": -1}',
        '{"took_ms": 1, "route": 3}', '{"took_ms": 1, "energy": {"j": "many", "how": "x"}}',
        '{"took_ms": 1, "energy": {"j": 1}}',
    ],
)  # fmt: skip
def test_what_is_no_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    (tmp_path / "r.jsonl").write_text(f'{{"took_ms": 1}}\n{line}\n')
    assert main(["compare", str(tmp_path / "r.jsonl")]) == 2
    assert "expected records of answers" in capsys.readouterr().err


def test_a_text_of_a_thousand_words_is_not_asked_a_thousand_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(EXAMPLES / "log-triage" / "bundle"), "x " * 1000]) == 2
    assert "has 1000 words" in capsys.readouterr().err


def test_what_is_put_in_place_is_a_number_that_json_has(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(EXAMPLES / "boiler-advisor" / "bundle")
    given = '{"temp_c": 99, "bar": 1, "flow_l_min": 9}'
    assert main(["explain", bundle, given, "--instead", '{"temp_c": NaN}']) == 2
    assert "--instead has no finite number for temp_c" in capsys.readouterr().err


def test_records_hold_texts_with_any_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text('{"took_ms": 3, "text": "a\u0085b\u2028c"}\n', encoding="utf-8")
    assert said(capsys, "compare", file)["local"]["answers"] == 1


def test_records_in_a_folder_are_refused_as_any_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"stonechat: {tmp_path} cannot be read: Is a directory. Check the path.\n"
