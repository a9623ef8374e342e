"""What a task reads, and the prompt that is made of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.tasks.inputs import Feature, InputField, Inputs, written

TEMPERATURE = InputField("°C", -99.9, 999.9, 0.1, "clamp")
HEART = InputField("bpm", 1, 300, 1)
BOILER = Inputs(
    fields={"temp_c": TEMPERATURE, "bar": InputField("bar", 0, 99.99, 0.01)},
    window=3,
    features={"rise": Feature("temp_c - window[0].temp_c if window else null", -99.9, 99.9, 0.1)},
)
TEXT = Inputs(text=40)


def test_numbers_stand_at_a_fixed_width_with_their_features() -> None:
    prompt = BOILER.prompt({"temp_c": 84.96, "bar": 2, "window": [{"temp_c": 82}]})
    assert prompt.text == "temp_c +084.9 bar 02.00 rise +02.9\n"
    assert prompt.unfamiliar == () and prompt.readable


def test_a_number_is_cut_and_never_rounded_up_to_a_border() -> None:
    assert written("bar", 2.9999, InputField("bar", 0, 9.99, 0.01)) == "bar 2.99"
    assert written("temp_c", -0.01, TEMPERATURE) == "temp_c -000.1"


def test_rules_and_features_compute_with_what_the_model_reads() -> None:
    """With the digits that the prompt leaves out, one prompt had two truths: `flow > 60` of 60 and of 60.01."""
    window = [{"temp_c": 82.39, "state": 5}, {"temp_c": "83.19 °C"}]
    names = BOILER.names({"temp_c": 84.96, "bar": 2, "window": window})
    assert (names["temp_c"], names["bar"]) == (84.9, 2)
    assert names["window"] == [{"temp_c": 82.3, "state": 5}, {"temp_c": 83.1}]
    assert names["rise"] == pytest.approx(2.6)


def test_only_as_many_earlier_readings_count_as_the_task_says() -> None:
    window = [{"temp_c": float(t)} for t in (10, 50, 60, 70)]
    assert BOILER.names({"temp_c": 80, "bar": 1, "window": window})["rise"] == 30


def test_a_feature_of_readings_that_are_not_there_is_unknown() -> None:
    for earlier in ([], None, "x", [{}], [3]):
        assert BOILER.prompt({"temp_c": 80, "bar": 1, "window": earlier}).text.endswith(" rise ?\n")


def test_units_may_stand_beside_a_number_in_several_spellings() -> None:
    for value in (71.5, "71.5", "71.5 °C", "71.5C", "71.5 deg C", " 71.50 ° c "):
        assert BOILER.prompt({"temp_c": value, "bar": 1}).text.startswith("temp_c +071.5 ")


def test_another_unit_or_no_number_is_unfamiliar_and_not_guessed() -> None:
    for value in ("160 °F", "hot", None, True, float("nan"), [1]):
        prompt = BOILER.prompt({"temp_c": value, "bar": 1})
        assert not prompt.readable and "temp_c" in prompt.unfamiliar[0]


def test_a_field_that_is_missing_is_named() -> None:
    assert BOILER.prompt({"temp_c": 1}).unfamiliar == ("bar is not there; expected a number of bar",)


def test_beyond_the_trained_range_is_unfamiliar_unless_the_task_clamps() -> None:
    fields = Inputs(fields={"heart_bpm": HEART, "temp_c": TEMPERATURE})
    prompt = fields.prompt({"heart_bpm": 0, "temp_c": 1e9})
    assert prompt.unfamiliar == ("heart_bpm is 0; the model was trained for 1 to 300",)
    assert prompt.text == "heart_bpm 001 temp_c +999.9\n" and prompt.readable


def test_letter_case_and_spaces_of_a_text_do_not_reach_the_model() -> None:
    assert TEXT.prompt({"text": "  Kitchen   LIGHT\ton "}).text == "kitchen light on\n"


def test_a_text_that_is_too_long_or_empty_is_unfamiliar() -> None:
    assert TEXT.prompt({"text": "a" * 41}).unfamiliar and len(TEXT.prompt({"text": "a" * 41}).text) == 41
    for text in ("", "  ", None, 3):
        assert not TEXT.prompt({"text": text}).readable


def test_long_numbers_of_a_log_become_one_zero_and_short_ones_stay() -> None:
    log = Inputs(text=200, numbers="short")
    line = "2024-05-01T12:00:00Z host[4711]: disk 95% full at 10.1.2.3 after 0xdeadbeef"
    assert log.prompt({"text": line}).text == "0t0z host[0]: disk 95% full at 0 after 0\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("diskFull disk_full (disk:full)", "disk full disk full ( disk : full )"),
        ("OOMKilled OutOfMemoryError eth0 3ms", "oom killed out of memory error eth 0 3 ms"),
        ("ENOSPC: C:\\Temp 95%", "enospc : c : \\ temp 95 %"),
        ("10.1.2.3:80 0xdeadbeef a__b", "0 0 a b"),
        ("naïve Größe", "naïve größe"),
    ],
)
def test_words_that_are_written_together_are_read_apart_each_after_a_space(line: str, words: str) -> None:
    apart = Inputs(text=200, numbers="short", words="apart")
    assert apart.prompt({"text": line}).text == "".join(f" {word}" for word in words.split()) + "\n"


@given(st.text(max_size=40))
def test_a_text_whose_words_are_apart_has_no_more_of_it_to_take_apart(text: str) -> None:
    apart = Inputs(text=200, words="apart")
    once = apart.prompt({"text": text}).text
    assert apart.prompt({"text": once}).text == once or not once.strip()


@given(st.floats(-99.9, 999.9), st.sampled_from([0.1, 0.01, 0.5, 1.0, 5.0]))
def test_what_is_written_is_the_number_to_its_step(value: float, step: float) -> None:
    text = written("x", value, InputField(low=-99.9, high=999.9, step=step)).removeprefix("x ")
    assert value - step * 1.001 < float(text) <= value + 1e-9


@given(st.sampled_from([0.1, 0.01, 0.5, 1.0, 5.0]), st.sampled_from([-1, 0, 1]), st.booleans())
def test_both_ends_of_a_range_are_read_as_they_are_and_what_is_beyond_as_the_end(
    step: float, steps: int, top: bool
) -> None:
    field = InputField(low=-100, high=900, step=step, beyond="clamp")
    end = 900 if top else -100
    value = end + steps * step
    outside = value > 900 or value < -100
    read = written("x", value, field).removeprefix("x ")
    assert float(read) == pytest.approx(end if outside else value) and len(read) == len(written("x", 0, field)) - 2
    strange = Inputs(fields={"x": replace(field, beyond="unfamiliar")}).prompt({"x": value}).unfamiliar
    assert strange == ((f"x is {value}; the model was trained for -100 to 900",) if outside else ())


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.floats() | st.text(max_size=9)))
def test_any_reading_makes_a_prompt(reading: dict[str, object]) -> None:
    assert BOILER.prompt({"temp_c": 5, "bar": 1, **reading}).text.endswith("\n")
    assert TEXT.prompt(reading).text.endswith("\n")


def test_inputs_come_back_from_their_json() -> None:
    import json

    from device_runtime.fleet import yaml_schema
    from device_runtime.tasks.file import INPUTS

    for inputs in (BOILER, TEXT, Inputs(text=9, numbers="short"), Inputs(text=9, words="apart")):
        assert yaml_schema.loads(json.dumps(inputs.to_json()), INPUTS, file="x") == inputs
