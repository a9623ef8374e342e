"""The models of one device, by name: what a request that names one, or none, is answered with.

They share the worker thread, so one answers at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_runtime.device.generation import Answer, Model
from device_runtime.mqtt.messages import Request

__all__ = ["ModelSettings", "Models"]


@dataclass(frozen=True)
class ModelSettings:
    """What a device needs to know of a model, apart from the model."""

    name: str = "default"  # as requests and links call it
    system: str | None = None  # goes before messages that have no system message
    max_new: int | None = None  # tokens, when a request does not say


class Models:
    """Opened models. The first is the one for requests that name none."""

    def __init__(self, settings: Sequence[ModelSettings], open_model: Callable[[str], Model]) -> None:
        """Open every model; `open_model` gets its name."""
        self._settings = {entry.name: entry for entry in settings}
        self._default = settings[0].name
        self._open_model = open_model
        self._opened: dict[str, Model] = {name: open_model(name) for name in self._settings}

    @property
    def progress(self) -> object:
        """Changes with every token that a model takes in or puts out."""
        return [getattr(model, "position", None) for model in list(self._opened.values())]

    def reopen(self, name: str) -> None:
        """Close a model, and open what is there under its name now; there is never memory needed for both."""
        self._opened.pop(name).close()
        self._opened[name] = self._open_model(name)

    def generate(self, request: Request) -> Answer:
        """Start the answer of the model that the request names."""
        from device_runtime.engine.sampler import Sampling

        name = request.model or self._default
        settings, messages = self._settings[name], request.messages
        if settings.system and not any(message["role"] == "system" for message in messages):
            messages = ({"role": "system", "content": settings.system}, *messages)
        return self._opened[name].generate(
            messages,
            max_new=request.max_new or settings.max_new,
            sampling=Sampling(request.temperature, request.top_k, request.top_p, request.seed),
            stop=request.stop,
            schema=request.schema,
        )
