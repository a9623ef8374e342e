"""The texts that come with stonechat: three kinds, and nothing that calibration reads is measured on."""

from __future__ import annotations

import json

import pytest

from converters.texts import chat_renderer, plain_chat, read_conversations, text_kinds
from device_runtime.errors import ConfigurationError

KINDS = ["prose", "documentation", "chat"]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def runs(text: str, length: int = 8) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_no_eight_words_in_a_row_are_in_both() -> None:
    """But for the system message that a model's template puts in front of every conversation."""
    usual = runs("system: You are a helpful AI assistant named SmolLM, trained by Hugging Face user:")
    calibration, heldout = (" \n".join(text_kinds(which).values()) for which in ("calibration", "heldout"))
    assert runs(calibration) & runs(heldout) <= usual


@pytest.mark.parametrize("which", ["calibration", "heldout"])
def test_there_are_three_kinds_of_a_thousand_words_or_more(which: str) -> None:
    texts = text_kinds(which)  # type: ignore[arg-type]
    assert list(texts) == KINDS
    assert all(len(text.split()) > 1000 for text in texts.values())


def test_chat_is_rendered_with_the_models_own_template_and_without_an_open_answer() -> None:
    text = text_kinds("heldout", chat_renderer(CHATML, {}))["chat"]
    assert text.startswith("<|im_start|>system\n")
    assert text.count("<|im_start|>") == text.count("<|im_end|>") > 60
    assert text.endswith("<|im_end|>\n")


def test_a_template_that_refuses_a_conversation_gives_plain_lines() -> None:
    refusing = "{{ raise_exception('no') }}"
    conversation = [{"role": "user", "content": "hello"}]
    assert chat_renderer(refusing, {})(conversation) == plain_chat(conversation) == "user: hello\n\n"
    assert chat_renderer(None, {})(conversation) == "user: hello\n\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "chats.json is not JSON"),
        ("{}", "holds a dict; expected a list of conversations"),
        ('["hello"]', "Conversation 0 of chats.json is not a list"),
        ('[[], [{"role": "user"}]]', "Conversation 1 of chats.json"),
        ('[[{"role": "user", "content": 5}]]', "Conversation 0 of chats.json"),
        ("[" * 100_000, "chats.json is not JSON"),
    ],
)
def test_conversations_that_are_none_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        read_conversations("chats.json", text)


def test_conversations_come_back_as_they_are() -> None:
    conversations = [[{"role": "user", "content": "hello"}]]
    assert read_conversations("x", json.dumps(conversations)) == conversations
