"""Models of a fleet, over MQTT: one device, one pool, or all that the broker knows."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from device_runtime.client.remote import RemoteAnswer, RemoteModel
from device_runtime.client.roll_call import DeviceReport, FleetWatch
from device_runtime.errors import RefusedError, UnreachableError
from device_runtime.fleet.file import Device
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState, Info, Request
from toolkit.gateway.fleet_router import FleetRouter, RoutedAnswer
from toolkit.gateway.source import Card

__all__ = ["FleetModels"]

MAX_CONNECTIONS = 32  # to the broker, one for each device or pool that was asked lately
FLEET = "fleet"  # the owner of the model that the fleet's router chooses
AUTO = "auto"  # the name of the model that the device's router chooses, or else its first
log = logging.getLogger("stonechat.gateway")

_GONE = (DeviceState.DISCONNECTED, DeviceState.LOST)


class FleetModels:
    """The source `stonechat gateway --broker URL`."""

    raw = False

    def __init__(
        self,
        broker: BrokerAddress,
        client: str | None,
        *,
        device: str | None = None,
        pool: str | None = None,
        watch: FleetWatch | None = None,
        router: FleetRouter | None = None,
        planned: Mapping[str, Device] | None = None,
    ) -> None:
        """Prepare; `open` connects.

        Args:
            client: who asks, as the broker knows it.
            device: ask this one alone; its models have their own names.
            pool: ask whichever of this pool is free.
                Without either, names are DEVICE/MODEL and pool/GROUP/MODEL.
            watch: somebody else's, who opens and closes it; None makes one.
            router: finds device and model for what asks for the model `auto`.
            planned: the devices of a fleet file, which may never have been online.
        """
        self._broker, self._client, self._device, self._pool = broker, client, device, pool
        self._watch = watch or FleetWatch(
            broker, client=client, device=device or "+", on_connection=self._connection_changed
        )
        self._there: bool | None = None  # the broker, as the log has it; None before the first connection
        self._planned = {
            name: DeviceReport(name, info=Info(name, "", "", entry.models, pool=entry.pool))
            for name, entry in (planned or {}).items()
            if device in (None, name)
        }
        self._own_watch, self._router = watch is None, router
        self._closing = False
        self._started = int(time.time())
        self._connections: OrderedDict[tuple[str | None, str | None], RemoteModel] = OrderedDict()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Connect, and see who is there.

        Raises:
            UnreachableError: there is no broker.
            ConfigurationError: the broker refuses this client, or does not prove who it is.
        """
        if self._own_watch:
            self._watch.open()
            self._watch.settle()

    def close(self) -> None:
        """Disconnect."""
        self._closing = True
        with self._lock:
            models = list(self._connections.values())
            self._connections.clear()
        for model in models:
            model.close()
        if self._own_watch:
            self._watch.close()

    def cards(self) -> list[Card]:
        """The models of all devices that are there.

        Raises:
            UnreachableError: the broker is not there, and so nobody knows.
        """
        if not self._watch.connected:
            raise UnreachableError(f"there is no connection to the broker at {self._broker}; it is tried again.")
        return list(self._cards(self._present()).values())

    def why_absent(self, name: str) -> str | None:
        """See `Source`: a device has said that it has the model, or the fleet file does, and it is not online."""
        known = {device: report for device, report in self._watch.devices().items() if report.info is not None}
        card = self._cards({**self._planned, **known}).get(name)
        if card is None:
            return None
        if card.owner == FLEET:
            return f"no device of the fleet that {name!r} may ask is online."
        if card.owner.startswith("pool/"):
            return f"no device of the pool {card.owner.removeprefix('pool/')!r}, which has {name!r}, is online."
        state = known[card.owner].state if card.owner in known else None
        how = f" ({state.state.value})" if state is not None else ""
        return f"device {card.owner!r}, which has {name!r}, is not online{how}."

    def _cards(self, devices: Mapping[str, DeviceReport]) -> dict[str, Card]:
        present = [(device, report.info) for device, report in devices.items() if report.info is not None]
        found: dict[str, Card] = {}
        if self._router is not None and present:
            found[AUTO] = Card(AUTO, "generate", self._started, FLEET, chosen_there=True)
        for device, info in present:
            if self._pool is None:
                prefix = "" if self._device else f"{device}/"
                for model in _names(info):
                    found[prefix + model] = self._card(prefix + model, model, info, device)
        for _, info in present:
            if info.pool is not None and self._device is None and self._pool in (None, info.pool):
                prefix = "" if self._pool else f"pool/{info.pool}/"
                for model in _names(info):
                    found.setdefault(prefix + model, self._card(prefix + model, model, info, f"pool/{info.pool}"))
        return found

    def _connection_changed(self, connected: bool, reason: str) -> None:
        if self._there is not None and self._there != connected and not self._closing:
            what = "is back" if connected else f"is gone ({reason}); it is tried again"
            log.warning("the connection to the broker at %s %s", self._broker, what)
        self._there = connected or (None if self._there is None else False)

    def _present(self) -> dict[str, DeviceReport]:
        """Who is online; and who may be about to come back, which shows when it is asked (`RemoteModel`)."""
        return {
            name: of
            for name, of in self._watch.devices().items()
            if (self._watch.doubts(name) if of.state is None else of.state.state not in _GONE)
        }

    def _card(self, name: str, model: str, info: Info, owner: str) -> Card:
        chosen_there = model == AUTO and model not in info.models
        task = dict(info.tasks or {}).get(model, "generate")
        return Card(name, task, self._started, owner, chosen_there)

    async def ask(
        self, card: Card, request: Request, *, raw: bool, client: str, timeout_s: float
    ) -> RemoteAnswer | RoutedAnswer:
        """Ask the device or the pool that a model belongs to, or the one that the fleet's router finds.

        Raises:
            RefusedError: it is for no model of the fleet.
            UnreachableError: there is no broker, or no device with the model is online.
        """
        if raw:
            raise RefusedError("devices are asked in messages; use /v1/chat/completions.", reason="unsupported")
        if card.owner == FLEET and self._router is not None:
            device, chosen = await asyncio.to_thread(self._router.choose, request, self._present())
            there = Card(f"{device}/{chosen.model}", owner=device, chosen_there=chosen.stray)
            request = replace(request, unfamiliar=chosen.stray)
            return RoutedAnswer(await self._ask(there, request, timeout_s), device, chosen)
        return await self._ask(card, request, timeout_s)

    async def _ask(self, card: Card, request: Request, timeout_s: float) -> RemoteAnswer:
        pool = card.owner.removeprefix("pool/") if card.owner.startswith("pool/") else None
        device = card.owner if pool is None else None
        remote = await asyncio.to_thread(self._connection, device, pool)
        return remote.generate(
            [dict(message) for message in request.messages],
            model=None if card.chosen_there else card.id.rpartition("/")[2],
            max_new=request.max_new,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=request.seed,
            stop=request.stop,
            schema=request.schema,
            task=request.task,
            prompt_name=request.prompt_name,
            to=request.to,
            truncate=request.truncate,
            stream=request.stream,
            timeout_s=timeout_s,
            unfamiliar=request.unfamiliar,
        )

    def _connection(self, device: str | None, pool: str | None) -> RemoteModel:
        with self._lock:
            if (known := self._connections.get((device, pool))) is not None:
                self._connections.move_to_end((device, pool))
                return known
            model = RemoteModel(self._broker, device, pool=pool, client=self._client)
            model.open()
            self._connections[device, pool] = model
            oldest = self._connections.popitem(last=False)[1] if len(self._connections) > MAX_CONNECTIONS else None
        if oldest is not None:
            oldest.close()
        return model


def _names(info: Info) -> tuple[str, ...]:
    """What can be asked of a device: its models and, where there are several, the one that it finds right itself."""
    return info.models if len(info.models) < 2 or AUTO in info.models else (*info.models, AUTO)
