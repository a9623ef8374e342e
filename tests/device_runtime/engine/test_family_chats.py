"""Six conversations with templates of every family's kind are rendered as transformers renders them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converters.checkpoints.chat_template import without_thinking
from device_runtime.engine.chat import render_chat
from device_runtime.errors import ConfigurationError

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "family_chats.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["expected"])
def test_conversations_are_rendered_as_transformers_renders_them(case: str) -> None:
    name, _, kind = case.partition(" / ")
    template, messages = GOLDEN["templates"][name], GOLDEN["conversations"][kind]
    if kind == "thinking off" and "enable_thinking" in template:
        template = without_thinking(template, "model")
    expected = GOLDEN["expected"][case]
    if "refused" in expected:
        with pytest.raises(ConfigurationError, match=expected["refused"]):
            render_chat(template, messages, GOLDEN["special"])
    else:
        assert render_chat(template, messages, GOLDEN["special"]) == expected["text"]


def test_templates_of_each_outcome_are_among_them() -> None:
    assert sum("refused" in outcome for outcome in GOLDEN["expected"].values()) >= 4
    on, off = (render_chat(t, GOLDEN["conversations"]["thinking off"], {}) for t in (
        GOLDEN["templates"]["qwen3"], without_thinking(GOLDEN["templates"]["qwen3"], "model")))  # fmt: skip
    assert off == on + "<think>\n\n</think>\n\n"


def test_thinking_cannot_be_switched_off_where_the_template_has_no_switch() -> None:
    with pytest.raises(ConfigurationError, match=r"has no enable_thinking .* convert without --no-thinking"):
        without_thinking(GOLDEN["templates"]["phi3"], "model")
    with pytest.raises(ConfigurationError, match="no chat template"):
        without_thinking(None, "model")
