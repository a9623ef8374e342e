"""What can be seen to be wrong with the escalations of a fleet file: ways that lead nowhere, or round in a circle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from device_runtime.brain.redacted_schema import schema_for_far_side
from device_runtime.brain.redaction import Redactor
from device_runtime.errors import CannotRedactError
from device_runtime.fleet.policies.escalation import Escalation
from device_runtime.fleet.yaml_schema import Path_, Report, nearest

if TYPE_CHECKING:
    from device_runtime.fleet.file import Fleet

__all__ = ["check_ways"]


def check_ways(fleet: Fleet, report: Report) -> None:
    """Note every fault at the `escalate` that has it."""
    links = {link.name: (number, link) for number, link in enumerate(fleet.links)}
    for device, entry in fleet.devices.items():
        served = [links[name] for name in entry.links if name in links]
        ways: list[tuple[Path_, Escalation | None]] = [(("devices", device), entry.escalate)]
        ways += [(("links", number), link.escalate) for number, link in served]
        for path, policy in ways:
            if policy is not None:
                for text in _faults(fleet, device, policy):
                    report.add_at((*path, "escalate", "to"), text)
        for number, link in served:
            wants = link.unsure is not None and link.unsure.do == "escalate"
            if wants and (link.escalate or entry.escalate) is None:
                text = (
                    f"`do: escalate` needs somewhere to escalate to: add `escalate: {{to: …}}` to the link, or to the "
                    f"device {device!r}"
                )
                report.add_at(("links", number, "unsure"), text)
            elif wants and (policy := link.escalate or entry.escalate) is not None and "unsure" not in policy.when:
                text = (
                    f"`do: escalate` is for what is unsure, and `when` of the `escalate` that it has on {device!r} is "
                    f"[{', '.join(policy.when)}]: add unsure there, or `do: flag` here"
                )
                report.add_at(("links", number, "unsure"), text)
            if (policy := link.escalate or entry.escalate) is not None and _demands_withheld(link.answer, policy):
                text = "it demands values that `redact` withholds, so that no question of this link could go on"
                report.add_at(("links", number, "answer"), text)
    for number, link in enumerate(fleet.links):
        served_by = [name for name, entry in fleet.devices.items() if link.name in entry.links]
        if not served_by and link.unsure is not None and link.unsure.do == "escalate" and link.escalate is None:
            text = "`do: escalate` needs somewhere to escalate to: add `escalate: {to: …}` to the link"
            report.add_at(("links", number, "unsure"), text)


def _faults(fleet: Fleet, device: str, policy: Escalation) -> Iterator[str]:
    to = policy.to
    if to.device is not None:
        if to.device not in fleet.devices:
            hint = nearest(to.device, list(fleet.devices), "its devices are")
            yield f"there is no device {to.device!r} in this file; {hint}"
            return
        if to.device == device:
            yield f"device {device!r} would ask itself; name a larger one"
            return
        other = fleet.devices[to.device]
        if other.by_itself:
            yield (
                f"device {to.device!r} is a board on MQTT by itself (`by_itself`), whose firmware refuses what another "
                "device passes on; name a device that `stonechat serve` or `stonechat bridge` runs, a pool or a url"
            )
            return
        if to.model is not None and to.model not in other.models:
            yield f"device {to.device!r} has no model {to.model!r}; it has {', '.join(other.models)}"
        if other.escalate is not None and _leads_to(fleet, other.escalate, device):
            yield f"device {to.device!r} escalates back to {device!r}; a question would go round between them"
    elif to.pool is not None:
        members = [name for name, entry in fleet.devices.items() if entry.pool == to.pool]
        if not members:
            yield f"no device of this file is in the pool {to.pool!r}"
        elif device in members:
            yield f"device {device!r} is in the pool {to.pool!r} itself; name a pool of larger models"


def _demands_withheld(answer: Mapping[str, Any] | None, policy: Escalation) -> bool:
    try:
        schema_for_far_side(Redactor(policy.redact), answer, {})
    except CannotRedactError:
        return True
    return False


def _leads_to(fleet: Fleet, policy: Escalation, device: str) -> bool:
    if policy.to.pool is not None:
        return fleet.devices[device].pool == policy.to.pool
    return policy.to.device == device
