"""Chat messages into the text that a model was trained on, by the bundle's own jinja2 template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

from device_runtime.errors import BundleError, ConfigurationError, StonechatError

__all__ = ["ROLES", "Message", "Role", "render_chat"]

Message = Mapping[str, str]  # {"role": "user", "content": "…"}
Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)


def render_chat(
    template: str | None, messages: Sequence[Message], special_tokens: Mapping[str, str], *, answer: bool = True
) -> str:
    """Render messages, followed by the opening of the assistant's answer.

    Args:
        template: jinja2 source; it runs in jinja2's sandbox, since a bundle may come from anywhere.
        special_tokens: `bos_token` and so on, as the template names them.
        answer: False leaves that opening out.

    Raises:
        ConfigurationError: a message is not of the form {"role": …, "content": …}, or the template refuses
            the messages (many want user and assistant to take turns).
        BundleError: the bundle has no template, or one that is broken or fails.
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
    from jinja2 import TemplateError
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> None:
        raise ConfigurationError(f"The model's chat template refuses these messages: {reason}")

    def now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    functions: dict[str, Any] = {"raise_exception": refuse, "strftime_now": now}
    environment.globals.update(functions)
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=answer, **special_tokens
        )
    except TemplateSyntaxError as error:
        raise BundleError(f"The bundle's chat template is not valid jinja2: {error}") from None
    except TemplateError as error:
        raise ConfigurationError(f"The model's chat template cannot render these messages: {error}") from None
    except StonechatError:
        raise
    except Exception as error:  # whatever the expressions in it do: divide by zero, recurse, add text to a number
        raise BundleError(f"The bundle's chat template fails: {type(error).__name__}: {error}") from None
