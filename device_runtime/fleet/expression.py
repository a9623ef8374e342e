"""The language of `when`: one expression over a reading, that cannot do anything but compute a value.

Its syntax is Python's; it is evaluated by simpleeval, which walks the syntax tree and never calls `eval`. There are
fields (`temp_c`, `reading["temp-c"]`, `window[-1].temp_c`), comparisons, `and or not in`, `a if b else c`,
`+ - * / // %`, `r.temp_c for r in window` inside of a function, and the functions below. There are no methods and no
attributes but fields, no powers and no text formatting: values come from any client that can publish a reading, and a
small one must not become a large computation.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import simpleeval

from device_runtime.errors import ConfigurationError, LinkError, UndefinedNameError
from device_runtime.records.printable import half_character, shown

__all__ = ["Expression", "LinkError", "UndefinedNameError", "arithmetic", "in_words", "kind_of", "names_in"]

MAX_CHARACTERS = 1000

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (abs, all, any, float, int, len, max, min, round, sum)
}
_CONSTANTS = {"true": True, "false": False, "null": None}  # as JSON spells them
_OPERATOR_SIGNS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod, "**": operator.pow,
}  # fmt: skip
_PYTHON_KINDS = re.compile(
    r"'?\b(str|int|float|bool|list|dict|NoneType)\b(?: object(?='))?'?"
)  # also as Jinja names them
_KIND_WORDS = {
    "str": "text", "int": "a number", "float": "a number", "bool": "true or false", "list": "a list",
    "dict": "an object", "NoneType": "null",
}  # fmt: skip
MAX_TEXT = 131_072  # characters or entries that `+` makes
_MAX_EXPONENT = 64
_HINTS = {"=": "; equality is ==", "&": "; write `and`", "|": "; write `or`", "!": "; write `not`"}

# What an expression can run into: it computes with values that anybody may send.
_ERRORS = (
    simpleeval.InvalidExpression, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
    MemoryError,
)  # fmt: skip


class Expression:
    """An expression, ready to be evaluated many times. For one thread."""

    def __init__(self, source: str) -> None:
        """Read an expression.

        Raises:
            ConfigurationError: it is not one, or uses what there is not.
        """
        self.source = source
        self._evaluator = simpleeval.EvalWithCompoundTypes(
            operators=dict(_OPERATORS), functions=dict(_FUNCTIONS), names={}
        )
        self._evaluator.functions = dict(_FUNCTIONS)  # without those that it has added
        self._evaluator.nodes = {node: handler for node, handler in self._evaluator.nodes.items() if node in _NODES}
        self._evaluator.nodes[ast.Attribute] = self._field
        for kind in (ast.Compare, ast.BinOp):
            self._evaluator.nodes[kind] = partial(self._placed, self._evaluator.nodes[kind])
        self._tree = _parse(source)

    @property
    def names(self) -> frozenset[str]:
        """The names that it needs: those of a reading, `window`, `topic` …"""
        return names_in(self._tree)

    def value(self, names: Mapping[str, Any]) -> Any:
        """What the expression is with these names.

        Raises:
            LinkError: a name or a field is not there, or a value is of a kind that cannot be computed with.
        """
        self._evaluator.names = {**_CONSTANTS, **names}
        try:
            return self._evaluator.eval(self.source, previously_parsed=self._tree)
        except LinkError:
            raise
        except simpleeval.NameNotDefined as error:
            raise UndefinedNameError(f"{error.name!r} is undefined") from None
        except _ERRORS as error:
            raise LinkError(in_words(error)) from None

    def _placed(self, handle: Callable[[ast.AST], Any], node: ast.AST) -> Any:
        """An operation; what is wrong with its values is reported with the part of the expression that it is."""
        try:
            return handle(node)
        except UndefinedNameError:
            raise
        except LinkError as error:
            if str(error).startswith("`"):  # an operation in this one has said where
                raise
            raise LinkError(f"`{ast.unparse(node)}`: {error}") from None

    def _field(self, node: ast.Attribute) -> Any:
        """`window[-1].temp_c`: a field of an object, and never an attribute of Python's."""
        value = self._evaluator._eval(node.value)
        if isinstance(value, Mapping) and node.attr in value:
            return value[node.attr]
        raise UndefinedNameError(f"{ast.unparse(node)!r} is undefined")


def names_in(tree: ast.AST) -> frozenset[str]:
    """The names that an expression needs: without those that its own `for` gives, and without functions."""
    nodes = list(ast.walk(tree))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    names -= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return frozenset(names - {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)})


def arithmetic(sign: str, left: Any, right: Any) -> Any:
    """`left sign right`, for numbers alone: with texts, `*` and `%` make long ones out of short ones.

    Two texts, or two lists, may be put together with `+`.

    Raises:
        LinkError: one of them is no number.
        ArithmeticError: an exponent is too large.
    """
    if sign == "+" and ((isinstance(left, str) and isinstance(right, str)) or _are_lists(left, right)):
        if len(left) + len(right) > MAX_TEXT:
            raise LinkError(f"'+' makes more than {MAX_TEXT} characters or entries.")
        return left + right
    if not (isinstance(left, int | float) and isinstance(right, int | float)):
        raise LinkError(
            f"{sign!r} needs two numbers, and has {kind_of(left)} and {kind_of(right)}{_hint(left, right)}."
        )
    if sign == "**" and not (abs(left) <= 2**64 and abs(right) <= _MAX_EXPONENT):
        raise ArithmeticError(f"'**' takes exponents up to {_MAX_EXPONENT}")
    return _OPERATOR_SIGNS[sign](left, right)


def in_words(error: BaseException) -> str:
    """What went wrong with a reading, in the words of the field instead of Python's."""
    text = _PYTHON_KINDS.sub(lambda match: _KIND_WORDS.get(match[1], match[0]), str(error))
    if isinstance(error, ZeroDivisionError):
        return "division by zero"
    if isinstance(error, IndexError):
        return "there is no such entry: the list, or the window, is shorter"
    if isinstance(error, KeyError):
        return f"there is no field {shown(text, 60)}"
    if isinstance(error, TypeError):
        return shown(f"a value is of another kind than is needed: {text}", 300)
    return shown(f"it cannot be computed: {text}" if text else f"it cannot be computed ({type(error).__name__})", 300)


def kind_of(value: Any) -> str:
    """What a value is, in a few words, and what it is if it is short."""
    if isinstance(value, str):
        return f"the text {shown(value, 40)!r}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list | tuple) else "an object" if isinstance(value, Mapping) else "a function"


def _hint(left: Any, right: Any) -> str:
    if any(isinstance(side, str) and side.strip()[:1].isdigit() for side in (left, right)):
        return "; write float(…) around a text that holds a number, or `parse: number` in the link"
    return ""


def _are_lists(left: Any, right: Any) -> bool:
    return isinstance(left, list) and isinstance(right, list)


def _compared(sign: str, compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An order of two values; Python's own error speaks of its types."""

    def ordered(left: Any, right: Any) -> Any:
        try:
            return compare(left, right)
        except TypeError:
            raise LinkError(
                f"{sign!r} compares two numbers or two texts, and has {kind_of(left)} and {kind_of(right)}"
                f"{_hint(left, right)}."
            ) from None

    return ordered


def _parse(source: str) -> ast.expr:
    if len(source) > MAX_CHARACTERS:
        raise ConfigurationError(f"the expression has {len(source)} characters; at most {MAX_CHARACTERS} are allowed")
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except SyntaxError as error:
        place = error.offset or len(source) + 1
        hint = _HINTS.get(source.strip()[place - 1 : place], "")
        raise ConfigurationError(f"not an expression: {error.msg} at character {place}{hint}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"not an expression: {error}") from None
    for node in ast.walk(tree):
        _check(node)
    return tree


def _check(node: ast.AST) -> None:
    """A fault that can be seen in the file is not left for the first reading to find."""
    if isinstance(node, ast.expr) and type(node) not in _NODES:
        raise ConfigurationError(f"{ast.unparse(node)!r} is not part of the expressions that `when` takes")
    if isinstance(node, ast.operator | ast.unaryop | ast.cmpop) and type(node) not in _OPERATORS:
        raise ConfigurationError(f"the operator {type(node).__name__} is not part of the expressions that `when` takes")
    if isinstance(node, ast.Constant) and not isinstance(node.value, str | int | float | bool | None):
        raise ConfigurationError(f"{ast.unparse(node)!r} is neither a number nor a text")
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and (half := half_character(node.value)):
        raise ConfigurationError(f"this text has half a character, {half!r} in it; write it without")
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in _FUNCTIONS:
            near = get_close_matches(name or "", _FUNCTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_FUNCTIONS)}."
            raise ConfigurationError(f"there is no function {ast.unparse(node.func)!r}; {hint}")


_NODES: frozenset[type[ast.AST]] = frozenset(
    {
        ast.Attribute, ast.BinOp, ast.BoolOp, ast.Call, ast.Compare, ast.Constant, ast.GeneratorExp, ast.IfExp,
        ast.List, ast.ListComp, ast.Name, ast.Slice, ast.Subscript, ast.Tuple, ast.UnaryOp,
    }
)  # fmt: skip
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    node: simpleeval.DEFAULT_OPERATORS[node]
    for node in (ast.USub, ast.UAdd, ast.Not, ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
} | {
    node: _compared(sign, simpleeval.DEFAULT_OPERATORS[node])
    for node, sign in ((ast.Lt, "<"), (ast.LtE, "<="), (ast.Gt, ">"), (ast.GtE, ">="))
} | {
    node: partial(arithmetic, sign)
    for node, sign in (
        (ast.Add, "+"), (ast.Sub, "-"), (ast.Mult, "*"), (ast.Div, "/"), (ast.FloorDiv, "//"), (ast.Mod, "%"),
    )
}  # fmt: skip
