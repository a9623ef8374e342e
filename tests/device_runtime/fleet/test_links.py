"""Sensors in, answers out."""

from __future__ import annotations

import contextlib
import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.device.extensions.link_runner import LinkRunner
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import links
from device_runtime.fleet.link_faults import faults
from device_runtime.fleet.links import Link, LinkError, Reading, Window, Windows, check_template, read, shape
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.strict_json import MessageError
from tests.support.scripted_model import ScriptedModel


def link(**fields):
    return Link(**({"name": "hot", "source": "plant/+/boiler", "prompt": "p", "to": "advice"} | fields))


def consider(fields, topic="plant/b1/boiler", **settings):
    return Windows(link(**settings)).consider(Reading(topic, fields, 0.0))


def links_health(device):
    """What `out/health` reports of the links."""
    (links,) = (e.health() for e in device.service._extensions if isinstance(e, LinkRunner))
    return links["links"]


def test_a_reading_that_passes_the_guard_wakes_the_model():
    wakeup = consider(
        {"temp_c": 91, "bar": 2.5}, when="temp_c > 80", prompt="Boiler {{ topic[1] }}: {{ temp_c }} °C, {{ bar }} bar.",
        to="plant/{{ topic[1] }}/advice",
    )  # fmt: skip
    assert (wakeup.prompt, wakeup.to) == ("Boiler b1: 91 °C, 2.5 bar.", "plant/b1/advice")
    assert consider({"temp_c": 79}, when="temp_c > 80") is None


def test_no_guard_wakes_on_every_reading():
    assert consider({}).prompt == "p"


def test_the_window_holds_earlier_readings_of_the_same_topic():
    now = [100.0]
    windows = Windows(link(prompt="{{ window | map(attribute='t') | list }}", window=Window(10, 2)), lambda: now[0])
    prompts = []
    for at_s, t in ((90.0, 1), (95.0, 2), (96.0, 3), (97.0, 4)):
        prompts.append(windows.consider(Reading("plant/a/boiler", {"t": t}, at_s)).prompt)
    assert prompts == ["[]", "[1]", "[1, 2]", "[2, 3]"]
    now[0] = 107.0
    assert windows.consider(Reading("plant/a/boiler", {"t": 5}, 107.0)).prompt == "[4]"
    assert windows.consider(Reading("plant/b/boiler", {"t": 6}, 107.0)).prompt == "[]"


def test_readings_that_do_not_wake_are_in_the_window_too():
    windows = Windows(link(when="t > 5", prompt="{{ window[0].t }}", window=Window(1e9, 5)), lambda: 0.0)
    assert windows.consider(Reading("x", {"t": 1}, 0.0)) is None
    assert windows.consider(Reading("x", {"t": 9}, 0.0)).prompt == "1"


def test_a_field_cannot_take_the_place_of_topic_or_window():
    fields = {"topic": "evil", "self": 1, "reading": 2}
    assert consider(fields, prompt="{{ topic[1] }} {{ reading.topic }}").prompt == "b1 evil"


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        ({"when": "temp_c > 80"}, {"temp": 1}, "'temp_c' is undefined; the reading has temp"),
        ({"prompt": "{{ '%c' | format(t) }}"}, {"t": 0xD800}, r"the prompt has half a character, '\\ud800' in it"),
        (
            {"when": "temp_c > 80"},
            {"temp_c": "hot"},
            "`temp_c > 80`: '>' compares two numbers or two texts, and has the text 'hot'",
        ),
        ({"when": "wet"}, {}, "'wet' is undefined"),
        ({"prompt": "{{ x }}"}, {}, "'x' is undefined"),
        ({"prompt": "{{ 1 / x }}"}, {"x": 0}, "division by zero"),
        ({"prompt": "{{ x.__class__.__mro__ }}"}, {"x": 0}, "unsafe"),
        ({"prompt": "{{ x }}"}, {"x": "a" * 40000}, "40000 characters"),
        ({"prompt": "{{ x * 40000 }}"}, {"x": "a"}, "two numbers"),
        ({"prompt": "{{ x % 10 }}"}, {"x": "%999999999d"}, "two numbers"),
        ({"to": "a/{{ x }}"}, {"x": "b/c"}, "cannot be one level"),
        ({"to": "a/{{ x }}"}, {"x": "#"}, "cannot be one level"),
        ({"to": "a/{{ x }}"}, {"x": ""}, "cannot be one level"),
        ({"to": "a/+"}, {}, "wildcard"),
        ({"to": "stonechat/1/d/in/generate"}, {}, "command a device"),
        ({"to": "plant/{{ x }}/boiler"}, {"x": 1}, "wake this link"),
    ],
)
def test_a_reading_that_a_link_cannot_use_is_a_link_error(settings, fields, message):
    with pytest.raises(LinkError, match=message):
        consider(fields, **settings)


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"to": "plant/+/advice"}, "to", r"holds a wildcard; .* is \{\{ topic\[1\] \}\}"),
        ({"to": "plant/{{ topic[1] }}/#"}, "to", "holds a wildcard"),
        ({"to": "stonechat/1/{{ topic[1] }}/in/generate"}, "to", "leads to where devices are commanded"),
        ({"to": "plant/{{ topic[1] }}/boiler"}, "to", "come back to this link: 'plant/.+/boiler' matches"),
        ({"source": "plant/#", "to": "plant/advice"}, "to", "come back to this link"),
        ({"to": "plant/a\nb"}, "to", "control character"),
        ({"to": "x/{{ topic[3] }}"}, "to", r"topic\[3\] is not there: 'plant/.+/boiler' has topic\[0\] to \[2\]"),
        ({"prompt": "{{ topic[-4] }}"}, "prompt", r"topic\[-4\] is not there"),
        ({"when": "topic[9] == 'b'"}, "when", r"topic\[9\] is not there"),
        ({"when": "t > 1 and window[-1].t <= 1"}, "when", "uses `window`, which is empty without"),
        ({"prompt": "{% for r in window %}{{ r.t }}{% endfor %}"}, "prompt", "uses `window`"),
        ({"prompt": "{{ '%.1f' % t }}"}, "prompt", r"'%' takes numbers only; round with \{\{ x \| round\(1\)"),
        ({"prompt": "{{ '-' * 9 }}"}, "prompt", r"'\*' takes numbers only"),
        (
            {"parse": "text", "prompt": "{{ text }}"},
            "prompt",
            "'text' is not there: with `parse: text` a reading is value",
        ),
        (
            {"parse": "number", "when": "any(w.value > 1 for w in [x])"},
            "when",
            "'x' is not there: .* is value and unit",
        ),
    ],
)
def test_a_fault_of_a_link_is_found_before_there_is_a_reading(settings, field, message):
    ((name, text),) = faults(link(**settings))
    assert name == field and re.search(message, text)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"source": "plant/#", "prompt": "{{ topic[5] }}", "to": "advice/{{ topic[-1] }}"},
        {"to": "plant/{{ topic[1] }}/boiler/{{ x }}-advice"},
        {"to": "{% if t > 9 %}alarm{% else %}advice{% endif %}/{{ topic[2] }}"},
        {"when": "window", "window": Window(1, 1), "prompt": "{{ window | length % 2 }}"},
        {"parse": "text", "prompt": "{{ text | default(value) }}{% for n in range(2) %}{{ n }}{% endfor %}"},
        {"parse": "number", "when": "value > 3 and unit == 'bar'", "decide": {}, "prompt": "{{ reading }} {{ unit }}"},
    ],
)
def test_what_may_be_right_is_no_fault(settings):
    assert faults(link(**settings)) == []


def test_a_window_is_bounded_by_the_memory_that_its_readings_take():
    """Counted in bytes that came, 8 MiB of short lists took 195 MB."""
    reading = read("t", b'{"v": [' + b"[]," * 20_000 + b"0]}", 0.0)
    assert len(reading.payload) < 61_000
    tracemalloc.start()
    windows = Windows(link(prompt="p", window=Window(1e9, 1000)), lambda: 0.0, max_bytes=8 * 2**20)
    for number in range(40):
        windows.consider(read(f"t{number % 3}", reading.payload, 0.0))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 4 * 2**20 < taken < 9 * 2**20
    assert windows._bytes <= 8 * 2**20


def test_a_reading_that_is_larger_than_a_window_may_be_is_not_kept():
    windows = Windows(link(prompt="{{ window | length }}", window=Window(1e9, 5)), lambda: 0.0, max_bytes=2000)
    assert [windows.consider(Reading("a", {"t": 1}, 0.0)).prompt for _ in range(2)] == ["0", "1"]
    windows.consider(Reading("a", {"t": "x" * 5000}, 0.0))
    assert windows._bytes == 0 and not windows._earlier


def test_a_window_forgets_the_topic_that_was_silent_longest(monkeypatch):
    monkeypatch.setattr(links, "MAX_WINDOWS", 2)
    windows = Windows(link(prompt="{{ window | length }}", window=Window(1e9, 5)), lambda: 0.0)
    seen = [windows.consider(Reading(topic, {}, 0.0)).prompt for topic in "aababcbca"]
    assert seen == ["0", "1", "0", "2", "1", "0", "2", "1", "0"]


@pytest.mark.parametrize(
    ("payload", "value"),
    [(b'\xef\xbb\xbf{"t": 1}', {"t": 1}), (b'{"t": 1}\0', {"t": 1}), (b"21.5\0\0", {"value": 21.5})],
)
def test_a_byte_order_mark_and_the_end_of_a_c_string_are_no_part_of_a_reading(payload, value):
    assert read("t", payload, 0.0).value == value


def test_an_empty_payload_is_called_so():
    """Whoever clears a retained topic sends one."""
    with pytest.raises(MessageError, match="the payload is empty"):
        read("t", b"", 0.0)


def test_bare_values_are_readings_and_lists_are_not():
    assert read("t", b"21.5", 0.0).value == {"value": 21.5}
    assert read("t", b'{"a": 1}', 0.0).value == {"a": 1}
    for payload in (b"[1]", b"null", b"", b"ON", b"\xff", b'{"a": NaN}'):
        with pytest.raises(MessageError):
            read("t", payload, 0.0)


def hot(plant, **settings):
    """A link of its own plant: the tests share one broker."""
    topics = {"source": f"plant/{plant}/+", "to": f"plant/{plant}/{{{{ topic[2] }}}}/advice"}
    return link(**({"prompt": "{{ t }} degrees", "when": "t > 80"} | topics | settings))


def test_a_reading_wakes_the_model_and_its_answer_goes_out(on_air):
    device = on_air(links=(hot(1),))
    device.client.subscribe("plant/1/+/advice")
    device.client.publish("plant/1/b1", {"t": 20})
    device.client.publish("plant/1/b1", {"t": 95})
    seen = device.client.until(lambda topic, value: topic == "plant/1/b1/advice")
    answer = seen[-1][1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer.pop("time"))
    about = {"link": "hot", "device": device.topics.device, "topic": "plant/1/b1"}
    assert answer == {"text": "95 DEGREES", "reading": {"t": 95}} | about
    assert len(device.model.asked) == 1


def test_a_link_is_answered_by_the_model_that_it_names(on_air):
    scripts = {"small": ScriptedModel(["small"]), "large": ScriptedModel(["large"])}
    models = (ModelSettings("small"), ModelSettings("large"))
    device = on_air(models=models, scripts=scripts, links=(hot(3), hot(3, name="why", model="large")))
    device.client.subscribe("plant/3/+/advice")
    device.client.publish("plant/3/b1", {"t": 95})
    answers = [device.client.until(lambda t, v: t.endswith("/advice"))[-1][1] for _ in range(2)]
    assert {a["link"]: a["text"] for a in answers} == {"hot": "small", "why": "large"}


def test_overlapping_links_each_wake_once(on_air):
    device = on_air(links=(hot(2), hot(2, name="also", source="plant/2/b1"), hot(2, name="same")))
    device.client.subscribe("plant/2/+/advice", "plant/2/end")
    device.client.publish("plant/2/b1", {"t": 95})
    woken = [device.client.until(lambda t, v: t.endswith("/advice"))[-1][1]["link"] for _ in range(3)]
    assert sorted(woken) == ["also", "hot", "same"]
    device.ask(prompt="the end")
    device.client.until(lambda t, v: v.get("text") == "THE END")
    assert len(device.model.asked) == 4


@pytest.mark.parametrize(
    ("overload", "answered"), [("newest", [90, 93]), ("oldest", [90, 91]), ("every", [90, 91, 92, 93])]
)
def test_overload_decides_which_reading_waits(on_air, overload, answered):
    number = 10 + len(answered) + len(overload)
    device = on_air(ScriptedModel(["x"], gated=True), links=(hot(number, overload=overload),))
    device.client.subscribe(f"plant/{number}/+/advice")
    device.client.publish(f"plant/{number}/b", {"t": 90})
    device.client.until(lambda topic, value: value.get("state") == "busy")
    for t in (91, 92, 93):
        device.client.publish(f"plant/{number}/b", {"t": t})
    device.ask(prompt="the end", accept=True)  # behind the readings, in one line with them
    device.client.until(lambda topic, value: value.get("accepted"))  # so all of them wait now
    for _ in range(20):
        device.model.gate.release()
    seen = device.client.until(lambda topic, value: value.get("done"))
    assert sorted(v["reading"]["t"] for t, v in seen if t.endswith("/advice")) == answered
    gave_way = 4 - len(answered)
    assert links_health(device) == ({"hot": {"overload": gave_way}} if gave_way else None)


def test_each_topic_has_its_own_slot(on_air):
    device = on_air(ScriptedModel(["x"], gated=True), links=(hot(30),))
    device.client.subscribe("plant/30/+/advice")
    device.client.publish("plant/30/a", {"t": 90})
    device.client.until(lambda topic, value: value.get("state") == "busy")
    device.client.publish("plant/30/a", {"t": 91})
    device.client.publish("plant/30/b", {"t": 92})
    device.ask(prompt="the end", accept=True)
    device.client.until(lambda topic, value: value.get("accepted"))
    for _ in range(20):
        device.model.gate.release()
    got = [device.client.until(lambda t, v: t.endswith("/advice"))[-1][1]["reading"]["t"] for _ in range(3)]
    assert got == [90, 91, 92]


def test_a_reading_that_cannot_be_read_is_an_event_and_stops_nothing(on_air):
    device = on_air(links=(hot(40),))
    device.client.subscribe("plant/40/+/advice")
    for payload in (b"not json", b"\xff\xff", b"[]"):
        device.client.publish("plant/40/b", payload)
    device.client.publish("plant/40/b", {"temperature": 3})
    device.client.publish("plant/40/b", {"t": 99})
    device.client.until(lambda topic, value: topic == "plant/40/b/advice")
    assert links_health(device) == {"hot": {"unparsable_reading": 3, "unusable_reading": 1}}


def test_events_say_which_link_and_topic_and_do_not_flood(on_air):
    device = on_air(links=(hot(50),))
    for _ in range(5):
        device.client.publish("plant/50/b", b"not json")
    event = device.client.until(lambda topic, value: topic == device.topics.event)[-1][1]
    assert event["event"] == "unparsable_reading"
    assert (event["link"], event["topic"], event["count"]) == ("hot", "plant/50/b", 1)
    assert device.client.silent()


def test_an_answer_that_comes_too_late_is_an_event(on_air):
    device = on_air(ScriptedModel(["x"], gated=True), links=(hot(60, deadline_s=0.1),))
    device.client.subscribe("plant/60/+/advice")
    device.client.publish("plant/60/b", {"t": 99})
    seen = device.client.until(lambda topic, value: topic == device.topics.event)
    assert seen[-1][1]["event"] == "deadline"
    device.client.until(lambda topic, value: value.get("state") == "ready")
    assert device.client.silent()


def test_a_stored_reading_does_not_wake_the_model(on_air, peer):
    peer().publish("plant/70/b", {"t": 99}, retain=True)
    device = on_air(links=(hot(70),))
    device.ask(prompt="the end")
    device.client.until(lambda t, v: v.get("text") == "THE END")
    assert len(device.model.asked) == 1


@pytest.mark.parametrize(
    ("how", "payload", "value"),
    [
        ("auto", b"ON", {"value": "ON"}),
        ("auto", b"open\n", {"value": "open"}),
        ("auto", b"1500 ppm", {"value": 1500, "unit": "ppm"}),
        ("auto", "21.5 °C".encode(), {"value": 21.5, "unit": "°C"}),
        ("auto", b"21.5 \xb0C", {"value": 21.5, "unit": "°C"}),  # Latin-1
        ("auto", b'{"t": 3}', {"t": 3}),
        ("auto", b"true", {"value": True}),
        ("auto", b'"ON"', {"value": "ON"}),
        ("auto", b'"21.5 C"', {"value": 21.5, "unit": "C"}),
        ("auto", b"2026-01-31", {"value": "2026-01-31"}),
        ("auto", b"10.0.0.1", {"value": "10.0.0.1"}),
        ("auto", b"12:30", {"value": "12:30"}),
        ("auto", b"NaN", {"value": "NaN"}),
        ("number", b"21,5", {"value": 21.5}),
        ("number", b"+.5 %", {"value": 0.5, "unit": "%"}),
        ("number", b"-3e2", {"value": -300.0}),
        ("number", b" 7 ", {"value": 7}),
        ("number", b"100%", {"value": 100, "unit": "%"}),
        ("number", b"0,125", {"value": 0.125}),
        ("number", b"3.2 m3/h", {"value": 3.2, "unit": "m3/h"}),
        ("text", b'{"t": 3}', {"value": '{"t": 3}'}),
        ("text", b"21.5", {"value": "21.5"}),
        ("json", b"21.5", {"value": 21.5}),
    ],
)
def test_a_payload_is_read_as_its_link_says(how, payload, value):
    assert read("t", payload, 0.0, how).value == value


@pytest.mark.parametrize(
    ("how", "payload", "message"),
    [
        ("json", b"ON", "parse: auto"),
        ("json", b"1500 ppm", "parse: auto"),
        ("number", b"hot", "'hot' is no number; expected one such as 21.5, 1500 ppm"),
        ("number", b"1,500", "may be two numbers"),
        ("number", b"", "empty|no number"),
        ("number", b"1e999", "beyond the range"),
        ("auto", b'{"t": 3', "not JSON"),  # a damaged object is no text
        ("auto", b"\xff\xfe", "not UTF-8"),
        ("text", b"  ", "empty"),
    ],
)
def test_what_cannot_be_read_so_says_why(how, payload, message):
    with pytest.raises(MessageError, match=message):
        read("t", payload, 0.0, how)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore")))
def test_any_payload_is_a_reading_or_an_error_of_ours(payload):
    for how in ("json", "text", "number", "auto"):
        with contextlib.suppress(MessageError):
            json.dumps(read("t", payload, 0.0, how).value, allow_nan=False).encode()


@pytest.mark.parametrize("name", ["items", "keys", "values", "get", "pop", "copy", "update", "title", "format"])
def test_a_field_is_a_field_whatever_python_calls_its_methods(name):
    """`{{ order.items }}` was a method of dict."""
    fields = {"order": {name: 3}, name: 4}
    prompt = "{{ order.%s }} {{ reading.%s }} {{ reading['%s'] }} {{ %s }}" % ((name,) * 4)
    assert consider(fields, prompt=prompt).prompt == "3 4 4 4"


def test_a_method_in_the_place_of_a_field_is_an_error_and_no_prompt():
    with pytest.raises(LinkError, match="'items' is no field of the reading"):
        consider({"order": {"a": 1}}, prompt="{{ order.items }}")
    assert (
        consider({"order": {"a": 1}}, prompt="{% for k, v in order.items() %}{{ k }}={{ v }}{% endfor %}").prompt
        == "a=1"
    )


@pytest.mark.parametrize("sign", ["+", "-", "*", "/", "//", "%"])
def test_a_text_that_should_be_a_number_is_reported_in_words(sign):
    words = rf"'{re.escape(sign)}' needs two numbers, and has the text '21.5' and a number; write float"
    with pytest.raises(LinkError, match=words):
        consider({"t": "21.5"}, when=f"t {sign} 2 > 1")
    with pytest.raises(LinkError, match=words):
        consider({"t": "21.5"}, prompt=f"{{{{ t {sign} 2 }}}}")


def test_names_and_values_of_a_reading_stay_in_one_short_line_of_an_error():
    name = "a\nFAKE 12:00:00 all is well \x1b[2J" + "x" * 10_000
    for settings in ({"prompt": "{{ y }}"}, {"when": "y > 1"}):
        with pytest.raises(LinkError) as error:
            consider({name: 1, **{f"f{i}": i for i in range(1000)}}, **settings)
        assert len(str(error.value)) < 500
        assert str(error.value).isprintable()
    with pytest.raises(LinkError) as error:
        consider({"t": "hot\n\x1b[2J" * 1000}, when="t > 1")
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ x | rond(1) }}", "there is no filter 'rond'; did you mean 'round'?"),
        ("{% if x is evn %}a{% endif %}", "there is no test 'evn'; did you mean 'even'?"),  # else found by a reading
        ("{% for y in x if y | first | upper | zzz %}{{ y }}{% endfor %}", "there is no filter 'zzz'"),
        ("{% extends 'other' %}", "there are no other templates here that it could extend"),
        ("{% include 'other' %}", "there are no other templates here that it could include"),
        ("{% from 'other' import a %}", "there are no other templates here that it could import"),
        (r"{{ '\ud800' }}", r"this text has half a character, '\ud800' in it; write it without"),
        (r"{{ x | default('a' ~ 'b\udfff') }}", r"this text has half a character, '\udfff' in it; write it without"),
    ],
)
def test_what_a_template_asks_for_and_there_is_not_is_a_fault_of_the_file(template: str, why: str) -> None:
    """Not of the first reading, which would find it out every time."""
    with pytest.raises(ConfigurationError, match=re.escape(f"not a template: {why}")):
        check_template(template)


def test_templates_are_parsed_once_for_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    source, parsed = "boiler {{ topic[1] }} once {{ value }}", []
    real = links._texts.parse
    monkeypatch.setattr(links._texts, "parse", lambda text: parsed.append(text) or real(text))
    asked = link(prompt=source, to="advice/{{ topic[1] }}")
    check_template(source)
    assert faults(asked) == [] == faults(asked)
    assert shape(asked) == "advice/+"
    assert parsed.count(source) == 1
