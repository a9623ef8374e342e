"""Links: a reading on one topic wakes the model, and its answer goes to another topic.

A `Link` is one entry of a fleet file. `Links` matches readings to links, keeps their windows and renders their
prompts. `when` is an expression of `expression.py`; prompts and topics are Jinja2 templates in its sandbox. An
undefined name is an error, not an empty string. They come from the operator's fleet file; readings come from anywhere
and are only ever values in them.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.expression import Expression, LinkError, UndefinedNameError, arithmetic
from device_runtime.mqtt.payload import MessageError, parse
from device_runtime.mqtt.topics import check_topic, matches
from device_runtime.mqtt.work import Overload

__all__ = ["Link", "LinkError", "Reading", "Wakeup", "Window", "Windows", "check_expression", "check_template", "read"]

MAX_WINDOWS = 1024  # topics whose earlier readings are kept
MAX_PROMPT_CHARACTERS = 32_768

# What a template can run into: it computes with values that anybody may send.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
    MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """How far back a prompt may look."""

    seconds: float = 3600.0
    keep: int = 20  # readings


@dataclass(frozen=True)
class Reading:
    """What a sensor said."""

    topic: str
    value: Mapping[str, Any]  # a bare number, string or boolean becomes {"value": …}
    received_s: float  # on the monotonic clock


@dataclass(frozen=True)
class Link:
    """From a topic filter, through a guard and a prompt, to a topic."""

    name: str
    source: str  # the topic filter, `from` in the file
    prompt: str  # a template
    to: str  # a template
    when: str | None = None  # an expression; None wakes the model on every reading
    window: Window | None = None  # None keeps no earlier readings
    answer: Mapping[str, Any] | None = None  # a JSON schema that the model's answer fits; None takes any text
    deadline_s: float = 30.0  # from the reading to the end of its answer
    overload: Overload = "newest"  # which reading of a topic waits while the model is busy
    model: str | None = None  # the name of the model that answers; None is the device's first


@dataclass(frozen=True)
class Wakeup:
    """A reading that passed its link's guard."""

    link: Link
    reading: Reading
    prompt: str
    to: str


class Windows:
    """The earlier readings of each topic of one link, and the link's decisions."""

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self.link = link
        self._clock = clock
        self._earlier: OrderedDict[str, deque[Reading]] = OrderedDict()
        self._when = Expression(link.when) if link.when else None
        self._prompt = _texts.from_string(link.prompt)
        self._to = _levels.from_string(link.to)

    def consider(self, reading: Reading) -> Wakeup | None:
        """A wakeup if `reading` passes the guard. The reading is an earlier one for those that follow.

        Raises:
            LinkError: the guard or a template fails on this reading.
        """
        names = {**reading.value, "reading": reading.value, "topic": reading.topic.split("/")}
        names["window"] = self._remember(reading)
        try:
            if self._when is not None and not self._when.value(names):
                return None
            prompt, to = self._prompt.render(names), check_topic(self._to.render(names))
        except (jinja2.UndefinedError, UndefinedNameError) as e:
            fields = ", ".join(sorted(reading.value)) or "no fields"
            raise LinkError(f"{e}; the reading has {fields}.") from None
        except LinkError:
            raise
        except ConfigurationError as e:
            raise LinkError(str(e)) from None
        except _TEMPLATE_ERRORS as e:
            raise LinkError(f"{type(e).__name__}: {e}") from None
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise LinkError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed.")
        if to.startswith(("stonechat/", "$")) or matches(self.link.source, to):
            raise LinkError(f"the answer would go to {to!r}, where it could wake this link or command a device.")
        return Wakeup(self.link, reading, prompt, to)

    def _remember(self, reading: Reading) -> list[Mapping[str, Any]]:
        window = self.link.window
        if window is None:
            return []
        earlier = self._earlier.setdefault(reading.topic, deque(maxlen=window.keep))
        self._earlier.move_to_end(reading.topic)
        if len(self._earlier) > MAX_WINDOWS:
            self._earlier.popitem(last=False)
        oldest_s = self._clock() - window.seconds
        values = [r.value for r in earlier if r.received_s >= oldest_s]
        earlier.append(reading)
        return values


def read(topic: str, payload: bytes, received_s: float) -> Reading:
    """Read a sensor's payload.

    Raises:
        MessageError: it is no JSON object and no bare number, string or boolean.
    """
    value = parse(payload)
    if isinstance(value, list) or value is None:
        raise MessageError("a reading must be a JSON object, or a bare number, string or boolean.")
    return Reading(topic, value if isinstance(value, dict) else {"value": value}, received_s)


def check_expression(source: str) -> str:
    """`source`, if it is an expression.

    Raises:
        ConfigurationError: it is not.
    """
    Expression(source)
    return source


def check_template(source: str) -> str:
    """`source`, if it is a Jinja2 template.

    Raises:
        ConfigurationError: it is not.
    """
    try:
        _texts.from_string(source)
    except jinja2.TemplateSyntaxError as e:
        raise ConfigurationError(f"not a template: {e.message}") from None
    return source


def _one_level(value: Any) -> Any:
    """A value that goes into a topic stays one level, or a reading could send its answer anywhere."""
    text = str(value)
    if not text or any(c in text for c in "/+#\0"):
        raise LinkError(f"{text[:64]!r} cannot be one level of a topic.")
    return value


class _Sandbox(SandboxedEnvironment):
    """Jinja2's sandbox, in which a text cannot be multiplied or be a format: a reading may hold `%999999999d`."""

    intercepted_binops = frozenset({"*", "%", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        return arithmetic(operator, left, right)


_texts = _Sandbox(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=False)
_levels = _Sandbox(undefined=jinja2.StrictUndefined, autoescape=False, finalize=_one_level)
