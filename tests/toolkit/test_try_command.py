"""`stonechat try`: recorded readings through a fleet file's links."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.cli import main

FLEET = """\
schema: 1
models:
  tiny: {{bundle: "{bundle}", max_new: 120, threads: 1}}
devices:
  north: {{model: tiny, links: [sort, rule]}}
links:
  - name: sort
    from: house/+/note
    parse: text
    prompt: "{{{{ value }}}}"
    examples: [{{reading: The tap drips., answer: {{kind: repair}}}}]
    answer: {{type: object, properties: {{kind: {{enum: [repair, noise]}}}}, required: [kind]}}
    unsure: {{below: 1, do: skip}}
    to: kind
  - name: rule
    from: plant/+
    when: bar > 1
    prompt: "{{{{ bar }}}}"
    decide: {{severity: "'alarm' if bar > 3 else 'ok'"}}
    answer: {{type: object, properties: {{severity: {{enum: [ok, alarm]}}}}, required: [severity]}}
    to: severity
"""
READINGS = """\
{"topic": "house/7/note", "reading": "The radiator stays cold.", "answer": {"kind": "repair"}}
house/9/note Loud music again.
plant/3 {"bar": 3.5}
plant/3 {"bar": 0.5}
plant/3 {"psi": 7}
{"topic": "plant/4", "reading": {"bar": 2}, "answer": {"severity": "alarm"}}
elsewhere 1
"""

Try = Callable[..., tuple[int, str, str]]


@pytest.fixture
def replayed(pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Try:
    def run(*flags: str, readings: str = READINGS) -> tuple[int, str, str]:
        (tmp_path / "fleet.yaml").write_text(FLEET.format(bundle=pi_bundle))
        (tmp_path / "readings.txt").write_text(readings)
        code = main(["try", str(tmp_path / "fleet.yaml"), "--readings", str(tmp_path / "readings.txt"), *flags])
        return code, *capfd.readouterr()

    return run


def test_each_reading_is_answered_and_what_is_known_is_scored(replayed: Try) -> None:
    code, out, _ = replayed("--json")
    found = json.loads(out)
    assert code == 0
    assert (found["answered"], found["without_answer"], found["not_woken"], found["held_back"]) == (4, 1, 1, 2)
    sorted_, loud, alarm, lacking, ok = found["answers"]
    assert sorted_["answer"] is None and sorted_["held_back"] and 0 < sorted_["confidence"]["kind"] < 1
    assert "truth" not in loud and alarm["answer"] == {"severity": "alarm"}
    assert lacking["error"] == "'bar' is undefined; the reading has psi."
    assert ok["answer"] == {"severity": "ok"} and ok["right"] == {"severity": False}
    assert found["fields"]["rule.severity"]["right"] == 0 and found["fields"]["rule.severity"]["count"] == 1
    assert found["reused_tokens"] > 0
    assert found["of_no_link"] == 1  # `elsewhere`


def test_the_router_finds_the_model_as_on_the_device(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    category = {"type": "object", "properties": {"category": {"type": "string"}}, "required": ["category"]}
    examples = Path(__file__).parents[2] / "examples"
    names = ("boiler-advisor", "log-triage")
    known = {"name": "any", "from": "house/+", "prompt": "{{ reading | tojson }}", "to": "out"}
    typed = {**known, "name": "typed", "from": "typed/+", "answer": category}
    fleet = {
        "schema": 1, "links": [known, typed],
        "models": {name: {"bundle": str(examples / name / "bundle"), "threads": 1} for name in names},
        "devices": {"pi": {
            "model": list(names), "links": ["any", "typed"],
            "router": {"rules": [{"when": "topic[1] == 'log'", "model": "log-triage"}]},
        }},
    }  # fmt: skip
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))
    boiler = '{"temp_c": 96, "bar": 1.4, "flow_l_min": 12}'
    log = '{"text": "kernel: igb 0000:01:00.0 eth3: Link is Down"}'
    right = f'{{"topic": "house/log", "reading": {log}, "answer": {{"category": "network"}}}}'
    (tmp_path / "readings.txt").write_text(f"house/boiler {boiler}\n{right}\ntyped/log {log}\ntyped/boiler {boiler}\n")
    assert main(["try", str(tmp_path / "fleet.yaml"), "--readings", str(tmp_path / "readings.txt"), "--json"]) == 0
    by_fields, by_rule, typed_log, refused = json.loads(capfd.readouterr().out)["answers"]
    assert "severity" in by_fields["answer"]
    assert by_fields["route"] == {
        "where": "here", "model": "boiler-advisor", "why": "its fields are those of the task",
    }  # fmt: skip
    assert {"category", "priority"} <= by_rule["answer"].keys() and by_rule["right"] == {"category": True}
    assert (by_rule["route"]["model"], by_rule["route"]["why"]) == ("log-triage", "rule 1")
    assert typed_log["answer"]["category"] == "network" and typed_log["route"]["model"] == "log-triage"
    assert refused["error"].startswith("the answer of link 'typed' cannot be given: The vocabulary of this bundle")
    assert refused["route"]["model"] == "boiler-advisor"


def test_the_text_names_what_should_have_been(replayed: Try) -> None:
    _, out, _ = replayed("--link", "rule")
    assert 'plant/4  rule: {"severity": "ok"}  | severity should be "alarm"' in out
    assert "rule.severity: 0 of 1 right, 0%" in out and "sort" not in out


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("alone", "readings.txt:2: found 'alone'; expected a JSON object, or a topic, a space and a payload"),
        ('{"topic": "a"}', "readings.txt:2: found no `reading`"),
        ('{"reading": 1, "truth": 2}', "readings.txt:2: found 'truth'"),
        ('{"reading": 1, "time": "now"}', "readings.txt:2: `answer` is an object"),
        ("{", "readings.txt:2: the line is not JSON"),
        (r'{"reading": "\ud800"}', "readings.txt:2: the line holds half of a surrogate pair, which is no character"),
    ],
)
def test_lines_that_are_no_readings_are_named(replayed: Try, line: str, fault: str) -> None:
    code, _, err = replayed(readings=f"plant/3 1\n{line}\n")
    assert code == 2 and fault in err


def test_a_file_may_begin_with_a_byte_order_mark(replayed: Try) -> None:
    """As editors on Windows save one."""
    assert replayed("--json", readings='\ufeffplant/3 {"bar": 3.5}\n')[0] == 0


def test_a_right_answer_that_no_link_can_give_is_named_and_not_scored(replayed: Try) -> None:
    wrong = [{"kin": "repair"}, {"kind": "leak"}]
    lines = [json.dumps({"topic": "house/7/note", "reading": "A", "answer": answer}) for answer in wrong]
    code, out, err = replayed(readings="\n".join(lines))
    assert code == 2 and not out
    assert "found the field 'kin'; expected kind" in err
    assert 'kind is "leak"; expected one of repair, noise' in err


def test_a_right_answer_that_no_model_of_a_router_can_give_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    examples = Path(__file__).parents[2] / "examples"
    names = ("boiler-advisor", "fall-alert", "home-commands", "log-triage")
    fleet = {
        "schema": 1,
        "links": [{"name": "logs", "from": "logs/+", "parse": "auto", "prompt": "{{ value }}", "to": "out"}],
        "models": {name: {"bundle": str(examples / name / "bundle"), "threads": 1} for name in names},
        "devices": {
            "house": {
                "model": list(names),
                "links": ["logs"],
                "router": {"file": str(examples / "router" / "router.json")},
            }
        },
    }
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))

    def run(answer: dict[str, str]) -> tuple[int, str, str]:
        reading = {"topic": "logs/a", "reading": "disk full", "answer": answer}
        (tmp_path / "readings.txt").write_text(json.dumps(reading))
        code = main(["try", str(tmp_path / "fleet.yaml"), "--readings", str(tmp_path / "readings.txt")])
        return code, *capfd.readouterr()

    code, out, err = run({"category": "storag"})
    assert (code, out) == (2, "")
    assert 'category is "storag"; expected one of none, network, storage, ' in err
    code, out, err = run({"categry": "storage"})
    assert (code, out) == (2, "")
    assert "found the field 'categry'; expected severity, cause, advice, level, reason, " in err
    # Which only the model for commands has: the router's error, if it is one, and to be scored.
    code, out, _ = run({"category": "storage", "device": "light"})
    assert code == 0 and "logs.category: 1 of 1 right" in out and "logs.device: 0 of 1 right" in out


def test_what_is_not_there_is_named(replayed: Try) -> None:
    assert "serves no link 'hot'; its links are sort, rule" in replayed("--link", "hot")[2]
    assert "fleet.yaml has no device 'south'; its devices are: north" in replayed("--device", "south")[2]
    assert "holds no readings" in replayed(readings="\n")[2]


def test_a_line_ends_at_a_line_feed_alone(replayed: Try) -> None:
    """As mosquitto_sub prints it: a payload may have U+0085 or a form feed in it."""
    code, out, _ = replayed(readings="house/9/note Loud\u0085music\x0cagain.\nhouse/7/note The tap drips.\n")
    assert code == 0 and "2 answered" in out


def test_a_line_with_a_number_that_json_does_not_have_is_named(replayed: Try) -> None:
    code, _, err = replayed(readings='{"topic": "plant/3", "reading": {"bar": 1}, "time": NaN}\n')
    assert code == 2 and "readings.txt:1: the line holds NaN, which is not JSON" in err


@pytest.mark.parametrize(
    ("reading", "told"),
    [("{} " * 400, "no answer: The prompt has "), ("urgent: disk", "no answer: log-triage never answers priority")],
    ids=["too long", "decided beyond its labels"],
)
def test_a_reading_that_cannot_be_answered_costs_no_other_its_answer(
    reading: str, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a device; it ended the replay."""
    labels = {"category": {"type": "string"}, "priority": {"enum": ["low", "normal", "high", "urgent"]}}
    link = {
        "name": "l", "from": "a", "parse": "text", "prompt": "{{ value }}", "to": "b",
        "answer": {"type": "object", "properties": labels},
        "decide": {"priority": "'urgent' if 'urgent' in value else 'high'"},
    }  # fmt: skip
    bundle = Path(__file__).parents[2] / "examples" / "log-triage" / "bundle"
    devices = {"d": {"model": "m", "links": ["l"]}}
    fleet = {"schema": 1, "models": {"m": {"bundle": str(bundle)}}, "devices": devices, "links": [link]}
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))
    (tmp_path / "readings.txt").write_text(f"a disk sda failed\na {reading}\na eth0: no carrier\n")
    assert main(["try", str(tmp_path / "fleet.yaml"), "--readings", str(tmp_path / "readings.txt")]) == 0
    out = capfd.readouterr().out
    assert told in out and "2 answered" in out and "1 without an answer" in out
