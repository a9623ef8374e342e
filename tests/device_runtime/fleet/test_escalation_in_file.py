"""`escalate` in a fleet file: what is read, and what is refused, with its place."""

from __future__ import annotations

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.file import FLEET, Fleet, check_fleet

BASE = """schema: 1
models: {small: {bundle: a}, large: {bundle: b}}
devices:
  pi:
    model: small
    links: [sort]
    escalate: ESCALATE
  server: {model: large, pool: herd}
links:
  - name: sort
    from: in/note
    prompt: "{{ value }}"
    answer: {type: object, properties: {kind: {enum: [a, b]}}}
    to: out/kind
    unsure: {do: escalate}
"""


def read(escalate: str, base: str = BASE) -> Fleet:
    return yaml_schema.loads(base.replace("ESCALATE", escalate), FLEET, check_fleet, file="fleet.yaml")


def test_all_of_it_is_read() -> None:
    found = (
        read(
            "{to: {url: https://api.example.com/v1, model: m, key_file: key}, allow: off-site, when: [unsure, late], "
            "redact: [badge, {field: who, with: X}, {pattern: '[0-9]{4}', with: ''}], requests_a_day: 5, timeout_s: 3}"
        )
        .devices["pi"]
        .escalate
    )
    assert found is not None and found.to.name == "https://api.example.com" and found.when == ("unsure", "late")
    assert [(r.field, r.pattern, r.replace) for r in found.redact] == [
        ("badge", None, None), ("who", None, "X"), (None, "[0-9]{4}", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "good",
    [
        "{to: {device: server, model: large}}",
        "{to: {pool: herd}}",
        "{to: {url: 'http://192.168.1.5:8080/v1', model: m}}",
        "{to: {url: http://server.local/v1, model: m}}",
        "{to: {url: 'http://[fd00::1]:8080/v1', model: m}}",
    ],
)
def test_targets_of_the_site_need_no_permission(good: str) -> None:
    read(good)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("{to: {url: https://api.example.com/v1, model: m}}", "only with `allow: off-site`"),
        ("{to: {url: 'http://8.8.8.8/v1', model: m}}", "only with `allow: off-site`"),
        ("{to: {url: http://api.example.com/v1, model: m}, allow: off-site}", "expected https://"),
        ("{to: {url: ftp://a/v1, model: m}}", "no URL of a server"),
        ("{to: {url: 'http://u:p@server/v1', model: m}}", "keys: key_file"),
        ("{to: {url: http://server/v1}}", "add `model: NAME`"),
        ("{to: {}}", "found none of them; expected exactly one"),
        ("{to: {device: server, pool: herd}}", "found device and pool"),
        ("{to: {device: server, key_file: k}}", "`key_file` belongs to a url"),
        ("{to: {device: sever}}", "did you mean 'server'?"),
        ("{to: {device: pi}}", "would ask itself"),
        ("{to: {device: server, model: huge}}", "has no model 'huge'"),
        ("{to: {pool: heard}}", "no device of this file is in the pool 'heard'"),
        ("{to: {pool: herd}, when: [unsur]}", "did you mean 'unsure'?"),
        ("{to: {pool: herd}, redact: [{pattern: '('}]}", "no regular expression"),
        ("{to: {pool: herd}, redact: [{pattern: 'a'}]}", "a pattern needs `with`"),
        ("{to: {pool: herd}, redact: [{field: a, pattern: b}]}", "expected a field's name"),
        ("{to: {pool: herd}, redact: [{field: a, with: 0}]}", "in quotes where they are numbers"),
        ("{to: {pool: herd}, budget: 5}", "unknown field 'budget'"),
    ],
)
def test_faults_have_their_place(bad: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        read(bad)
    assert expected in str(error.value) and "fleet.yaml:7:" in str(error.value)


def test_escalate_needs_somewhere_to_go() -> None:
    with pytest.raises(
        ConfigurationError, match=r"fleet.yaml:14:13: links\[0\].unsure: `do: escalate` needs somewhere"
    ):
        read("", BASE.replace("    escalate: ESCALATE\n", ""))


def test_escalate_needs_a_policy_that_passes_on_what_is_unsure() -> None:
    text = r"fleet.yaml:15:13: links\[0\].unsure: .* `when` of the `escalate` that it has on 'pi' is \[busy\]"
    with pytest.raises(ConfigurationError, match=text):
        read("{to: {device: server}, when: [busy]}")


def test_a_circle_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="escalates back to"):
        read("{to: {device: server}}", BASE.replace("pool: herd", "escalate: {to: {device: pi}}"))


def test_a_board_on_mqtt_by_itself_is_asked_by_no_device() -> None:
    """Its firmware refuses a request with `hops`: tests/device_runtime/firmware/test_firmware_fleet.py has that."""
    alone = BASE.replace("model: large, pool: herd", "model: large, by_itself: true")
    text = r"device 'server' is a board on MQTT by itself \(`by_itself`\), .*; name a device that"
    with pytest.raises(ConfigurationError, match=rf"fleet.yaml:7:\d+: devices.pi.escalate.to: {text}"):
        read("{to: {device: server}}", alone)
    of_link = alone.replace("    escalate: ESCALATE\n", "") + "    escalate: {to: {device: server, model: large}}\n"
    with pytest.raises(ConfigurationError, match=rf"fleet.yaml:15:\d+: links\[0\].escalate.to: {text}"):
        read("", of_link)
    read("{to: {url: 'http://server.local/v1', model: m}}", alone)  # it may be in the file, beside a way elsewhere


def test_a_device_of_a_pool_does_not_ask_its_pool() -> None:
    with pytest.raises(ConfigurationError, match="is in the pool 'herd' itself"):
        read(
            "{to: {pool: herd}}",
            BASE.replace("    links: [sort]", "    links: [sort]\n    pool: herd").replace(
                "model: large, pool: herd", "model: large"
            ),
        )


@pytest.mark.parametrize("rule", ["kind", "{pattern: ^a$, with: x}"])
def test_an_answer_that_demands_what_is_withheld_would_never_go_on(rule: str) -> None:
    with pytest.raises(ConfigurationError, match=r"fleet.yaml:13:.*demands values that `redact` withholds"):
        read(f"{{to: {{pool: herd}}, redact: [{rule}]}}")
