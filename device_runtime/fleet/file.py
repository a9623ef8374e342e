"""The fleet file: brokers, models, devices and links in one YAML file.

Read by `load`; what a single device needs of it comes from `Fleet.device`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.errors import ConfigurationError, StonechatError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.circles import circles
from device_runtime.fleet.link_faults import why_refused
from device_runtime.fleet.link_fields import LINK
from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import ESCALATION, Escalation
from device_runtime.fleet.policies.recording import RECORDING, Recording
from device_runtime.fleet.policies.routing import ROUTING, Routing
from device_runtime.fleet.policies.ways import check_ways
from device_runtime.fleet.settings import DeviceConfig, ModelSettings, RateLimits
from device_runtime.fleet.yaml_schema import (
    Boolean,
    Choice,
    Field,
    Integer,
    ListOf,
    MapOf,
    Number,
    OneOrMore,
    Record,
    Reference,
    Report,
    Text,
)
from device_runtime.mqtt.address import BrokerAddress, Certificates, Protocol, read_password
from device_runtime.mqtt.topics import check_id

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest

__all__ = ["FLEET", "Broker", "Device", "Fleet", "ModelEntry", "check_fleet", "load"]


@dataclass(frozen=True)
class Broker:
    """How to reach the broker. Passwords are never in the file; it may say which files have them."""

    url: str = "mqtt://localhost:1883"
    protocol: str = "5"  # or 3.1.1, for brokers that have no MQTT 5
    certs: str | None = None  # a folder with ca.crt and <device>.crt and .key; a path, relative to the fleet file
    password_file: str | None = None  # a file with one, or a folder with <device>.password; relative to the fleet file


@dataclass(frozen=True)
class ModelEntry:
    """A bundle, and how to run it."""

    bundle: str  # a path, relative to the fleet file; ${NAME} and ${NAME:-default} come from the environment
    threads: int | None = None  # the backend's choice when None
    max_new: int | None = None  # tokens, when a request does not say
    system: str | None = None  # system message for requests without one
    keep_mib: float | None = None  # for states of prompts that come again; None: a share of what the board file allows


@dataclass(frozen=True)
class Device:
    """One board of the fleet."""

    models: tuple[str, ...]  # names of models; the first answers what names none. `model` in the file
    links: tuple[str, ...] = ()  # names of links
    pool: str | None = None  # the group whose requests it shares
    queue: int = 8  # requests that may wait
    groups: tuple[str, ...] = ()  # for updates that go to several devices
    limits: RateLimits = field(default_factory=RateLimits)  # messages a second; more are dropped
    escalate: Escalation | None = None  # where what its models should not answer alone goes on to
    records: Recording | None = None  # what is kept of its answers; None: nothing
    router: Routing | None = None  # which of its models answers what names none; None: the first
    by_itself: bool = False  # a microcontroller whose firmware has an MQTT client, without a bridge


@dataclass(frozen=True)
class Fleet:
    """A fleet file."""

    broker: Broker
    models: Mapping[str, ModelEntry]
    devices: Mapping[str, Device]
    links: tuple[Link, ...] = ()
    schema: int = 1
    home_assistant: bool = True  # devices show up there by discovery
    router: Routing | None = None  # which model, of all of its devices, answers what names none
    keys: str | None = None  # a folder of public keys: only what they have signed runs; relative to the fleet file
    path: Path = Path()

    def device(self, device: str, broker: BrokerAddress, state_dir: Path) -> DeviceConfig:
        """What the service of one device needs.

        Raises:
            ConfigurationError: the file has no such device.
        """
        entry = self._entry(device)
        return DeviceConfig(
            device,
            broker,
            state_dir,
            models=tuple(ModelSettings(n, self.models[n].system, self.models[n].max_new) for n in entry.models),
            links=self.links_of(device),
            pool=entry.pool,
            queue=entry.queue,
            limits=entry.limits,
            home_assistant=self.home_assistant,
            escalate=self._located(entry.escalate),
            routing=self.routing(device),
            recording=entry.records,
        )

    def routing(self, device: str) -> Routing | None:
        """How a device finds the model for what names none, the path of its classifier made absolute.

        Raises:
            ConfigurationError: the file has no such device, or the path needs a variable that is not set.
        """
        return self._routed_by(self._entry(device).router)

    def routing_of_all(self) -> Routing | None:
        """The same for the whole fleet."""
        return self._routed_by(self.router)

    def served_models(self) -> Mapping[str, ModelEntry]:
        """The models that a device of the file has, by name, their bundle paths made absolute."""
        return {name: entry for device in self.devices for name, entry in self.models_of(device).items()}

    def _routed_by(self, routing: Routing | None) -> Routing | None:
        if routing is None or routing.file is None:
            return routing
        return replace(routing, file=str(self.beside(routing.file)))

    def _located(self, policy: Escalation | None) -> Escalation | None:
        """A policy with the path of its key made absolute."""
        if policy is None or policy.to.key_file is None:
            return policy
        return replace(policy, to=replace(policy.to, key_file=str(self.beside(policy.to.key_file))))

    def links_of(self, device: str) -> tuple[Link, ...]:
        """The links of a device. One without `answer` has that of its bundle, if that was trained for a task.

        Raises:
            ConfigurationError: the file has no such device, or a path needs a variable that is not set.
        """
        entry = self._entry(device)
        names = set(entry.links)
        own = [replace(link, escalate=self._located(link.escalate)) for link in self.links if link.name in names]
        if all(link.answer is not None for link in own):
            return tuple(own)
        trained = {name: _answer_of(Path(model.bundle)) for name, model in self.models_of(device).items()}
        asked = {link.name: trained.get(models[0]) for link, models in self.asking(device) if link.answer is None}
        return tuple(
            replace(link, answer=asked[link.name], answer_of_model=True) if link.name in asked else link for link in own
        )

    def models_of(self, device: str) -> Mapping[str, ModelEntry]:
        """The models of a device by name, their bundle paths made absolute; the first is its default.

        Raises:
            ConfigurationError: the file has no such device, or a path needs a variable that is not set.
        """
        entries = {name: self.models[name] for name in self._entry(device).models}
        return {name: replace(entry, bundle=str(self.beside(entry.bundle))) for name, entry in entries.items()}

    def keys_folder(self) -> Path | None:
        """The public keys that the file names, made absolute.

        Raises:
            ConfigurationError: the path needs a variable that is not set.
        """
        return None if self.keys is None else self.beside(self.keys)

    def certs_folder(self) -> Path | None:
        """The folder with certificates that the file names, made absolute.

        Raises:
            ConfigurationError: the path needs a variable that is not set.
        """
        return None if self.broker.certs is None else self.beside(self.broker.certs)

    def address(self, device: str, url: str | None = None, password_file: Path | None = None) -> BrokerAddress:
        """The broker as one device reaches it.

        Args:
            url: in place of the file's.
            password_file: in place of the file's.

        Raises:
            ConfigurationError: there is no such device, or its certificates or its password are missing.
        """
        self._entry(device)
        return self.address_for(device, url, password_file)

    def address_for(self, name: str, url: str | None = None, password_file: Path | None = None) -> BrokerAddress:
        """The broker as anybody reaches it: an operator has a certificate or a password too.

        Args:
            name: who, as the broker knows them.

        Raises:
            ConfigurationError: the certificates or the password are missing.
        """
        b, certificates = self.broker, None
        if password_file is None and b.password_file is not None:
            password_file = self.beside(b.password_file)
        password = read_password(password_file, name)
        if (certs := self.certs_folder()) is not None:
            certificates = Certificates.of(certs, name, password=password is not None)
        protocol: Protocol = "5" if b.protocol == "5" else "3.1.1"
        return BrokerAddress.from_url(
            url or b.url, password=password, protocol=protocol, certificates=certificates, user=name
        )

    def group(self, name: str) -> tuple[str, ...]:
        """The devices of a group, in the order of the file; `all` is every device.

        Raises:
            ConfigurationError: no device is in it.
        """
        found = tuple(device for device, entry in self.devices.items() if name == "all" or name in entry.groups)
        if not found:
            known = sorted({group for entry in self.devices.values() for group in entry.groups} | {"all"})
            hint = yaml_schema.nearest(name, known, "its groups are")
            raise ConfigurationError(f"{self.path} has no device in the group {name!r}; {hint}")
        return found

    def check_model(self, device: str, name: str, manifest: Manifest) -> None:
        """What a device asks of one of its models, held against the model. For its links see `refused_links`.

        Args:
            name: the model's.
            manifest: of the model's bundle.

        Raises:
            ConfigurationError: lists every contradiction.
        """
        self._entry(device)
        model, faults = self.models[name], []
        instruction = manifest.instruction
        if manifest.task != "generate":
            if model.system is not None:
                faults.append(f"the model {name!r} has a system message, and its bundle's task is {manifest.task}.")
        elif manifest.chat_template is None:
            faults.append(
                f"the bundle of the model {name!r} has no chat template, and a device is asked in messages; "
                "take an instruction-tuned checkpoint."
            )
        else:
            faults += self._check_template(name, manifest)
        if model.system is not None and instruction not in (None, model.system):
            faults.append(
                f"the model {name!r} has a system message here, but its bundle has an instruction baked in "
                f"({instruction!r}); leave out `system`, or convert without --prefix."
            )
        if faults:
            raise ConfigurationError("\n".join(f"{self.path}, device {device!r}: {fault}" for fault in faults))

    def refused_links(
        self, device: str, name: str, manifest: Manifest, check_schema: Callable[[Mapping[str, Any], int | None], None]
    ) -> Mapping[str, str]:
        """The links of a device that may ask one of its models, and that it cannot answer: why; see `why_refused`."""
        max_new = self.models[name].max_new
        asked = [link for link, models in self.asking(device) if name in models]
        whys = {link.name: why_refused(link, name, manifest, max_new, check_schema) for link in asked}
        return {link: why for link, why in whys.items() if why}

    def asking(self, device: str) -> list[tuple[Link, tuple[str, ...]]]:
        """The links of a device as the file has them, each with the models that it may ask.

        Raises:
            ConfigurationError: the file has no such device.
        """
        entry = self._entry(device)
        return [
            (link, link.may_ask(entry.models, routed=entry.router is not None))
            for link in self.links
            if link.name in entry.links
        ]

    def _check_template(self, name: str, manifest: Manifest) -> list[str]:
        """What speaks against the messages that requests and links send: a system message, if there is one, and a
        user's."""
        from device_runtime.engine.chat import render_chat  # loads no jinja2 before it has something to render

        system = manifest.instruction or self.models[name].system
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": "21.5"})
        try:
            render_chat(manifest.chat_template, messages, manifest.tokenizer.special_tokens)
        except StonechatError as error:
            what = "a system message and a user's" if system else "a user's message"
            return [f"the chat template of the model {name!r} cannot render {what}; every request would fail: {error}"]
        return []

    def beside(self, path: str) -> Path:
        """A path in the file is relative to it."""
        return Path(os.path.realpath(self.path.parent / expand(path)))  # Path.resolve ends at links that go in a circle

    def _entry(self, device: str) -> Device:
        if device not in self.devices:
            hint = yaml_schema.nearest(device, list(self.devices), "its devices are")
            raise ConfigurationError(f"{self.path} has no device {device!r}; {hint}")
        return self.devices[device]


def _answer_of(bundle: Path) -> Mapping[str, Any] | None:
    """The JSON schema of the task that a bundle on this machine was trained for; None where there is no such bundle.

    A bundle that cannot be read is reported where it is opened.
    """
    from device_runtime.bundle.manifest import MANIFEST, Manifest  # what a client of this module does not need
    from device_runtime.tasks.purpose import Purpose
    from device_runtime.update.active import resolve

    try:
        purpose = Purpose.of_manifest(Manifest.from_json((resolve(bundle) / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, UnicodeError, StonechatError):
        return None
    return None if purpose is None else purpose.answer


def load(path: Path | str) -> Fleet:
    """Read a fleet file.

    Raises:
        ConfigurationError: lists every fault with file:line:column.
    """
    return replace(yaml_schema.load(path, FLEET, check_fleet), path=Path(path))


def check_fleet(fleet: Fleet, report: Report) -> None:
    """What concerns several fields."""
    links = {link.name: link for link in fleet.links}
    served = {name for entry in fleet.devices.values() for name in entry.models}
    for number, rule in enumerate(fleet.router.rules if fleet.router is not None else ()):
        if rule.model not in served:
            report.add_at(("router", "rules", number, "model"), f"no device has the model {rule.model!r}")
    for device, entry in fleet.devices.items():
        _check_by_itself(device, entry, report)
        for number, rule in enumerate(entry.router.rules if entry.router is not None else ()):
            if rule.model not in entry.models:
                text = f"this device has no model {rule.model!r}; it has {', '.join(entry.models)}"
                report.add_at(("devices", device, "router", "rules", number, "model"), text)
        for link in (links[name] for name in entry.links if name in links):
            if link.model not in (None, *entry.models):
                has = ", ".join(map(repr, entry.models))
                text = f"link {link.name!r} wants the model {link.model!r}; this device has {has}. Add it to `model`"
                report.add_at(("devices", device, "links"), text)
    check_ways(fleet, report)
    for number, names in circles(fleet.links):
        text = f"its answers come back to it by way of {', '.join(map(repr, names))}, and so without end"
        report.add_at(("links", number, "to"), text)


def _check_by_itself(device: str, entry: Device, report: Report) -> None:
    """What a firmware's own MQTT client does not do: it answers requests, and nothing else."""
    if not entry.by_itself:
        return
    bridge = "a board on MQTT by itself answers requests only; put `stonechat bridge` at its serial line, or"
    for name in ("links", "pool", "escalate", "records", "router"):
        if getattr(entry, name):
            report.add_at(("devices", device, name), f"{bridge} leave out `{name}`")
    if len(entry.models) > 1:
        report.add_at(("devices", device, "model"), f"{bridge} give it one model: it has {len(entry.models)} here")


def expand(text: str) -> str:
    """`text` with ${NAME} and ${NAME:-default} replaced from the environment.

    Raises:
        ConfigurationError: a variable without default is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise ConfigurationError(f"{text!r} needs the environment variable {match[1]}, which is not set.")
        return found

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}", value, text)


def _id(what: str) -> Text:
    return Text(f"a {what} id", check=lambda text: check_id(what, text))


def _broker_url(url: str) -> str:
    BrokerAddress.from_url(url)
    return url


_LIMITS = Record(
    RateLimits,
    {name: Field(Number(0.1, 1e6, "a second"), rate) for name, rate in asdict(RateLimits()).items()},
    expected="a mapping such as {readings: 5000}",
)

FLEET = Record(
    Fleet,
    {
        "schema": Field(Integer(1, 1)),
        "home_assistant": Field(Boolean(), True),
        "keys": Field(Text("the path of a folder with public keys"), None),
        "router": Field(ROUTING, None),
        "broker": Field(
            Record(
                Broker,
                {
                    "url": Field(Text("a broker URL", check=_broker_url), "mqtt://localhost:1883"),
                    "protocol": Field(Choice(("5", "3.1.1")), "5"),
                    "certs": Field(Text("the path of a folder with certificates"), None),
                    "password_file": Field(Text("the path of a file with a password"), None),
                },
                "a mapping such as {url: 'mqtt://broker.local'}",
            ),
            Broker(),
        ),
        "models": Field(
            MapOf(
                _id("model"),
                Record(
                    ModelEntry,
                    {
                        "bundle": Field(Text("the path of a bundle")),
                        "threads": Field(Integer(1, 256, "threads"), None),
                        "max_new": Field(Integer(1, 1_000_000, "tokens"), None),
                        "system": Field(Text("a system message"), None),
                        "keep_mib": Field(Number(0, 1_000_000, "MiB"), None),
                    },
                    "a mapping such as {bundle: build/smollm2-135m}",
                ),
            )
        ),
        "devices": Field(
            MapOf(
                _id("device"),
                Record(
                    Device,
                    {
                        "model": Field(OneOrMore(Reference("model", "models")), to="models"),
                        "links": Field(ListOf(Reference("link", "links"), "a list of link names"), ()),
                        "pool": Field(_id("pool"), None),
                        "queue": Field(Integer(1, 10_000, "requests"), 8),
                        "groups": Field(ListOf(_id("group"), "a list of group names"), ()),
                        "limits": Field(_LIMITS, RateLimits()),
                        "escalate": Field(ESCALATION, None),
                        "router": Field(ROUTING, None),
                        "records": Field(RECORDING, None),
                        "by_itself": Field(Boolean(), False),
                    },
                    "a mapping such as {model: assistant, links: [too-hot]}",
                ),
            )
        ),
        "links": Field(ListOf(LINK, "a list of links", unique="name"), ()),
    },
    another={
        "task": "this is a task file, and no fleet file; check it with `stonechat task check`",
        "soc": "this is a board file, and no fleet file; `stonechat boards show FILE` reads it",
    },
)
