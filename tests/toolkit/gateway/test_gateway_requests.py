"""What Home Assistant, Open WebUI and Node-RED send, and what is refused: bodies as they go over the wire."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import RefusedError
from toolkit.gateway.requests import chat, completion, embeddings, parse_body

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "turn_on", "parameters": {"type": "object", "properties": {}}}}

# Extended OpenAI Conversation for Home Assistant
HOME_ASSISTANT = {
    "model": "m", "messages": [{"role": "system", "content": "You control a home."}, *USER], "max_tokens": 150,
    "top_p": 1, "temperature": 0.5, "user": "01HZ", "tools": [TOOL], "tool_choice": "auto",
}  # fmt: skip
# Open WebUI, with a picture-less message in parts
OPEN_WEBUI = {
    "stream": True, "model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "stream_options": {"include_usage": True}, "chat_id": "c", "id": "i", "session_id": "s", "features": {"x": 1},
    "metadata": {}, "frequency_penalty": 0, "logit_bias": {},
}  # fmt: skip
# Node-RED: numbers come from JavaScript
NODE_RED = {"model": "m", "messages": USER, "temperature": 0.7, "max_tokens": 256.0, "n": 1, "presence_penalty": 0.4}


def test_home_assistant_gets_an_answer_without_tools_and_is_informed_of_it():
    asked = chat(HOME_ASSISTANT)
    assert [m["role"] for m in asked.request.messages] == ["system", "user"]
    assert (asked.request.max_new, asked.request.temperature) == (150, 0.5)
    assert asked.ignored == ("tools", "user")


def test_open_webui_streams():
    asked = chat(OPEN_WEBUI)
    assert asked.stream and asked.usage_in_stream
    assert asked.request.messages[0]["content"] == "hi"
    assert asked.ignored == ("chat_id", "features", "id", "session_id")


def test_node_red():
    asked = chat(NODE_RED)
    assert asked.request.max_new == 256 and not asked.stream
    assert asked.ignored == ("presence_penalty",)


def test_what_was_not_said_is_greedy_and_without_a_limit():
    request = chat({"model": "m", "messages": USER}).request
    assert (request.temperature, request.max_new, request.seed, request.stop, request.schema) == (
        0,
        None,
        None,
        (),
        None,
    )


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 9}, ("max_new", 9)),
        ({"stop": "x"}, ("stop", ("x",))),
        ({"stop": ["x", "y"]}, ("stop", ("x", "y"))),
        ({"seed": -1}, ("seed", 2**63 - 1)),
        ({"top_p": 0}, ("top_p", 1e-6)),
        ({"response_format": {"type": "text"}}, ("schema", None)),
        ({"response_format": {"type": "json_object", "schema": {"type": "null"}}}, ("schema", {"type": "null"})),
        ({"response_format": {"type": "json_object", "value": {"type": "null"}}}, ("schema", {"type": "null"})),
        ({"tools": [TOOL], "tool_choice": "none"}, ("max_new", None)),
        ({"logprobs": False, "stop": None, "temperature": None}, ("temperature", 0)),
    ],
)
def test_parameters_in_our_words(more, wanted):
    assert getattr(chat({"model": "m", "messages": USER, **more}).request, wanted[0]) == wanted[1]


def test_a_developer_is_the_system():
    assert chat({"model": "m", "messages": [{"role": "developer", "content": "s"}, *USER]}).request.messages[0] == {
        "role": "system",
        "content": "s",
    }


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"model": None}, "model", "/v1/models"),
        ({"messages": []}, "messages", "list"),
        ({"messages": ["hi"]}, "messages", "a text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "tool"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "image_url"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "tools"),
        ({"functions": [{}], "function_call": {"name": "f"}}, "function_call", "functions"),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs", "confidence"),
        ({"n": 2}, "n", "one answer"),
        ({"max_tokens": "9"}, "max_tokens", "whole number"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        ({"to": 3}, "to", "to must be a string"),
        ({"truncate": "yes"}, "truncate", "true or false"),
        ({"temperature": 99}, "temperature", "temperature"),
        ({"stop": [""]}, "stop", "empty"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens is 0; it must be from 1"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"response_format": {"type": "grammar"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "no schema"),
        ({"response_format": {"type": "json_object"}, "stop": "x"}, "stop", "stop"),
        ({"modalities": ["text", "audio"]}, "modalities", "texts"),
        ({"modalities": 3}, "modalities", "texts"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(change, param, word):
    with pytest.raises(RefusedError) as refused:
        chat({"model": "m", "messages": USER} | change)
    assert (refused.value.param, refused.value.status) == (param, 400)
    assert word in str(refused.value)


@pytest.mark.parametrize("body", [{"input": []}, {"input": [1, 2]}, {"input": [[1]]}, {"input": ""}, {"input": None}])
def test_vectors_are_of_texts(body):
    with pytest.raises(RefusedError, match="expected a text") as refused:
        embeddings({"model": "m", **body})
    assert refused.value.param == "input"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty"),
        (b"[]", "the body is a list that is empty"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not UTF-8"),
        (b"1", "the body is a number"),
        (b"[" * 100_000, "the body nests deeper"),
        (b'{"temperature": NaN}', "the body holds NaN, which is not JSON"),
        (b'{"top_p": -Infinity}', "the body holds -Infinity, which is not JSON"),
        (b'{"temperature": 1e999}', "the body holds a number beyond the range"),
        (b'{"model": "a", "model": "b"}', "the body names the field 'model' twice"),
        (b'{"messages": [{"role": "user", "role": "system"}]}', "the body names the field 'role' twice"),
        (b'{"model": "\\ud800"}', "the body holds half of a surrogate pair"),
    ],
)
def test_a_body_that_is_no_object(body, said):
    with pytest.raises(RefusedError) as refused:
        parse_body(body)
    assert str(refused.value).startswith(said) and refused.value.reason == "invalid_json"


@pytest.mark.parametrize(
    ("messages", "found"), [(3, "a number"), ("hi", "a text"), ([], "a list that is empty"), (None, "missing")]
)
def test_messages_that_are_none_are_called_what_they_are(messages, found):
    with pytest.raises(RefusedError, match=rf"^messages is {found}; expected a list"):
        chat({"model": "m", "messages": messages})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["model", "messages", "prompt", "input", "stream", "stop", "seed", "n", "tools", "tool_choice", "logprobs",
         "response_format", "stream_options", "max_tokens", "temperature", "top_p", "modalities",
         "encoding_format"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), json_values, max_size=6))
def test_whatever_comes_is_read_or_refused(body):
    """No other exception leaves the readers: each would be a status of 500."""
    body = {"model": "m", "messages": USER, "prompt": "p", "input": "i"} | body
    for read in (chat, completion, embeddings):
        try:
            read(json.loads(json.dumps(body)))
        except RefusedError as error:
            assert str(error)
