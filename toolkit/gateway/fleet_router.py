"""Finds the model that a question is for among those of all devices of a fleet, and a device that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from device_runtime.brain.question import last_of_user
from device_runtime.brain.router import Chosen, Router
from device_runtime.client.roll_call import DeviceReport
from device_runtime.errors import RefusedError, UnreachableError
from device_runtime.fleet.policies.routing import Routing
from device_runtime.mqtt.messages import DeviceState, Final, Request, Route

if TYPE_CHECKING:
    from device_runtime.client.remote import RemoteAnswer
    from device_runtime.fleet.file import Fleet

__all__ = ["FleetRouter", "RoutedAnswer", "passing_on"]


class FleetRouter:
    """The router of a fleet file. May be used from any thread."""

    def __init__(self, fleet: Fleet) -> None:
        """Read what the bundles on this machine were trained for.

        Raises:
            ConfigurationError: a bundle or the router's file is not here, or cannot be read.
        """
        entries = fleet.served_models()
        self._passing = passing_on(fleet)
        bundles = {name: entry.bundle for name, entry in entries.items()}
        self._router = Router.of_bundles(fleet.routing_of_all() or Routing(), bundles)

    def choose(self, request: Request, present: Mapping[str, DeviceReport]) -> tuple[str, Chosen]:
        """A device, and the model to ask there: of several devices that where fewest wait. What is for no model goes to
        a device that passes such questions on.

        Args:
            present: the devices that are online.

        Raises:
            RefusedError: the question is for no model of the fleet, and none of its devices passes it on.
            UnreachableError: no device that has the model, or that passes on, is online.
        """
        chosen = self._router.choose(last_of_user(request.messages))
        if chosen.stray and not self._passing:
            raise RefusedError(
                "this is for no model of the fleet, and no device has `escalate` for what is unfamiliar; name a model, "
                "see /v1/models.", status=422, reason="no_model",
            )  # fmt: skip
        if chosen.stray:
            having = {name: of for name, of in present.items() if name in self._passing}
            missing = (
                f"this is for no model of the fleet, and {' or '.join(self._passing)}, to pass it on, is not online."
            )
        else:
            having = {name: of for name, of in present.items() if of.info and chosen.model in of.info.models}
            missing = f"this is for {chosen.model} ({chosen.why}), and no device that has it is online."
        if not having:
            raise UnreachableError(missing)
        return min(having, key=lambda name: _load(having[name])), chosen


def passing_on(fleet: Fleet) -> dict[str, str]:
    """The devices that pass on what is for no model, and where to."""
    policies = {name: entry.escalate for name, entry in fleet.devices.items()}
    return {name: of.to.name for name, of in policies.items() if of is not None and "unfamiliar" in of.when}


class RoutedAnswer:
    """An answer of a device that was chosen; it says so."""

    def __init__(self, answer: RemoteAnswer, device: str, chosen: Chosen) -> None:
        self._answer, self._device, self._chosen = answer, device, chosen

    def __aiter__(self) -> RoutedAnswer:
        return self

    async def __anext__(self) -> str:
        return await self._answer.__anext__()

    @property
    def final(self) -> Final:
        """As the device has sent it, with the reason for that device."""
        final = self._answer.final
        there = final.route or Route()
        where = f"device {self._device}" if there.where == "here" else f"device {self._device}, {there.where}"
        if self._chosen.stray:  # the device knows, and says so
            return replace(final, route=replace(there, where=where))
        why = "; ".join(filter(None, (self._chosen.why, there.why)))
        route = replace(there, where=where, model=there.model or self._chosen.model, why=why)
        return replace(final, route=route)

    @property
    def device(self) -> str | None:
        """Who answers."""
        return self._device

    def cancel(self) -> None:
        """See `RemoteAnswer.cancel`."""
        self._answer.cancel()


def _load(report: DeviceReport) -> tuple[bool, int]:
    busy = report.state is not None and report.state.state is not DeviceState.READY
    return busy, report.health.queue or 0 if report.health is not None else 0
