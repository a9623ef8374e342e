"""Chat messages into the text that a model was trained on, by the bundle's own jinja2 template.

What a message says is text, and never markup: where it spells a control token (`<|im_end|>`, say), it does not get
that token. So a rendering is a list of segments, which know whether the template wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

from device_runtime.engine.text.segments import Segment
from device_runtime.errors import BundleError, ConfigurationError, StonechatError
from device_runtime.machine.hashes import imports_without_openssl

__all__ = ["ROLES", "Message", "Role", "render_chat", "render_segments"]

Message = Mapping[str, str]  # {"role": "user", "content": "…"}
Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)

# Unicode's noncharacters at the ends of its planes replace characters of a message during the rendering.
_STAND_INS = [chr(plane << 16 | low) for plane in range(1, 17) for low in (0xFFFE, 0xFFFF)]
_STAND_IN = re.compile(f"[{''.join(_STAND_INS)}]")


def render_chat(
    template: str | None, messages: Sequence[Message], special_tokens: Mapping[str, str], *, answer: bool = True
) -> str:
    """Render messages, followed by the opening of the assistant's answer, as transformers' `apply_chat_template` does.

    Args:
        template: jinja2 source; it runs in a sandbox with limits, since a bundle may come from anywhere.
        special_tokens: `bos_token` and so on, as the template names them.
        answer: False leaves that opening out.

    Raises:
        ConfigurationError: a message is not of the form {"role": …, "content": …}, or the template refuses
            the messages (many want user and assistant to take turns).
        BundleError: the bundle has no template, or one that is broken, fails or does not end.
    """
    if template is None:
        raise BundleError("This bundle has no chat template: give it a plain prompt (`--raw`), not messages.")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ConfigurationError(f'Message {i} is {message!r}; expected {{"role": "user", "content": "…"}}.')
        if message["role"] not in ROLES:
            raise ConfigurationError(
                f"Message {i} has the role {message['role']!r}; it must be one of {', '.join(ROLES)}."
            )
    with imports_without_openssl():  # jinja2 has a use for SHA-1 that templates do not have
        from jinja2 import TemplateError
        from jinja2.exceptions import TemplateSyntaxError

        from device_runtime.engine.text.template_environment import render

    variables: dict[str, Any] = {"tools": None, "documents": None, **special_tokens}
    try:
        return render(template, variables | {"messages": list(messages), "add_generation_prompt": answer})
    except TemplateSyntaxError as error:
        raise BundleError(f"The bundle's chat template is not valid jinja2: {error}") from None
    except TemplateError as error:
        raise ConfigurationError(f"The model's chat template cannot render these messages: {error}"[:900]) from None
    except StonechatError:
        raise
    except Exception as error:  # whatever the expressions in it do: divide by zero, recurse, add text to a number
        reason = f"{type(error).__name__}: {error}"
        raise BundleError(f"The bundle's chat template fails: {reason[:500]}") from None


def render_segments(
    template: str | None,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    names: Collection[str],
    special: Collection[str] = (),
    *,
    answer: bool = True,
) -> list[Segment]:
    """Render messages, and keep apart what the template wrote and what the messages say.

    Args:
        names: spellings of control tokens.
        special: those of them that a message cannot have a use for. Others (`</think>`, say) count as markup in a
            message too if the template looks for them there.

    Raises:
        As `render_chat`.
    """

    def rendered(change: Callable[[str], str]) -> str:
        return render_chat(template, _changed(messages, change), special_tokens, answer=answer)

    def restored(text: str) -> str:
        return _STAND_IN.sub(lambda code: back.get(code[0], code[0]), text)

    plain = rendered(_clean)
    said = "".join(_texts(messages))
    names = [name for name in names if name]
    edges = {c for name in names for c in (name[0], name[-1]) if not c.isalnum() and not c.isspace()}
    codes = dict(zip(sorted(edges | {name[0] for name in names}), _STAND_INS, strict=False))
    back = {code: character for character, code in codes.items()}
    if not any(edge in said for edge in edges) and not any(name in said for name in names):
        return [Segment(plain, True)]
    # First, every character is replaced with which a name can begin or end: no name can come about then, not even out
    # of two messages side by side. A template that looks at what messages say may write something else for that. Then
    # whole names are replaced, and at last only the special ones, each by its first character.
    without_edges = str.maketrans({edge: codes[edge] for edge in edges if edge in codes})
    bare = [name for name in names if name[0] not in edges and name[-1] not in edges]
    for change in (
        lambda text: _hidden(_clean(text), bare, codes).translate(without_edges),
        lambda text: _hidden(_clean(text), names, codes),
        lambda text: _hidden(_clean(text), special, codes),
    ):
        try:
            marked = rendered(change)
        except StonechatError:
            continue
        if restored(marked) == plain:
            break
    else:
        marked = rendered(lambda text: _hidden(_clean(text), names, codes))
    parts = re.split(f"({_STAND_IN.pattern})", marked)
    return [Segment(back[part], False) if part in back else Segment(part, True) for part in parts if part]


def _clean(text: str) -> str:
    return _STAND_IN.sub("\ufffd", text)


def _hidden(text: str, names: Collection[str], codes: Mapping[str, str]) -> str:
    """`text` with another character at the beginning of each name in it."""
    if not names:
        return text
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(longest_first, lambda name: codes.get(name[0][0], "\ufffd") + name[0][1:], text)


def _changed(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """A copy of messages in which `change` was applied to every text but the roles."""
    if isinstance(value, str):
        return value if key == "role" else change(value)
    if isinstance(value, Mapping):
        return {name: _changed(item, change, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(item, change) for item in value]
    return value


def _texts(value: Any, key: str = "") -> list[str]:
    found: list[str] = []
    _changed(value, lambda text: found.append(text) or text, key)  # type: ignore[func-returns-value]
    return found
