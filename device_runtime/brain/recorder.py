"""Records of answers: what was asked, what answered, how sure it was, where and with what effort.

What `redact` names is in none of them, nor in the tokens of a prompt.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from device_runtime.brain.kept_examples import KeptLines
from device_runtime.brain.redaction import Redactor
from device_runtime.errors import StonechatError
from device_runtime.fleet.policies.recording import Recording
from device_runtime.mqtt.messages import Final
from device_runtime.records.typed_json import write

if TYPE_CHECKING:
    from device_runtime.device.extension import Device

__all__ = ["FILE", "Asked", "Recorder"]

FILE = "records.jsonl"  # in the state folder


@dataclass(frozen=True)
class Asked:
    """What an answer was given to."""

    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any] | None
    model: str  # of this device
    link: str | None = None
    reading: Any = None
    redactor: Redactor | None = None  # of the policy that may pass it on


class Recorder:
    """Makes records, and keeps them. May be used from any thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.recording = device.config.recording or Recording()
        self.kept = KeptLines(device.config.state_dir / FILE, self.recording.keep)
        self._redactor = Redactor(self.recording.redact)

    def wants(self, requested: bool) -> bool:
        """Whether a record is worth making."""
        return bool(self.recording.keep) or (requested and self.recording.on_request)

    def record(self, asked: Asked, final: Final, began_s: float) -> dict[str, Any]:
        """The record of an answer; it is kept, if records are.

        Args:
            began_s: when the question came, on the monotonic clock.
        """
        found: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "device": self._device.config.device, "model": asked.model, "bundle": self._bundle(asked.model),
            "link": asked.link, "reading": self._redacted(asked, asked.reading), **self._prompt(asked),
            "schema": asked.schema, "text": self._text(asked, final.text), "finish": final.finish,
            "confidence": final.confidence, "unfamiliar": final.unfamiliar, "reason": final.reason,
            "route": None if final.route is None else write(final.route),
            "usage": write(final.usage), "took_ms": round((time.monotonic() - began_s) * 1000, 1),
            "energy": final.energy,
        }  # fmt: skip
        found = {name: value for name, value in found.items() if value is not None}
        self.kept.add(found)
        return found

    def expire(self) -> None:
        """Forget what is older than the fleet file allows."""
        oldest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=self.recording.days)
        limit = oldest.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.kept.keep_only(lambda entry: str(entry.get("time", "")) >= limit)

    def _prompt(self, asked: Asked) -> dict[str, Any]:
        """The prompt as the model's tokens: of what is left of it, where something is withheld."""
        try:
            messages = [{**m, "content": self._redacted_message(asked, m["content"])} for m in asked.messages]
        except StonechatError as error:
            return {"withheld": str(error)}
        tokens = self._device.runner.encode(asked.model, messages)
        hidden = {"redacted": True} if messages != [dict(m) for m in asked.messages] else {}
        return ({"tokens": tokens} if tokens is not None else {"messages": messages}) | hidden

    def _redacted_message(self, asked: Asked, content: str) -> str:
        """A link's prompt is a text made of its reading: what the reading says is known, and taken out of it."""
        for redactor in (self._redactor, asked.redactor):
            if redactor and asked.reading is not None:
                content = redactor.text(content, redactor.secrets(asked.reading))
            elif redactor:
                content = redactor.message(content)
        return content

    def _redacted(self, asked: Asked, value: Any) -> Any:
        for redactor in (self._redactor, asked.redactor):
            value = redactor.value(value) if redactor else value
        return value

    def _text(self, asked: Asked, text: str) -> str:
        source = asked.reading if asked.reading is not None else [_parsed(m["content"]) for m in asked.messages]
        for redactor in (self._redactor, asked.redactor):
            text = redactor.text(text, redactor.secrets(source)) if redactor else text
        return text

    def _bundle(self, model: str) -> dict[str, Any] | None:
        found = self._device.runner.manifest_of(model)
        if found is None:
            return None
        return {"name": found.name, "version": found.version, "sha256": found.files["model.tflite"].sha256}


def _parsed(content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
