"""Fleet files: what they mean, and all their faults at once."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.circles import circles
from device_runtime.fleet.links import Link, Window
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.address import PASSWORD_VARIABLE, BrokerAddress, Certificates, read_password

HERE = Path(__file__).parent
GOOD = """\
schema: 1
broker: {url: mqtt://me@host:1884}
devices:
  pi: {model: small, links: [hot]}
  zero: {model: small, pool: herd}
models:
  small: {bundle: ../bundles/small, threads: 2, max_new: 48, system: Be brief.}
links:
  - name: hot
    from: plant/+/boiler
    when: temp_c > 80
    window: {seconds: 30, keep: 5}
    prompt: "{{ temp_c }} °C"
    to: plant/{{ topic[1] }}/advice
    deadline_s: 2.5
    overload: every
"""


def test_a_fleet_file_becomes_device_configurations(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(GOOD, encoding="utf-8")
    f = fleet.load(path)
    config = f.device("pi", f.address("pi"), tmp_path)
    assert config.links == (
        Link(
            "hot", "plant/+/boiler", "{{ temp_c }} °C", "plant/{{ topic[1] }}/advice", "temp_c > 80", Window(30, 5),
            deadline_s=2.5, overload="every", answer_of_model=True,
        ),
    )  # fmt: skip
    assert config.models == (ModelSettings("small", "Be brief.", 48),)
    assert (config.broker.host, config.broker.port, config.broker.user) == ("host", 1884, "me")
    assert f.device("zero", f.address("zero"), tmp_path).pool == "herd"
    assert f.models_of("pi")["small"].bundle == str(tmp_path.parent / "bundles" / "small")
    with pytest.raises(ConfigurationError, match="no device 'pie'; did you mean 'pi'"):
        f.models_of("pie")


SEVERAL = """\
schema: 1
models: {small: {bundle: a}, large: {bundle: b, system: Be brief.}}
devices: {pi: {model: %s, links: [hot]}}
links: [{name: hot, from: t, model: %s, prompt: p, to: u}]
"""


def test_a_device_may_have_several_models_and_a_link_names_its_own():
    f = yaml_schema.loads(SEVERAL % ("[small, large]", "large"), fleet.FLEET, fleet.check_fleet, file="f.yaml")
    config = f.device("pi", BrokerAddress("b"), Path())
    assert config.models == (ModelSettings("small"), ModelSettings("large", "Be brief."))
    assert config.links[0].model == "large"


@pytest.mark.parametrize(
    ("model", "links", "message"),
    [
        ("[]", "small", "3:23: devices.pi.model: found an empty list; expected at least one entry"),
        ("[small, small]", "small", "3:23: devices.pi.model: names the same entry twice"),
        ("[small, larg]", "small", "3:31: devices.pi.model.*: there is no model 'larg'; did you mean 'large'?"),
        ("small", "big", "4:37: links.*model: there is no model 'big'"),
        ("small", "large", "3:37: devices.pi.links: link 'hot' wants the model 'large'; this device has 'small'"),
    ],
)
def test_a_model_that_is_not_there_is_a_fault_with_its_place(model, links, message):
    with pytest.raises(ConfigurationError, match=f"f.yaml:{message}"):
        yaml_schema.loads(SEVERAL % (model, links), fleet.FLEET, fleet.check_fleet, file="f.yaml")


ANSWERING = """\
schema: 1
models: {small: {bundle: a}}
devices: {pi: {model: small, links: [hot]}}
links:
- {name: hot, from: t, prompt: p, to: u, answer: %s}
"""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "{type: object, propertys: {}}",
            r"5:65: links.*answer: unknown keyword 'propertys'; did you mean 'properties'",
        ),
        ("{properties: {a: {anyOf: [{maxLenght: 3}]}}}", r"5:77: .*a.anyOf\[0\]: unknown keyword 'maxLenght'; did you"),
        ("{properties: {valve: {}}, required: [valv]}", "'valv' is none of the properties; did you mean 'valve'"),
        ("{type: objet}", "answer: The schema cannot be used"),
        ("[1]", "answer: a JSON schema, a mapping such as"),
        ("{valve: {enum: [on, off]}}", "5:50: .*answer: valve: no keyword of JSON Schema; expected .*{type: object"),
        ("{properties: {valve: {choices: [on, off]}}}", "answer.properties.valve: choices: no keyword of JSON Schema"),
        ("{type: object, type: array}", "'type' is here twice"),
    ],
)
def test_a_fault_of_an_answers_schema_has_its_place(answer, message):
    with pytest.raises(ConfigurationError, match=message):
        yaml_schema.loads(ANSWERING % answer, fleet.FLEET, file="f.yaml")


def test_words_of_an_answer_stay_words():
    """YAML 1.1 would make `enum: [true, false]` of these, and the model would never say `on`."""
    schema = "{type: object, properties: {valve: {enum: [on, off]}, unit: {const: no}}}"
    (link,) = yaml_schema.loads(ANSWERING % schema, fleet.FLEET, file="f.yaml").links
    assert link.answer["properties"] == {"valve": {"enum": ["on", "off"]}, "unit": {"const": "no"}}


def test_an_answer_may_refer_to_itself_through_an_anchor():
    with contextlib.suppress(ConfigurationError):
        yaml_schema.loads(ANSWERING % "&a {type: object, properties: {inner: *a}}", fleet.FLEET, file="f.yaml")


def test_faults_of_links_come_with_the_others():
    text = GOOD.replace("overload: every", "overload: evry").replace("to: plant/{{ topic[1] }}", "to: plant/+")
    text += '  - {name: cold, from: plant/+/air, prompt: "{{ topic[3] }}", to: plant/air}\n'
    with pytest.raises(ConfigurationError) as e:
        yaml_schema.loads(text, fleet.FLEET, file="f.yaml")
    assert [line.split(": ")[1] for line in str(e.value).splitlines()[1:]] == ["links[0].overload", "links[1].prompt"]


def test_links_that_wake_each_other_without_end_are_a_fault():
    chain = """\
schema: 1
models: {small: {bundle: a}}
devices: {pi: {model: small, links: [one, two, three]}}
links:
- {name: one, from: a/+, prompt: p, to: "b/{{ topic[1] }}/x"}
- {name: two, from: b/#, prompt: p, to: c}
- {name: three, from: c, prompt: p, to: %s}
"""
    with pytest.raises(ConfigurationError) as e:
        yaml_schema.loads(chain % "a/z", fleet.FLEET, fleet.check_fleet, file="f.yaml")
    assert "f.yaml:5:41: links[0].to: its answers come back to it by way of 'two', 'three', and so without" in str(
        e.value
    )
    yaml_schema.loads(chain % "d", fleet.FLEET, fleet.check_fleet, file="f.yaml")


@pytest.fixture
def with_password(tmp_path, monkeypatch):
    """A fleet file whose devices have passwords: one file, or a folder, at $WHERE."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ca.crt").write_text("")
    (tmp_path / "keys" / "pi.password").write_text("secret-of-pi\n")
    (tmp_path / "one.password").write_text("secret-of-all\r\n")
    (tmp_path / "empty.password").write_text("\n")
    broker = "{url: 'mqtts://host', certs: keys, password_file: '${WHERE}'}"
    path = tmp_path / "fleet.yaml"
    path.write_text(re.sub(r"(?m)^broker: .*$", lambda _: f"broker: {broker}", GOOD), encoding="utf-8")
    return lambda where: monkeypatch.setenv("WHERE", where) or fleet.load(path)


def test_a_password_comes_from_a_file_and_its_user_is_the_device(with_password, tmp_path):
    address = with_password("keys").address("pi")
    assert (address.user, address.password, address.tls) == ("pi", "secret-of-pi", True)
    assert address.certificates == Certificates(ca=tmp_path / "keys" / "ca.crt")
    assert "secret" not in repr(address)
    assert with_password("one.password").address("zero").password == "secret-of-all"
    other = with_password("keys").address("pi", "mqtts://me@host", tmp_path / "one.password")
    assert (other.user, other.password) == ("me", "secret-of-all")


def test_a_device_with_both_proves_itself_by_both(with_password, tmp_path):
    for ending in ("crt", "key"):
        (tmp_path / "keys" / f"pi.{ending}").write_text("")
    address = with_password("keys").address("pi")
    assert address.password == "secret-of-pi" and address.certificates.own == tmp_path / "keys" / "pi.crt"


@pytest.mark.parametrize(
    "where, device, words",
    [
        ("keys", "zero", r"cannot read the password file .*keys/zero.password: No such file"),
        ("nowhere", "pi", r"cannot read the password file .*nowhere: No such file"),
        ("empty.password", "pi", r"empty.password is empty; expected one line"),
    ],
)
def test_a_password_that_is_missing_is_told(with_password, where, device, words):
    with pytest.raises(ConfigurationError, match=words):
        with_password(where).address(device)


def test_without_a_password_a_certificate_is_needed(with_password, tmp_path, monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    path = tmp_path / "fleet.yaml"
    path.write_text(path.read_text().replace(", password_file: '${WHERE}'", ""))
    with pytest.raises(ConfigurationError, match=r"keys/pi.crt is missing; make it with"):
        fleet.load(path).address("pi")
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    assert fleet.load(path).address("pi").user == "pi"


def test_all_faults_come_at_once_with_their_places(monkeypatch):
    monkeypatch.chdir(HERE)
    with pytest.raises(ConfigurationError) as e:
        fleet.load("faulty.yaml")
    assert str(e.value) + "\n" == (HERE / "faulty.txt").read_text(encoding="utf-8")
    assert e.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a: [", "f.yaml:1:5: not YAML|f.yaml:2:1: not YAML|f.yaml:1:.*: not YAML"),
        ("\x07", "not YAML"),
        ("[1]", "f.yaml:1:1: found a list; expected a mapping"),
        ("&a [*a]", "f.yaml:1:1: an anchor leads back to itself"),
        ("[" * 5000, "nests too deep|not YAML"),
        ("!!python/object/apply:os.system [ls]", "expected a mapping"),
    ],
)
def test_a_file_that_is_no_fleet_says_why(text, message):
    with pytest.raises(ConfigurationError, match=message):
        yaml_schema.loads(text, fleet.FLEET, file="f.yaml")


@settings(deadline=None)  # a busy machine is no fault
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_gives_a_fleet_or_our_own_error(text):
    with pytest.raises(ConfigurationError):
        yaml_schema.loads(text, fleet.FLEET, file="f.yaml")


LINES = GOOD.splitlines()


@settings(deadline=None)  # a busy machine is no fault
@given(
    st.integers(0, len(LINES) - 1),
    st.sampled_from(["", "- ", "{", "}", ":", "&a ", "*a", "? ", "!!x ", "null", "[]", "9"]),
)
def test_a_damaged_line_gives_a_fleet_or_our_own_error(place, damage):
    for line in (LINES[place] + damage, damage + LINES[place], LINES[place].split(":")[0] + ": " + damage):
        text = "\n".join([*LINES[:place], line, *LINES[place + 1 :]])
        with contextlib.suppress(ConfigurationError):
            yaml_schema.loads(text, fleet.FLEET, file="f.yaml")


def test_bundle_paths_may_name_environment_variables(monkeypatch):
    monkeypatch.setenv("BUNDLES", "/opt")
    monkeypatch.delenv("NOTHING", raising=False)
    assert fleet.expand("${BUNDLES}/a") == "/opt/a"
    assert fleet.expand("${NOTHING:-../b}/a") == "../b/a"
    with pytest.raises(ConfigurationError, match="NOTHING, which is not set"):
        fleet.expand("${NOTHING}/a")


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://x", "mqtt://", "mqtt://h:99999", "mqtt://h/topic", "mqtt://[::1"]
)
def test_a_broker_url_that_cannot_be_used_says_what_can(url):
    with pytest.raises(ConfigurationError, match=r"expected mqtt://"):
        BrokerAddress.from_url(url)


def test_a_password_is_never_taken_from_a_url(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="--password-file") as e:
        BrokerAddress.from_url("mqtt://me:secret@h")
    assert "secret" not in str(e.value)
    (tmp_path / "p").write_text("secret\n")
    broker = BrokerAddress.from_url("mqtts://me@h", password=read_password(tmp_path / "p"))
    assert (broker.port, broker.tls, broker.password) == (8883, True, "secret")
    assert "secret" not in repr(broker)
    monkeypatch.setenv("STONECHAT_MQTT_PASSWORD", "other")
    assert read_password() == "other"
    with pytest.raises(ConfigurationError, match="cannot read the password file"):
        read_password(tmp_path / "none")


def test_the_greenhouse_fleet_is_good():
    f = fleet.load(HERE.parents[2] / "examples" / "greenhouse" / "fleet.yaml")
    assert [link.name for link in f.links] == ["too-hot", "too-dry", "too-damp"]


def many_links(count: int, to: str = "a/{}/x") -> str:
    """A chain of links; with `to` the last one may lead back."""
    lines = ["schema: 1", "models: {m: {bundle: x}}", "devices:"]
    lines.append("  d: {model: m, links: [" + ", ".join(f"l{i}" for i in range(count)) + "]}")
    lines.append("links:")
    lines += [f"  - {{name: l{i}, from: a/{i}/+, prompt: p, to: {to.format(i + 1)}}}" for i in range(count)]
    return "\n".join(lines)


def test_time_grows_with_the_number_of_links_and_no_faster():
    """It was the square: 3,000 links took a minute."""

    def seconds(count: int) -> float:
        started_s = time.process_time()
        yaml_schema.loads(many_links(count), fleet.FLEET, fleet.check_fleet, file="f.yaml")
        return time.process_time() - started_s

    few, many = zip(*[(seconds(100), seconds(400)) for _ in range(4)], strict=True)
    assert min(many) < 8 * min(few)  # the least of each: what else the machine does only adds. The square is 16


def test_links_that_wake_each_other_are_found_in_a_large_circle_too():
    with pytest.raises(ConfigurationError) as error:
        text = many_links(50).replace("to: a/50/x", "to: a/0/x")
        yaml_schema.loads(text, fleet.FLEET, fleet.check_fleet, file="f.yaml")
    assert "come back to it by way of 'l1', 'l2', 'l3'" in str(error.value)
    assert str(error.value).count("come back to it") == 20


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=10))
def test_a_circle_is_found_where_there_is_one(pairs):
    links = [Link(name=f"l{i}", source=f"t/{a}", prompt="p", to=f"t/{b}") for i, (a, b) in enumerate(pairs)]

    def wakes_itself(start: int) -> bool:
        """By others, however long the way is: the plain definition."""
        reached, rest = set(), [start]
        while rest:
            place = rest.pop()
            for other, link in enumerate(links):
                if link.source == links[place].to and other not in reached:
                    reached.add(other)
                    rest.append(other)
        return start in reached

    expected = {
        i for i, link in enumerate(links)
        if any(j != i and wakes_itself(i) and wakes_through(links, i, j) for j in range(len(links)))
    }  # fmt: skip
    assert {place for place, _ in circles(links)} == expected


def wakes_through(links: list[Link], start: int, other: int) -> bool:
    """Whether `start` and `other` wake each other."""

    def reaches(a: int, b: int) -> bool:
        seen, rest = set(), [a]
        while rest:
            place = rest.pop()
            for next_place, link in enumerate(links):
                if link.source == links[place].to and next_place not in seen:
                    if next_place == b:
                        return True
                    seen.add(next_place)
                    rest.append(next_place)
        return False

    return reaches(start, other) and reaches(other, start)


def test_anchors_that_stand_for_billions_of_values_are_refused_at_once():
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    started_s = time.process_time()
    with pytest.raises(ConfigurationError, match=r"f.yaml:\d+:\d+: its anchors stand for more than 250,000 values"):
        yaml_schema.loads("\n".join(laughs), fleet.FLEET, file="f.yaml")
    assert time.process_time() - started_s < 2


def test_thousands_of_wrong_names_are_reported_in_time():
    started_s = time.process_time()
    text = many_links(1000).replace("links: [l0", "links: [" + ", ".join(f"none-{i}" for i in range(1000)) + ", l0")
    with pytest.raises(ConfigurationError, match=r"f.yaml has more than 200 faults"):
        yaml_schema.loads(text, fleet.FLEET, fleet.check_fleet, file="f.yaml")
    assert time.process_time() - started_s < 20


class TestTheAnswerOfATrainedBundle:
    BUNDLES = Path(__file__).parents[3] / "examples"

    def read(self, tmp_path, bundle, **link):
        path = tmp_path / "fleet.yaml"
        devices = {"pi": {"model": "trained", "links": ["boiler"]}}
        models = {"trained": {"bundle": str(bundle)}}
        known = {"name": "boiler", "from": "plant/+/boiler", "prompt": "{{ reading | tojson }}", "to": "plant/advice"}
        whole = {"schema": 1, "broker": {"url": "mqtt://host"}, "devices": devices, "models": models}
        path.write_text(json.dumps(whole | {"links": [known | link]}), encoding="utf-8")
        return fleet.load(path)

    def test_a_link_without_one_has_the_bundles(self, tmp_path):
        f = self.read(tmp_path, self.BUNDLES / "boiler-advisor/bundle", unsure={"below": 0.9, "do": "skip"})
        (link,) = f.device("pi", f.address("pi"), tmp_path).links
        assert list(link.answer["properties"]) == ["severity", "cause", "advice"]
        assert link.answer["properties"]["severity"] == {"enum": ["ok", "warn", "alarm"]}

    def test_its_own_comes_first(self, tmp_path):
        own = {"type": "object", "properties": {"severity": {"enum": ["ok", "alarm"]}}, "required": ["severity"]}
        f = self.read(tmp_path, self.BUNDLES / "boiler-advisor/bundle", answer=own)
        assert f.links_of("pi")[0].answer == own

    def test_a_bundle_that_is_not_here_gives_none(self, tmp_path):
        assert self.read(tmp_path, tmp_path / "nowhere").links_of("pi")[0].answer is None

    def test_unsure_needs_an_answer_of_either(self, tmp_path):
        f = self.read(tmp_path, self.BUNDLES / "boiler-advisor/bundle", unsure={})
        manifest = Bundle.open(self.BUNDLES / "boiler-advisor/bundle").manifest
        assert f.refused_links("pi", "trained", manifest, lambda schema, limit: None) == {}
        (why,) = f.refused_links("pi", "trained", replace(manifest, purpose=None), lambda schema, limit: None).values()
        assert "has `unsure` and no `answer`, and the bundle of 'trained'" in why


def test_a_board_on_mqtt_by_itself_is_asked_for_nothing_but_answers():
    def read(**more):
        links = [{"name": "hot", "from": "plant/+/air", "prompt": "x", "to": "plant/advice"}]
        device = {"model": "tiny", "by_itself": True, **more}
        whole = {"schema": 1, "models": {name: {"bundle": name} for name in ("tiny", "other")}, "links": links}
        text = json.dumps(whole | {"devices": {"boiler-room": device}})
        return yaml_schema.loads(text, fleet.FLEET, fleet.check_fleet, file="f.yaml")

    assert read(groups=["north"]).devices["boiler-room"].by_itself
    for name, value in (("links", ["hot"]), ("pool", "herd"), ("model", ["tiny", "other"]), ("records", {})):
        with pytest.raises(ConfigurationError, match="answers requests only; put `stonechat bridge`") as caught:
            read(**{name: value})
        assert "f.yaml:1:" in str(caught.value)
