"""Takes a person's correction of an answer, and keeps it as an example for the next training.

What is withheld from a larger model and from records is not kept here either.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from device_runtime.brain.kept_examples import BY_PERSON, CORRECTIONS, KeptLines
from device_runtime.brain.question import input_of
from device_runtime.brain.recorder import Recorder
from device_runtime.brain.redaction import Redactor
from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.escalation import Escalations
from device_runtime.device.extensions.request_job import Replies
from device_runtime.engine.schema.acceptance import accepted
from device_runtime.errors import CannotRedactError, ConfigurationError, IncompleteError, LinkError, SchemaError
from device_runtime.fleet.links import MAX_SENT_BYTES, Asking, Link, asking_of, looks_back
from device_runtime.mqtt.messages import Address, AddressFields
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError, dump, parse, read
from device_runtime.records.constraints import Length
from device_runtime.tasks.examples import answer_faults

__all__ = ["Correction", "Corrections"]

_MAX_KEPT_BYTES = 16_384  # of one

log = logging.getLogger("stonechat.serve")


@dataclass(frozen=True, kw_only=True)
class Correction(AddressFields):
    """`in/correct`: the right answer to a reading of a link, or to what a model was asked."""

    answer: Annotated[Mapping[str, Any], "the right answer, with all of its fields"]
    link: Annotated[str | None, Length(64), "whose answer it was"] = None
    reading: Annotated[Any, "of the link, as its answer has it"] = None
    topic: Annotated[str | None, Length(1024), "of the reading"] = None
    window: Annotated[
        tuple[Any, ...] | None, "the earlier readings, the oldest first; needed where the link's question looks at them"
    ] = None
    prompt: Annotated[str | None, Length(32_768), "what was asked, in place of `link`"] = None
    model: Annotated[str | None, Length(64), "that answered; without it the link's, the router's or the first"] = None
    said: Annotated[Mapping[str, Any] | None, "the answer that was wrong"] = None
    who: Annotated[str | None, Length(64), "who corrects, at a broker that does not know its users"] = None


class Corrections(Extension):
    """The corrections of one device."""

    def __init__(self, device: Device, escalations: Escalations, recorder: Recorder) -> None:
        self._device, self._escalations, self._replies = device, escalations, Replies(device)
        self._redactor_of = recorder.redactor_of
        self.kept = KeptLines(device.config.state_dir / CORRECTIONS, recorder.recording.corrections)
        self.capabilities = ("correct",) if recorder.recording.corrections else ()

    def routes(self) -> Sequence[Route]:
        """Its own commands."""
        own = self._device.topics
        topics = (own.correct, own.correct_by("+")) if self.capabilities else ()
        return [Route(Subscription(topic, tell_retained=True), self.receive) for topic in topics]

    def receive(self, message: Incoming) -> None:
        """Keep a correction, and say so where there is somebody to say it to."""
        if message.retained or not self._device.limiter.admits("requests"):
            return
        vouched = "" if message.topic == self._device.topics.correct else message.topic.rpartition("/")[2]
        address: Address | None = None
        try:
            if message.response_topic:  # known before the payload is, so that a payload that is no JSON is answered too
                address = self._address(message, None, vouched)
            value = parse(message.payload)
            address = self._address(message, value, vouched)
            entry = self._entry(read(Correction, value, "a correction"), vouched)
        except (MessageError, ConfigurationError, LinkError) as error:
            log.info("refused a correction on %s: %s", message.topic, type(error).__name__)
            if address is not None:
                self._replies.turn_away(address, error.code, str(error))
            return
        if why := self.kept.add(entry, flush=True):
            if address is not None:
                self._replies.refuse(address, "failed", f"the correction is not kept: {why}, and send it again.")
            return
        log.info("kept a correction by %s", entry["who"] or "somebody")
        if address is not None:
            fields = {"kept": True, "task": entry["task"], "device": self._device.config.device}
            self._replies.send(address, fields, qos=1)

    def _address(self, message: Incoming, value: Any, vouched: str) -> Address | None:
        """Who wants to know what came of it."""
        if not message.response_topic and not (isinstance(value, dict) and value.get("reply_to")):
            return None
        address = Address.find(value, message.response_topic, message.correlation_data)
        client = self._replies.client_of(address.reply_to)
        if client is None or (vouched and client != vouched):
            raise MessageError("the reply topic of a correction is another's.")
        return replace(address, client=vouched)

    def _entry(self, correction: Correction, vouched: str) -> dict[str, Any]:
        """The example, without what is withheld.

        Raises:
            MessageError: something is missing, or is nothing that was asked here.
            ConfigurationError: the answer does not fit, or what is withheld cannot be found.
            LinkError: the link's prompt cannot be made of the reading.
        """
        if (correction.link is None) == (correction.prompt is None):
            raise MessageError("a correction needs either link and reading, or prompt, and not both.")
        link = self._link(correction) if correction.link is not None else None
        desk = self._escalations.of(link)
        redactor = self._redactor_of(None if desk is None else desk.redactor)
        asking = _asking(correction, link, redactor)
        model, secrets = correction.model or self._answering(correction, link, asking), asking.secrets
        if model not in self._device.runner.names:
            raise MessageError(f"this device has no model {model!r}; it has {', '.join(self._device.runner.names)}.")
        purpose = self._device.runner.purpose_of(model)
        link = None if link is None else self._device.answering(link, model)
        given = input_of([{"role": "user", "content": asking.kept}], purpose)
        if purpose is not None and not (found := purpose.inputs.prompt(given)).readable:
            raise MessageError(f"{model} cannot read what is corrected: {'; '.join(found.unfamiliar)}.")
        if link is not None and not link.answer_of_model:
            _check_answer(correction.answer, link.answer)
        elif purpose is not None and (faults := answer_faults(correction.answer, purpose.answer)):
            raise MessageError(f"the answer does not fit: {'; '.join(faults)}.")
        local = None if correction.said is None else redactor.value(correction.said, secrets)
        entry = {
            "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "link": correction.link,
            "model": model, "task": None if purpose is None else purpose.name,
            "input": given, "answer": redactor.value(correction.answer, secrets), "by": BY_PERSON,
            "who": vouched or (correction.who and redactor.text(correction.who, secrets)), "vouched": bool(vouched),
            "why": "corrected",
            "local": None if local is None else {"text": json.dumps(local, ensure_ascii=False)},
        }  # fmt: skip
        if len(dump(entry)) > _MAX_KEPT_BYTES:
            raise MessageError(f"the correction has more than {_MAX_KEPT_BYTES} bytes.")
        return entry

    def _answering(self, correction: Correction, link: Link | None, asking: Asking) -> str:
        """The model that answers what is corrected, where the correction names none."""
        if link is not None and link.model is not None:
            return link.model
        if self._device.router is None:
            return self._device.runner.names[0]
        topic = (correction.topic or "").split("/") if link is not None else ()
        chosen = self._device.router.choose(asking.prompt or asking.kept, topic)
        if chosen.stray:
            raise MessageError(f"{chosen.why}, so no training could use it; name a model that ought to take it.")
        return chosen.model

    def _link(self, correction: Correction) -> Link:
        links = {link.name: link for link in self._device.config.links}
        if correction.link not in links:
            known = ", ".join(links) or "none"
            raise MessageError(f"this device has no link {correction.link!r}; it has {known}.")
        if correction.reading is None:
            raise MessageError("a correction of a link needs the reading, as the link's answer has it.")
        link = links[correction.link]
        if correction.window is None and looks_back(link):
            raise MessageError(
                f"link {link.name!r} asks about earlier readings, too: give them as `window`, the oldest first. Its "
                f"answer on {self._device.topics.link(link.name)} has them, unless they take more than "
                f"{MAX_SENT_BYTES // 1024} KiB."
            )
        return link


def _asking(correction: Correction, link: Link | None, redactor: Redactor) -> Asking:
    """What the answer that is corrected was given to."""
    if link is not None:
        return asking_of(link, correction.topic, correction.reading, correction.window or (), redactor)
    said = [{"role": "user", "content": correction.prompt or ""}]
    secrets = redactor.secrets_of(said)
    try:
        kept = redactor.messages(said, secrets)[0] if redactor else said[0]
    except CannotRedactError as error:
        raise CannotRedactError(
            f"{error}; give the prompt as a JSON object with its fields, or name the link and the reading."
        ) from None
    return Asking(said[0]["content"], kept["content"], secrets)


def _check_answer(answer: Mapping[str, Any], schema: Mapping[str, Any] | None) -> None:
    """Hold an answer to a link's own schema, which may say more than a task's: nested fields, some that may be absent.

    Raises:
        MessageError: it does not fit.
    """
    if schema is None:
        return
    faults = [f"{name!r} is missing" for name in schema.get("required", ()) if name not in answer]
    faults += answer_faults(answer, schema, whole=False)
    try:
        accepted(dump(answer).decode(), schema)
    except IncompleteError as error:
        raise MessageError(f"the answer does not fit: {'; '.join(faults) or error}") from None
    except SchemaError as error:  # no grammars on this machine: its board holds its answers to the schema
        if faults:
            raise MessageError(f"the answer does not fit: {'; '.join(faults)}.") from error
