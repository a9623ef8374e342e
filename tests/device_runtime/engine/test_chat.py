"""Messages become the text that the model was trained on, by a template nobody has to trust."""

from __future__ import annotations

import pytest

from device_runtime.engine.chat import render_chat
from device_runtime.errors import BundleError, ConfigurationError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def test_messages_are_followed_by_the_opening_of_an_answer() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert render_chat(CHATML, messages, {}) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_tokens_have_their_names() -> None:
    assert render_chat("{{ bos_token }}{{ messages[0].content }}", HELLO, {"bos_token": "<s>"}) == "<s>Hello"


def test_markup_in_a_message_is_neither_escaped_nor_run() -> None:
    content = "<b> {{ 7 * 7 }} {% raw %} & 'x'"
    assert content in render_chat(CHATML, [{"role": "user", "content": content}], {})


def test_blocks_leave_no_blank_lines_behind() -> None:
    """Templates are written for trim_blocks and lstrip_blocks, which transformers sets."""
    template = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    assert render_chat(template, HELLO, {}) == "Hello\n"


def test_strftime_now_is_there() -> None:
    assert len(render_chat("{{ strftime_now('%Y') }}", HELLO, {})) == 4


def test_a_bundle_without_a_template_says_what_to_do() -> None:
    with pytest.raises(BundleError, match="--raw"):
        render_chat(None, HELLO, {})


def test_the_reason_of_a_template_reaches_the_user() -> None:
    with pytest.raises(ConfigurationError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", HELLO, {})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": "x"}, "Message 1"),
        ({"role": "user"}, "expected"),
        ("user: x", "Message 1 is 'user: x'"),
        ({"role": "robot", "content": "x"}, "role 'robot'; it must be one of system, user, assistant, tool"),
    ],
)
def test_a_message_of_another_form_is_named(message: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        render_chat(CHATML, [*HELLO, message], {})  # type: ignore[list-item]


def test_a_broken_template_is_the_bundles_fault() -> None:
    with pytest.raises(BundleError, match="not valid jinja2"):
        render_chat("{% if %}", HELLO, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ undefined.x }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages | map('nofilter') | list }}",
        "{{ range(10 ** 9) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * (10 ** 30) }}",
        "{{ strftime_now(3) }}",
        "{% include 'x' %}",
    ],
)
def test_a_hostile_or_faulty_template_does_no_harm(template: str) -> None:
    with pytest.raises((ConfigurationError, BundleError)) as caught:
        render_chat(template, HELLO, {})
    assert len(str(caught.value)) < 1000
