"""A larger model on another device, or in a pool, of the same broker."""

from __future__ import annotations

import threading
import time

from device_runtime.brain.far.side import FarAnswer, FarQuestion
from device_runtime.client.remote import RemoteModel, why_unfamiliar
from device_runtime.errors import IncompleteError, UnreachableError
from device_runtime.fleet.policies.escalation import Target
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import is_id

__all__ = ["FarDevice"]


class FarDevice:
    """See `FarSide`. Its connection is a second one of this device, as a client; it is opened at the first question."""

    def __init__(self, target: Target, broker: BrokerAddress, device: str) -> None:
        """`device` is the one that asks: the client's name, where the broker knows its users."""
        self._target, self._broker = target, broker
        named = broker.user is not None and is_id(broker.user)
        self._client = broker.user if named else device if broker.proof() else None
        self._lock = threading.Lock()
        self._remote: RemoteModel | None = None

    def ask(self, question: FarQuestion, end_s: float) -> FarAnswer:
        """See `FarSide.ask`."""
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise UnreachableError(f"there was no time left to ask {self._target.name}.")
        answer = self._connection().generate(
            list(question.messages), model=self._target.model, max_new=question.max_new, schema=question.schema,
            stream=False, timeout_s=left_s, hops=question.hops + 1,
        )  # fmt: skip
        text = "".join(answer)
        final = answer.final
        if final.finish != "stop":
            raise IncompleteError(f"the answer of {self._target.name} was cut ({final.finish}).")
        where = self._target.name
        if answer.device is not None and self._target.pool is not None:
            where += f", device {answer.device}"
        model = self._target.model
        if final.route is not None:
            model = final.route.model or model
            if final.route.where != "here":
                where += f", {final.route.where}"
        strange = "; ".join(why_unfamiliar(final))
        return FarAnswer(text, where, model, final.usage, final.confidence, final.probabilities, strange)

    def close(self) -> None:
        """Disconnect; what is under way ends with an error."""
        with self._lock:
            remote, self._remote = self._remote, None
        if remote is not None:
            remote.close()

    def _connection(self) -> RemoteModel:
        with self._lock:
            if self._remote is None:
                target = self._target
                remote = RemoteModel(self._broker, target.device, pool=target.pool, client=self._client)
                remote.open()
                self._remote = remote
            return self._remote
