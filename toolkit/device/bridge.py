"""Connects a microcontroller on a serial port to MQTT."""

from __future__ import annotations

from pathlib import Path

from device_runtime.bridge.link import Link
from device_runtime.bridge.model import SerialModel
from device_runtime.bridge.timing import Timing
from device_runtime.bundle.folder import Bundle
from device_runtime.device.models import DeviceModels
from device_runtime.device.service import Service
from device_runtime.device.watchdog import ServiceManager
from device_runtime.errors import ConfigurationError
from device_runtime.fleet.file import Fleet, ModelEntry, load
from device_runtime.fleet.settings import DeviceConfig, ModelSettings
from device_runtime.mqtt.address import BrokerAddress, Certificates, read_password
from device_runtime.mqtt.topics import check_id, is_id
from toolkit.device.service import default_state_dir, device_models, log_to_stderr, run_until_stopped

__all__ = ["bridge"]

POOL_GRACE_S = 3.0  # that an answer of a pool waits for a lost board: a reset is over by then, and others are waiting


def bridge(
    path: Path | None,
    device: str,
    *,
    port: str,
    baud: int,
    bundle: Path | None = None,
    broker_url: str | None = None,
    certs: Path | None = None,
    state_dir: Path | None = None,
    password_file: Path | None = None,
    keys: Path | None = None,
    wait_s: float = 5.0,
    wait_for_broker: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        path: the fleet file, if there is one.
        device: the device's id.
        port: as pyserial names it.
        baud: symbols a second of the port.
        bundle: what the board runs, a bundle or a slot folder.
        broker_url, certs, password_file, keys: in place of the file's.
        state_dir: None is this user's folder for it.
        wait_s: for the board to answer.
        wait_for_broker: try until there is a broker.

    Raises:
        StonechatError: the device cannot serve.
    """
    log_to_stderr()
    manager = ServiceManager.from_environment()
    if path is not None and certs is not None:
        raise ConfigurationError("--certs is for a bridge without a fleet file; with one, name the folder there.")
    fleet = load(path) if path is not None else None
    runs, models = _bundle(device, fleet, bundle, keys, manager)
    state_dir = state_dir or default_state_dir(device)
    if fleet is not None:
        config = fleet.device(device, fleet.address(device, broker_url, password_file), state_dir)
    else:
        config = _without_fleet(device, runs, broker_url, certs, state_dir, password_file)
    timing = Timing(grace_s=POOL_GRACE_S) if config.pool else Timing()
    model = SerialModel(Link(port, baud, timing), runs)

    def open_board(_: str) -> SerialModel:
        opened = model.open(wait_s, lambda: service.stopping)
        for name in models.entries:  # now the board has said which schemas it has
            if runs is not None:
                models.check(name, runs.manifest, opened.check_schema)
        return opened

    service = Service(config, open_board, manager, model)
    try:
        run_until_stopped(service, wait_for_broker=wait_for_broker)
    finally:
        model.close()


def _bundle(
    device: str, fleet: Fleet | None, bundle: Path | None, keys: Path | None, manager: ServiceManager
) -> tuple[Bundle | None, DeviceModels]:
    """What the board runs, as far as it was named: trusted, and not at odds with the fleet file."""
    entries = dict(fleet.models_of(device)) if fleet is not None else {}
    if fleet is not None and len(entries) > 1:
        raise ConfigurationError(f"{device!r} has {len(entries)} models in {fleet.path}; a board runs one.")
    if bundle is not None:
        entries = {name: ModelEntry(str(bundle)) for name in entries or ("",)}
    models = device_models(device, fleet, keys, entries)
    for name in entries:
        opened = Bundle.open(models.ready(name, manager), trust=models.trust)
        models.check(name, opened.manifest, lambda schema, max_new: None)
        return opened, models
    return None, models


def _without_fleet(
    device: str,
    bundle: Bundle | None,
    broker_url: str | None,
    certs: Path | None,
    state_dir: Path,
    password_file: Path | None,
) -> DeviceConfig:
    """What the service needs. It takes no updates: the model is in the board's flash, and goes there over a cable."""
    check_id("device", device)
    broker = BrokerAddress.from_url(
        broker_url or "mqtt://localhost:1883",
        password=read_password(password_file, device),
        certificates=Certificates.of(certs, device) if certs is not None else None,
    )
    name = bundle.manifest.name if bundle is not None and is_id(bundle.manifest.name) else "default"
    return DeviceConfig(device, broker, state_dir, (ModelSettings(name),))
