"""A chat template as a table of what comes before and after each role's words.

The template is rendered with a few conversations, the table is read off them, and then both are held against each other
on other conversations. A template that does more than that (looks at what messages say, numbers them, moves the system
message into the user's) does not compile and is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from device_runtime.engine.chat import Message, render_chat
from device_runtime.errors import ConfigurationError, StonechatError

__all__ = ["ChatRoles", "chat_roles"]

FORMAT = 1
_HEADER = struct.Struct("<4sIIBBH9I4I12x")
assert _HEADER.size == 80
_MOST_ENDS = 4
_NO_TOKEN = 0xFFFFFFFF
_ROLES = ("system", "user", "assistant")
_SAID = {"system": "Zqs7kX", "user": "Zqu5vW", "assistant": "Zqa3jY"}  # words that no template has
_TRIED = (
    "Hello.",
    "  two  spaces \n",
    "\ud55c\uad6d\u00e9 \U0001f642",
    "{{ braces }} <b> 'quotes' \"double\"",
    "\n\n1.\t2.\n",
    "x",
)


@dataclass(frozen=True)
class ChatRoles:
    """What a template writes, as text in which control tokens are spelled out."""

    begin: str  # before the first message, unless that is the system's
    opening: str  # of the assistant's answer
    before: Mapping[str, str]  # by role; a role that the template refuses is absent
    after: Mapping[str, str]
    trimmed: Collection[str]  # roles whose words lose the spaces at their ends

    def render(self, messages: Sequence[Message]) -> str:
        """The text that a board writes."""
        text = "" if messages[0]["role"] == "system" else self.begin
        for message in messages:
            role, said = message["role"], message["content"]
            text += self.before[role] + (said.strip() if role in self.trimmed else said) + self.after[role]
        return text + self.opening

    def pack(self, tokens: Mapping[str, int], ends: Sequence[int] = (), prefix: Sequence[int] = ()) -> bytes:
        """The section of a model image (device_runtime/micro/chat/chat.c).

        Args:
            tokens: control tokens by their spelling.
            ends: tokens that end an answer.
            prefix: tokens whose keys and values are in the image.

        Raises:
            ConfigurationError: more tokens end an answer than the table holds.
        """
        if len(ends) > _MOST_ENDS:
            raise _refuse(f"{len(ends)} tokens end an answer; at most {_MOST_ENDS} can")
        parts = [self.begin, self.opening]
        for role in _ROLES:
            parts += [self.before.get(role, ""), self.after.get(role, "")]
        programs = [_program(part, tokens) for part in parts]
        programs.append(b"".join(b"\xff" + struct.pack("<I", token) for token in prefix))
        starts, place = [], _HEADER.size
        for program in programs:
            starts.append(place)
            place += len(program)
        has = sum(1 << i for i, role in enumerate(_ROLES) if role in self.before)
        trims = sum(1 << i for i, role in enumerate(_ROLES) if role in self.trimmed)
        padding = [_NO_TOKEN] * (_MOST_ENDS - len(ends))
        return _HEADER.pack(b"SCCR", FORMAT, place, has, trims, 0, *starts, *ends, *padding) + b"".join(programs)


def chat_roles(template: str, special_tokens: Mapping[str, str]) -> ChatRoles:
    """Read a template's table off its renderings.

    Raises:
        ConfigurationError: the template does more than such a table can; the message says what.
    """

    def rendered(*roles: str, answer: bool = False) -> str:
        messages = [{"role": role, "content": _SAID[role]} for role in roles]
        try:
            return render_chat(template, messages, special_tokens, answer=answer)
        except StonechatError as error:
            raise _refuse(f"it refuses messages of {', '.join(roles)} ({error})") from None

    def cut(text: str, role: str) -> tuple[str, str]:
        before, said, after = text.partition(_SAID[role])
        if not said:
            raise _refuse(f"it leaves out what the {role} says")
        return before, after

    alone = rendered("user")
    start, after_user = cut(alone, "user")
    opening = _without_start(rendered("user", answer=True), alone, "the opening of an answer")
    talk = rendered("user", "assistant")
    middle, after_assistant = cut(cut(talk, "user")[1], "assistant")
    before_assistant = _without_start(middle, after_user, "what follows the user's words")
    again = cut(cut(rendered("user", "assistant", "user"), "user")[1], "assistant")[1]
    before_user = _without_start(cut(again, "user")[0], after_assistant, "what follows the assistant's words")
    if not start.endswith(before_user):
        raise _refuse("a first message of the user begins in another way than a later one")
    before, after = (
        {"user": before_user, "assistant": before_assistant},
        {"user": after_user, "assistant": after_assistant},
    )
    try:
        before["system"], rest = cut(rendered("system", "user"), "system")
        middle = cut(rest, "user")[0]
        if not middle.endswith(before_user):
            raise _refuse("it writes the system message into the user's")
        after["system"] = middle.removesuffix(before_user)
    except ConfigurationError:
        before.pop("system", None)
    trimmed = [role for role in before if _trims(template, special_tokens, role)]
    roles = ChatRoles(start.removesuffix(before_user), opening, before, after, trimmed)
    _hold_against(roles, template, special_tokens)
    return roles


def _trims(template: str, special_tokens: Mapping[str, str], role: str) -> bool:
    messages = [{"role": "user", "content": "x"}] if role == "assistant" else []
    messages += [{"role": role, "content": f"\t\t{_SAID[role]}\t\t"}]
    messages += [{"role": "user", "content": "x"}] if role == "system" else []
    return f"\t\t{_SAID[role]}\t\t" not in render_chat(template, messages, special_tokens, answer=False)


def _hold_against(roles: ChatRoles, template: str, special_tokens: Mapping[str, str]) -> None:
    """Render other conversations with both."""
    for length in range(1, 6):
        for lead in ([], ["system"] if "system" in roles.before else []):
            turns = [*lead, *(("user", "assistant")[i % 2] for i in range(length))]
            for shift in range(len(_TRIED)):
                messages = [
                    {"role": role, "content": _TRIED[(i * 5 + shift) % len(_TRIED)]} for i, role in enumerate(turns)
                ]
                try:
                    wanted = render_chat(template, messages, special_tokens)
                except StonechatError as error:
                    raise _refuse(f"it refuses messages of {', '.join(turns)} ({error})") from None
                if roles.render(messages) != wanted:
                    raise _refuse(f"for {messages} it writes {wanted!r}, the table {roles.render(messages)!r}")


def _program(text: str, tokens: Mapping[str, int]) -> bytes:
    names = sorted(filter(None, tokens), key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
    return b"".join(b"\xff" + struct.pack("<I", tokens[p]) if p in tokens else p.encode() for p in parts)


def _without_start(text: str, start: str, what: str) -> str:
    if not text.startswith(start):
        raise _refuse(f"{what} depends on whether more messages follow")
    return text.removeprefix(start)


def _refuse(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The chat template does not become a table of roles for a board: {why[:600]}. "
        "Give plain prompts there, or use a checkpoint with a simpler template."
    )
