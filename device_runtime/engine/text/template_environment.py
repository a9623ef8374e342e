"""The jinja2 environment of chat templates: the rules of transformers, in a sandbox, and with an end.

Templates are written for transformers (`utils/chat_template_utils.py` there), so its settings, functions and tags are
here: `{% generation %}`, `{% break %}`, `tojson` without escapes and sorting, `strftime_now`, `raise_exception`. A
template comes with a bundle from anywhere, and jinja2's sandbox limits neither time nor memory. So a rendering has a
budget: each turn of a loop, each call and each value that is made takes from it, by the length of the value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from device_runtime.errors import BundleError, ConfigurationError

__all__ = ["compiled", "render"]

BUDGET = 400_000  # steps of one rendering; a step is a turn of a loop, or _CHARACTERS characters
_CHARACTERS = 16
_LARGEST = 1_000_000  # characters or items of one value
_LARGEST_NUMBER_BITS = 4096
_WIDTH = re.compile(r"\d{6,}|\*")  # in a format: more characters than any text has, or as many as an argument says
_STEP, _CONCAT = "stonechat_step", "stonechat_concat"  # names of our own functions

_left: ContextVar[list[int]] = ContextVar("steps that are left")


def render(template: str, variables: dict[str, Any]) -> str:
    """The text of a template.

    Raises:
        jinja2.TemplateError: it is not valid, or fails.
        BundleError: it takes more steps than any conversation needs.
    """
    token = _left.set([BUDGET])
    try:
        return "".join(compiled(template).generate(**variables))
    finally:
        _left.reset(token)


def _charge(steps: int) -> None:
    left = _left.get([BUDGET])
    left[0] -= steps
    if left[0] < 0:
        raise BundleError(
            f"The chat template does not end within {BUDGET:,} steps; it loops or writes without end. "
            "Use another template, or shorten the messages."
        )


def _measured(value: Any) -> Any:
    """`value`, its length charged."""
    if isinstance(value, str | bytes | list | tuple | dict | set | range):
        if len(value) > _LARGEST and not isinstance(value, range):
            raise BundleError(
                f"The chat template makes a value of {len(value):,} characters; the limit is {_LARGEST:,}."
            )
        _charge(len(value) // _CHARACTERS)
    return value


def _step(cost: int = 1) -> str:
    _charge(cost)
    return ""


def _concat(*values: Any) -> str:
    return str(_measured("".join(map(str, values))))


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are charged."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(args, kwargs)
        return _measured(function(*args, **kwargs))

    return call


def _check_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _charge(1)
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise SecurityError(f"{value:.0e} is too large an argument for a chat template")
        if isinstance(value, str | list | tuple | dict | range):
            _charge(len(value) // _CHARACTERS)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: marks what the assistant says, for training; here it is just text."""

    tags = {"generation"}  # noqa: RUF012  # as in jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Counter(NodeTransformer):
    """Puts a step into every loop and macro, and makes `~` a call."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_step(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_step(node)

    def _with_step(self, node: Any) -> nodes.Node:
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        cost = nodes.Const(1 + written // _CHARACTERS)
        call = nodes.Call(nodes.Name(_STEP, "load"), [cost], [], None, None)
        node.body = [nodes.ExprStmt(call).set_lineno(node.lineno), *node.body]
        result: nodes.Node = node
        return result

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.Name(_CONCAT, "load"), node.nodes, [], None, None).set_lineno(node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or `'x' * 10 ** 9` would be computed before there is a budget
            extensions=[_Generation, LoopControlExtension],
            finalize=_measured,
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _guarded(function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_refuse, strftime_now=_now, namespace=_Namespace, **{_STEP: _step, _CONCAT: _concat}
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        counted: nodes.Template = _Counter().visit(tree)
        return counted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # as in jinja2
        if __obj is _step or __obj is _concat:  # jinja2 adds keywords of its own
            return __obj(*args)
        _check_arguments(args, kwargs)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            _charge(len(text) // _CHARACTERS)
            if getattr(__obj, "__name__", "") in ("format", "format_map") and _WIDTH.search(text):
                raise SecurityError("a format of so many characters")
            if getattr(__obj, "__name__", "") == "replace" and len(args) >= 2:
                _check_size(len(text) + text.count(str(args[0])) * len(str(args[1])))
            if getattr(__obj, "__name__", "") == "join" and args and isinstance(args[0], list | tuple):
                _check_size(len(text) * len(args[0]))
        return _measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
                    _check_size(len(one) * other)
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise SecurityError("a format of so many characters")
        if isinstance(left, int) and isinstance(right, int):
            factor = right if operator == "**" else 2
            if left.bit_length() * factor + right.bit_length() > 2 * _LARGEST_NUMBER_BITS:
                raise SecurityError("a number of so many digits")
        _charge(1)
        return _measured(super().call_binop(context, operator, left, right))


class _Namespace(Namespace):
    """jinja2's, which takes no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a namespace may have a `self`
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name such as {name!r}")


def _check_size(length: int) -> None:
    if length > _LARGEST:
        raise BundleError(f"The chat template makes a value of {length:,} characters; the limit is {_LARGEST:,}.")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(reason: str) -> None:
    raise ConfigurationError(f"The model's chat template refuses these messages: {str(reason)[:500]}")


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """The template, ready to render.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid.
    """
    return _Environment().from_string(template)
