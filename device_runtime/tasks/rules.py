"""A task's truth: the first rule that holds gives the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_runtime.errors import ConfigurationError
from device_runtime.fleet.expression import Expression, LinkError
from device_runtime.tasks.file import Task

__all__ = ["Truth"]


class Truth:
    """The rules of a task, ready to be applied to many inputs. For one thread."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._rules = [(rule, Expression(rule.when) if rule.when is not None else None) for rule in task.truth]

    def rule(self, given: Mapping[str, Any]) -> int | None:
        """The number of the rule that holds; None where a field that the task reads is not there.

        Raises:
            ConfigurationError: a rule cannot be computed for this input.
        """
        names = self._task.inputs.names(given)
        if any(names[name] is None for name in self._task.inputs.fields or {}):
            return None
        for number, (rule, expression) in enumerate(self._rules):
            try:
                if expression is None or expression.value(names):
                    return number
            except LinkError as error:
                why = str(error).rstrip(".")
                raise ConfigurationError(
                    f"The rule `{rule.when}` of {self._task.name} fails for {dict(given)!r:.200}: {why}. "
                    "Write it so that it can: `window and …` where earlier readings may be missing."
                ) from None
        return None

    def answer(self, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The answer that the rules give."""
        number = self.rule(given)
        return None if number is None else self._task.truth[number].answer
