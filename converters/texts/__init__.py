"""The texts that calibration reads, and those that quality is measured on. See README.md beside this file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Literal

from device_runtime.engine.chat import Message, render_chat
from device_runtime.errors import ConfigurationError, StonechatError

__all__ = ["Conversation", "chat_renderer", "plain_chat", "read_conversations", "text_kinds"]

Conversation = Sequence[Message]


def text_kinds(
    which: Literal["calibration", "heldout"], render: Callable[[Conversation], str] | None = None
) -> dict[str, str]:
    """One text for each kind: `prose`, `documentation`, `chat`.

    Args:
        render: a conversation as the model is used to it, from its chat template; None for plain lines.
    """
    folder = resources.files("converters") / "texts" / which
    texts = {kind: (folder / f"{kind}.txt").read_text(encoding="utf-8") for kind in ("prose", "documentation")}
    conversations = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    return {**texts, "chat": "".join(map(render or plain_chat, conversations))}


def plain_chat(conversation: Conversation) -> str:
    """Lines that begin with who speaks."""
    return "".join(f"{message['role']}: {message['content']}\n" for message in conversation) + "\n"


def chat_renderer(template: str | None, special_tokens: Mapping[str, str]) -> Callable[[Conversation], str]:
    """What renders a conversation as a model is used to it; plain lines where its template cannot."""

    def render(conversation: Conversation) -> str:
        if template is None:
            return plain_chat(conversation)
        try:
            return render_chat(template, conversation, special_tokens, answer=False)
        except StonechatError:  # a template without a system role, for one
            return plain_chat(conversation)

    return render


def read_conversations(name: str, text: str) -> list[Conversation]:
    """Parse a JSON list of conversations, each a list of {"role": …, "content": …}.

    Raises:
        ConfigurationError: it is anything else; `name` is what the message calls it.
    """
    try:
        conversations = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name} is not JSON: {error}") from None
    if not isinstance(conversations, list):
        raise ConfigurationError(f"{name} holds a {type(conversations).__name__}; expected a list of conversations.")
    for i, conversation in enumerate(conversations):
        messages = conversation if isinstance(conversation, list) else [None]
        for message in messages:
            good = isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))
            if not good:
                raise ConfigurationError(
                    f'Conversation {i} of {name} is not a list of {{"role": "user", "content": "…"}}; '
                    f"found {str(message if message is not None else conversation)[:60]!r}."
                )
    return conversations
