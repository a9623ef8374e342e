"""Links: a reading on one topic wakes the model, and its answer goes to another topic.

A `Link` is one entry of a fleet file. `Links` matches readings to links, keeps their windows and renders their
prompts. `when` is an expression of `expression.py`; prompts and topics are Jinja2 templates in its sandbox. An
undefined name is an error, not an empty string. They come from the operator's fleet file; readings come from anywhere
and are only ever values in them.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.sandbox import SandboxedEnvironment

from device_runtime.brain.redaction import Redactor
from device_runtime.errors import ConfigurationError
from device_runtime.fleet.expression import Expression, LinkError, UndefinedNameError, arithmetic, in_words
from device_runtime.fleet.payload import Parse, read_payload
from device_runtime.fleet.policies.escalation import Escalation
from device_runtime.fleet.questions import Decider, LinkExample, Nothing, Question, Questions, Unsure, rendered
from device_runtime.mqtt.topics import check_topic, matches
from device_runtime.records.printable import half_character, shown

__all__ = [
    "Asking", "Link", "LinkError", "Overload", "Reading", "Wakeup", "Window", "Windows", "asking_of",
    "check_expression", "check_template", "looks_back", "parsed", "read", "shape", "variables_of",
]  # fmt: skip

Overload = Literal["newest", "oldest", "every"]

MAX_WINDOWS = 1024  # topics whose earlier readings are kept
MAX_WINDOW_BYTES = 8 * 2**20  # of memory that a link's earlier readings take; all links of a device share
MAX_WINDOWS_BYTES = 64 * 2**20  # this
MAX_SENT_BYTES = 16_384  # of the earlier readings that go out with an answer
MAX_PROMPT_CHARACTERS = 32_768
MAX_ALTERNATIVES = 64  # that the conditions in a link's `to` may make

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
    payload: bytes = b""  # as it came


@dataclass(frozen=True)
class Link:
    """From a topic filter, through a guard and a prompt, to a topic."""

    name: str
    source: str  # the topic filter, `from` in the file
    prompt: str  # a template
    to: str  # a template
    when: str | None = None  # an expression; None wakes the model on every reading
    window: Window | None = None  # None keeps no earlier readings
    answer: Mapping[str, Any] | None = None  # a JSON schema; None is that of a bundle trained for a task, else any text
    deadline_s: float = 30.0  # from the reading to the end of its answer
    overload: Overload = "newest"  # which reading of a topic waits while the model is busy
    model: str | None = None  # the name of the model that answers; None: the one that the router finds, or the first
    parse: Parse = "json"  # how a payload is read
    system: str | None = None  # the model's instruction for this link; None is the model's own
    examples: tuple[LinkExample, ...] = ()  # shown to the model as turns of a conversation
    decide: Mapping[str, str] = field(default_factory=dict)  # fields of the answer that expressions give
    unsure: Unsure | None = None  # what becomes of an answer of which the model is not sure; None: nothing
    escalate: Escalation | None = None  # where its questions go on to; None: where the device's do, if they do
    answer_of_model: bool = False  # `answer` is that of the bundle that answers, and changes with it

    def may_ask(self, models: Sequence[str], *, routed: bool) -> tuple[str, ...]:
        """Which models its readings may be for: the one that it names, else the first; with a router each of them.

        Args:
            models: of the device that serves it, by name.
            routed: whether the device has a router.
        """
        if self.model is not None:
            return (self.model,)
        return tuple(models) if routed else tuple(models[:1])

    def answered_with(self, schema: Mapping[str, Any] | None) -> Link:
        """The same with the schema of the bundle that answers it, where it has none of its own."""
        return replace(self, answer=schema) if self.answer_of_model and schema != self.answer else self


@dataclass(frozen=True)
class Wakeup:
    """A reading that passed its link's guard."""

    link: Link
    reading: Reading
    prompt: str
    to: str
    question: Question
    decided: Mapping[str, Any] = field(default_factory=dict)  # fields of the answer that are known
    outside: Question | None = None  # the question as it may leave the device; None: as it is
    cannot_leave: str = ""  # why there is no such question
    secrets: Mapping[str, str] = field(default_factory=dict)  # texts to withhold, with what takes the place of each
    kept: Question | None = None  # the question as it may be in a record; None: as it is
    cannot_keep: str = ""  # why there is no such question
    window: bytes | None = (
        None  # the earlier readings that the question was made of, as JSON; None: of none, or too many
    )

    def of(self, link: Link) -> Wakeup:
        """The same, where another bundle answers the link with another schema. Nothing is decided in such a link."""
        if link.answer == self.link.answer:
            return self
        outside = None if self.outside is None else replace(self.outside, schema=link.answer)
        kept = None if self.kept is None else replace(self.kept, schema=link.answer)
        question = replace(self.question, schema=link.answer)
        return replace(self, link=link, question=question, outside=outside, kept=kept)


class Windows:
    """The earlier readings of each topic of one link, and the link's decisions."""

    def __init__(
        self,
        link: Link,
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int = MAX_WINDOW_BYTES,
        redactor: Redactor | None = None,
        kept_redactor: Redactor | None = None,
    ) -> None:
        """Prepare.

        Args:
            max_bytes: the memory that earlier readings may take.
            redactor: makes a second question, without what must not leave the device.
            kept_redactor: makes a third one, without what must not be in a record.
        """
        self.link = link
        self._clock, self._max_bytes = clock, max_bytes
        # Readings and their size in memory; the topic that was silent longest is first.
        self._earlier: OrderedDict[str, deque[tuple[Reading, int]]] = OrderedDict()
        self._bytes = 0  # of all of them
        self._when = Expression(link.when) if link.when else None
        self._prompt = _texts.from_string(link.prompt)
        self._to = _levels.from_string(link.to)
        self._decider = Decider(link)
        self._looks_back = looks_back(link)
        self._questions = Questions(link, self._prompt, self._decider)
        self._redactor = redactor or None
        self._kept_redactor = kept_redactor or None
        self._redacted = _outside.from_string(link.prompt)
        self._without_it = {
            each: Questions(link, self._redacted, self._decider, each) for each in (redactor, kept_redactor) if each
        }

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
            decided = self._decider.decided(names)
            names["decided"] = decided
            prompt, to = rendered(self._prompt, names), check_topic(self._to.render(names))
        except (jinja2.UndefinedError, UndefinedNameError) as e:
            raise LinkError(f"{shown(e, 200)}; the reading has {_fields_of(reading.value)}.") from None
        except LinkError:
            raise
        except ConfigurationError as e:
            raise LinkError(shown(e, 500)) from None
        except _TEMPLATE_ERRORS as e:
            raise LinkError(in_words(e)) from None
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise LinkError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed.")
        if to.startswith(("stonechat/", "$")) or matches(self.link.source, to):
            raise LinkError(
                f"the answer would go to {shown(repr(to), 200)}, where it could wake this link or command a device."
            )
        question = self._questions.about(prompt, decided)
        window = _as_sent(names["window"]) if self._looks_back else None
        wakeup = Wakeup(self.link, reading, prompt, to, question, decided, window=window)
        if self._redactor is not None:
            outside, reason = self._without(names, self._redactor)
            wakeup = replace(wakeup, outside=outside, cannot_leave=reason, secrets=self._redactor.secrets(names))
        if self._kept_redactor is not None:
            kept, reason = self._without(names, self._kept_redactor)
            secrets = {**wakeup.secrets, **self._kept_redactor.secrets(names)}
            wakeup = replace(wakeup, kept=kept, cannot_keep=reason, secrets=secrets)
        return wakeup

    def _without(self, names: Mapping[str, Any], redactor: Redactor) -> tuple[Question | None, str]:
        """The question without what is to be withheld, or why there is none."""
        try:
            known, secrets = redactor.names_of(names), redactor.secrets(names)
            prompt = redactor.text(rendered(self._redacted, known), secrets)
        except (LinkError, *_TEMPLATE_ERRORS) as e:
            return None, f"the prompt cannot be made without {', '.join(sorted(redactor.names))}: {in_words(e)}"
        question = self._without_it[redactor].about(prompt, known["decided"])
        before = [{**said, "content": redactor.text(said["content"], secrets)} for said in question.messages[:-1]]
        return replace(question, messages=(*before, question.messages[-1])), ""

    def _remember(self, reading: Reading) -> list[Mapping[str, Any]]:
        window = self.link.window
        if window is None:
            return []
        earlier = self._earlier.setdefault(reading.topic, deque())
        self._earlier.move_to_end(reading.topic)
        oldest_s = self._clock() - window.seconds
        values = [r.value for r, _ in earlier if r.received_s >= oldest_s]
        size = memory_bytes(reading.value)
        earlier.append((replace(reading, payload=b""), size))
        self._bytes += size
        if len(earlier) > window.keep:
            self._forget(reading.topic)
        while len(self._earlier) > MAX_WINDOWS or self._bytes > self._max_bytes:
            self._forget(next(iter(self._earlier)))
        return values

    def _forget(self, topic: str) -> None:
        """Its oldest reading."""
        self._bytes -= self._earlier[topic].popleft()[1]
        if not self._earlier[topic]:
            del self._earlier[topic]


def looks_back(link: Link) -> bool:
    """Whether a link's question is made of earlier readings, too."""
    sources = [Expression(source).names for source in link.decide.values()]
    return link.window is not None and any("window" in names for names in (variables_of(link.prompt), *sources))


def _as_sent(window: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Earlier readings as they go out with an answer; None where they are too many."""
    sent = json.dumps(window, ensure_ascii=False, separators=(",", ":")).encode()
    return sent if len(sent) <= MAX_SENT_BYTES else None


@dataclass(frozen=True)
class Asking:
    """What a link asks about a reading, for what comes after its answer."""

    prompt: str  # as it is asked; empty where the reading lacks what is withheld, as that of a record does
    kept: str  # without what is withheld
    secrets: Mapping[str, str]  # texts to withhold, with what takes the place of each


def asking_of(link: Link, topic: str | None, value: Any, window: Sequence[Any], redactor: Redactor) -> Asking:
    """Make the prompt of a reading again.

    Args:
        topic: of the reading; None: the link's filter with `example` for what it leaves open.
        window: the earlier readings.

    Raises:
        LinkError: the reading has not what the prompt needs.
    """
    reading = _fields(value)
    levels = (topic or link.source.replace("+", "example").replace("#", "example")).split("/")
    names = {**reading, "reading": reading, "topic": levels, "window": [*map(_fields, window)], "decided": {}}
    try:
        names["decided"] = Decider(link).decided(names)
        secrets = redactor.secrets(names)
        prompt = kept = _rendered(link, names, redactor)
        if redactor:
            kept = redactor.text(rendered(_outside.from_string(link.prompt), redactor.names_of(names)), secrets)
    except LinkError:
        raise
    except _TEMPLATE_ERRORS as error:
        raise LinkError(f"the prompt of link {link.name!r} cannot be made: {in_words(error)}") from None
    if (length := max(len(prompt), len(kept))) > MAX_PROMPT_CHARACTERS:
        raise LinkError(f"the prompt has {length} characters; at most {MAX_PROMPT_CHARACTERS} are allowed.")
    return Asking(prompt, kept, secrets)


def _fields(value: Any) -> Mapping[str, Any]:
    """A reading's fields, where it is a bare value, too."""
    return value if isinstance(value, Mapping) else {"value": value}


def _rendered(link: Link, names: Mapping[str, Any], redactor: Redactor) -> str:
    """The prompt as the link makes it; empty where it needs a name that is withheld, and that a record's reading has
    not.

    Raises:
        jinja2.UndefinedError: it needs another name that the reading lacks.
    """
    try:
        return rendered(_texts.from_string(link.prompt), names)
    except jinja2.UndefinedError as error:
        if not any(f"'{name}'" in str(error) for name in redactor.names):
            raise
        return ""


def _fields_of(value: Mapping[str, Any]) -> str:
    """The names of a reading's fields, for an error: some of them, and nothing that a log would take for its own."""
    names = [shown(name, 40) for name in sorted(value)[:8]]
    more = f" and {len(value) - len(names)} more" if len(value) > len(names) else ""
    return ", ".join(names) + more if names else "no fields"


def read(topic: str, payload: bytes, received_s: float, how: Parse = "json") -> Reading:
    """Read a sensor's payload.

    Args:
        how: `json` takes a JSON object, or a bare number, string or boolean. `text` takes any text as it is. `number`
            takes a number, with its unit after it if there is one, and gives `value` and `unit`. `auto` takes JSON if
            it is JSON, else a number, else text.

    Sensors are not held to the last byte: a byte order mark before the payload and the NUL that ends a string of C are
    left out, as RFC 8259, section 8.1, allows.

    Raises:
        MessageError: it is nothing of the kind.
    """
    return Reading(topic, read_payload(payload, how), received_s, payload)


def memory_bytes(value: Any) -> int:
    """What a parsed JSON value, or a message made of it, takes in memory, at most: small numbers and repeated names may
    be shared."""
    total, rest = 0, [value]
    while rest:
        item = rest.pop()
        total += sys.getsizeof(item)
        if isinstance(item, dict):
            rest += item.keys()
            rest += item.values()
        elif isinstance(item, list | tuple):
            rest += item
        elif is_dataclass(item):
            rest += vars(item).values()
    return total


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
        variables_of(source)
    except jinja2.TemplateSyntaxError as e:
        raise ConfigurationError(f"not a template: {e.message}") from None
    return source


@lru_cache(maxsize=2048)  # each pass over a fleet file asks again
def parsed(source: str) -> jinja2.nodes.Template:
    """A template's syntax tree."""
    return _texts.parse(source)


@lru_cache(maxsize=2048)
def variables_of(source: str) -> frozenset[str]:
    """The variables that a template reads.

    Raises:
        jinja2.TemplateSyntaxError: it is no template, or needs what there is not.
    """
    _require_known(parsed(source))
    return frozenset(jinja2.meta.find_undeclared_variables(parsed(source)))


def _require_known(tree: jinja2.nodes.Template) -> None:
    """Jinja2 itself finds an unknown name inside of `if` when a reading comes, and a missing template as well."""
    for node in tree.find_all((jinja2.nodes.Filter, jinja2.nodes.Test)):
        kind, known = ("filter", _texts.filters) if isinstance(node, jinja2.nodes.Filter) else ("test", _texts.tests)
        if node.name not in known:
            hint = "".join(f"; did you mean {near!r}?" for near in get_close_matches(node.name, known, n=1))
            raise jinja2.TemplateSyntaxError(f"there is no {kind} {node.name!r}{hint}", node.lineno)
    for text in tree.find_all(jinja2.nodes.Const):
        if isinstance(text.value, str) and (half := half_character(text.value)):
            what = f"this text has half a character, {half!r} in it; write it without"
            raise jinja2.TemplateSyntaxError(what, text.lineno)
    others = (jinja2.nodes.Extends, jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport)
    for other in tree.find_all(others):
        name = {"FromImport": "import", "Extends": "extend"}.get(type(other).__name__, type(other).__name__.lower())
        raise jinja2.TemplateSyntaxError(f"there are no other templates here that it could {name}", other.lineno)


def shape(link: Link) -> str | None:
    """Where a link's answers go, as a topic filter: `+` is what a reading decides. None if it is unknown."""
    texts = _alternatives(parsed(link.to).body)
    if texts is None:
        return None
    ways = [["+" if "\0" in level else level for level in text.split("/")] for text in texts]
    if len({len(levels) for levels in ways}) != 1:
        return None
    return "/".join(levels[0] if len(set(levels)) == 1 else "+" for levels in zip(*ways, strict=True))


def _alternatives(body: Sequence[jinja2.nodes.Node]) -> list[str] | None:
    """What a template can become, NUL for what is filled in; None if it has other statements than `if`."""
    texts = [""]
    for node in body:
        if isinstance(node, jinja2.nodes.Output):
            added = ["".join(part.data if isinstance(part, jinja2.nodes.TemplateData) else "\0" for part in node.nodes)]
        elif isinstance(node, jinja2.nodes.If):
            branches = [node.body, *(branch.body for branch in node.elif_), node.else_]
            ways = [_alternatives(branch) for branch in branches]
            if any(way is None for way in ways):
                return None
            added = [text for way in ways for text in way or []]
        else:
            return None
        texts = list(dict.fromkeys(text + more for text in texts for more in added))
        if len(texts) > MAX_ALTERNATIVES:
            return None
    return texts


def _one_level(value: Any) -> Any:
    """A value that goes into a topic stays one level, or a reading could send its answer anywhere."""
    text = str(_no_method(value))
    if not text or any(c in text for c in "/+#\0"):
        raise LinkError(f"{text[:64]!r} cannot be one level of a topic.")
    return value


class _Sandbox(SandboxedEnvironment):
    """Jinja2's sandbox, in which a field is a field and a text cannot be multiplied or be a format.

    A reading may have a field called `items`, and may hold `%999999999d`.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        return arithmetic(operator, left, right)


def _no_method(value: Any) -> Any:
    """`{{ order.items }}` of a reading without the field `items` would print a method of Python's."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise LinkError(f"{getattr(value, '__name__', 'this')!r} is no field of the reading, but a function.")
    return value


_texts = _Sandbox(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=False, finalize=_no_method)
_outside = _Sandbox(undefined=Nothing, autoescape=False, keep_trailing_newline=False, finalize=_no_method)
_levels = _Sandbox(undefined=jinja2.StrictUndefined, autoescape=False, finalize=_one_level)
