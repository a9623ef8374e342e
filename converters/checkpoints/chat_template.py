"""The chat template of a checkpoint: which of several, and whether it does what a device will ask of it."""

from __future__ import annotations

from collections.abc import Mapping

from device_runtime.engine.chat import Message, render_chat
from device_runtime.errors import CheckpointError, ConfigurationError, StonechatError

__all__ = ["check_template", "choose_template", "without_thinking"]

_USER = {"role": "user", "content": "Is it hot?"}
_ASSISTANT = {"role": "assistant", "content": "Yes."}
_SYSTEM = {"role": "system", "content": "Be brief."}


def choose_template(named: Mapping[str, str], where: str) -> tuple[str | None, list[str]]:
    """The template for conversations out of several by name, and what there is to say of the others.

    Raises:
        CheckpointError: none is for conversations in general.
    """
    if not named:
        return None, []
    name = "default" if "default" in named else next(iter(named))
    others = sorted(named.keys() - {name})
    if name != "default" and others:
        raise CheckpointError(
            f"{where}: has chat templates for {', '.join(sorted(named))}, and none is called `default`. "
            "Put the one that your conversations need into chat_template.jinja beside config.json."
        )
    notes = [f"of its chat templates, {name!r} is used, and {', '.join(map(repr, others))} not"] if others else []
    return named[name], notes


def check_template(template: str | None, special_tokens: Mapping[str, str], where: str) -> list[str]:
    """What a user has to know of a template.

    Raises:
        CheckpointError: it cannot render one message of a user, which every request is at least.
    """
    if template is None:
        return []

    def refused(*messages: Message) -> str:
        try:
            text = render_chat(template, messages, special_tokens)
        except StonechatError as error:
            return str(error)
        return "" if all(message["content"] in text for message in messages) else "it leaves the message out"

    if reason := refused(_USER):
        raise CheckpointError(
            f"{where}: the chat template cannot render a user's message, so that every request would fail: {reason} "
            "Put a template that works into chat_template.jinja of the model's Hugging Face folder."
        )
    notes = []
    if refused(_SYSTEM, _USER):
        notes.append("its chat template takes no system message: leave out `system:`, --system and --prefix")
    if refused(_USER, _ASSISTANT, _USER):
        notes.append("its chat template takes one message only: a conversation cannot go on")
    return notes


def without_thinking(template: str | None, where: str) -> str:
    """The same template with `enable_thinking`, as Qwen3, SmolLM3 and others name it, set to false.

    Raises:
        ConfigurationError: there is no template, or one without such a switch.
    """
    if template is None or "enable_thinking" not in template:
        what = "has no chat template" if template is None else "its chat template has no enable_thinking to switch off"
        raise ConfigurationError(f"{where}: {what}: convert without --no-thinking.")
    return "{% set enable_thinking = false %}\n" + template  # the line break goes with the block: trim_blocks
