"""Records of answers: what was asked, what answered, how sure it was, where and with what effort.

What `redact` names is in none of them, nor in the tokens of a prompt.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from device_runtime.brain.kept_examples import KeptLines
from device_runtime.brain.redacted_schema import schema_for_record, secrets_of
from device_runtime.brain.redaction import Redactor
from device_runtime.errors import CannotRedactError, StonechatError
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
    model: str | None  # of this device; None: none of them is for it
    link: str | None = None
    reading: Any = None
    redactor: Redactor | None = None  # of the policy that may pass it on
    secrets: Mapping[str, str] | None = None  # of a link; None: look for them in the messages
    withheld: str = ""  # why the prompt cannot be kept
    redacted: bool = False  # whether something is left out of the messages already
    window: Any = None  # the earlier readings that a link's question looks at


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

    def redactor_of(self, other: Redactor | None) -> Redactor:
        """What is in no record: what the device's records withhold, and what the policy does that may pass it on."""
        return self._redactor.joined(other)

    def record(self, asked: Asked, final: Final, began_s: float) -> dict[str, Any]:
        """The record of an answer; it is kept, if records are.

        Args:
            began_s: when the question came, on the monotonic clock.
        """
        redactor = self.redactor_of(asked.redactor)
        secrets = asked.secrets
        if secrets is None:
            secrets = secrets_of(redactor, asked.messages, asked.schema)
        final = _without(final, redactor, secrets) if redactor else final
        elsewhere = final.route if final.route is not None and final.route.where != "here" else None
        model = asked.model or (elsewhere.model if elsewhere is not None else None)
        found: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "device": self._device.config.device, "model": model, "bundle": self._bundle(asked.model),
            "link": asked.link, "reading": redactor.value(asked.reading, secrets),
            "window": redactor.value(asked.window, secrets), **self._prompt(asked, redactor, secrets),
            "schema": schema_for_record(redactor, asked.schema, secrets), "text": final.text, "finish": final.finish,
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

    def _prompt(self, asked: Asked, redactor: Redactor, secrets: Mapping[str, str]) -> dict[str, Any]:
        """The prompt as the model's tokens: of what is left of it, where something is withheld. A link's was made
        without that, but for its other messages."""
        try:
            if asked.withheld:
                raise CannotRedactError(asked.withheld)
            if asked.secrets is None:
                messages = redactor.messages(asked.messages, secrets) if redactor else [dict(m) for m in asked.messages]
            else:
                messages = [{**m, "content": redactor.text(m["content"], secrets)} for m in asked.messages]
        except StonechatError as error:
            return {"withheld": str(error)}
        tokens = None if asked.model is None else self._device.runner.encode(asked.model, messages)
        changed = messages != [dict(m) for m in asked.messages] or asked.redacted
        hidden = {"redacted": True} if changed else {}
        return ({"tokens": tokens} if tokens is not None else {"messages": messages}) | hidden

    def _bundle(self, model: str | None) -> dict[str, Any] | None:
        if model is None or (found := self._device.runner.manifest_of(model)) is None:
            return None
        return {"name": found.name, "version": found.version, "sha256": found.files["model.tflite"].sha256}


def _without(final: Final, redactor: Redactor, secrets: Mapping[str, str]) -> Final:
    """An answer, and what is said about it, without what is withheld."""
    route, reason = final.route, final.reason
    if route is not None:
        remarks = {name: getattr(route, name) for name in ("why", "failed")}
        route = replace(route, **{n: redactor.remark(said, secrets) for n, said in remarks.items() if said is not None})
    if reason is not None:
        reason = redactor.remark(reason, secrets)
    return replace(final, text=redactor.answer(final.text, secrets), route=route, reason=reason)
