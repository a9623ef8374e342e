"""`router` in a fleet file: which of a device's models answers what names none."""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.fleet.links import check_expression
from device_runtime.fleet.yaml_schema import Field, ListOf, Record, Reference, Text

__all__ = ["ROUTING", "RouteRule", "Routing"]


@dataclass(frozen=True)
class RouteRule:
    """One rule: the first that holds decides."""

    when: str  # an expression over the reading's fields, `reading`, `text` and a link's `topic`
    model: str  # one of the device's models


@dataclass(frozen=True)
class Routing:
    """How a model is found."""

    rules: tuple[RouteRule, ...] = ()  # declared; they come first
    file: str | None = None  # what `stonechat router train` wrote, relative to the fleet file; it decides about texts


ROUTING = Record(
    Routing,
    {
        "rules": Field(
            ListOf(
                Record(
                    RouteRule,
                    {
                        "when": Field(Text("an expression such as 'bar' in reading", check=check_expression)),
                        "model": Field(Reference("model", "models")),
                    },
                    expected="a mapping such as {when: \"'bar' in reading\", model: boiler-advisor}",
                ),
                "a list of rules",
            ),
            (),
        ),
        "file": Field(Text("the path of a file that `stonechat router train` wrote"), None),
    },
    expected="a mapping such as {file: router.json}",
)
