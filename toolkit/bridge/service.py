"""Connects a microcontroller on a serial port to MQTT."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from device_runtime.bridge.link import Link
from device_runtime.bridge.model import SerialModel
from device_runtime.bridge.timing import Timing
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MODEL
from device_runtime.device.extensions.updates import UpdatePlan
from device_runtime.device.models import DeviceModels
from device_runtime.device.service import Service
from device_runtime.device.watchdog import ServiceManager
from device_runtime.errors import ConfigurationError
from device_runtime.fleet.file import Fleet, ModelEntry, load
from device_runtime.fleet.settings import DeviceConfig, ModelSettings
from device_runtime.mqtt.address import BrokerAddress, Certificates, read_password
from device_runtime.mqtt.topics import check_id, is_id
from device_runtime.update.active import is_slot_folder, open_bundle, read_state
from device_runtime.update.policy import Policy
from toolkit.bridge.board_updates import BoardUpdates, hello_of
from toolkit.device.installed import fits_on
from toolkit.device.service import default_state_dir, device_models, log_to_stderr, run_until_stopped

__all__ = ["bridge"]

DEFAULT_MODEL = "default"  # what a board's model is called whose bundle has no name that is an id
POOL_GRACE_S = 3.0  # that an answer of a pool waits for a lost board: a reset is over by then, and others are waiting

log = logging.getLogger("stonechat.bridge")


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
    board: str | None = None,
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
        board: the board's id or file, for updates; None is what its firmware says.
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
    models = _models(device, fleet, bundle, keys)
    updates: BoardUpdates | None = None
    if models.slot_folders:
        try:
            updates = BoardUpdates.find(port, baud, board, wait_s=wait_s, keys=models.trust.keys)
            models = replace(models, probe=updates.probe)
        except ConfigurationError as error:  # somebody else's firmware, or a single slot: trials are held here
            if board is not None:
                raise
            log.info("no updates over the air for the board on %s: %s", port, error)
    elif board is not None:
        raise ConfigurationError("--board is for updates, which need a slot folder as --bundle: docs/guides/bridge.md.")
    else:
        log.info(
            "no updates over the air for the board on %s: the bridge has no slot folder to keep bundles in; make one "
            "with `stonechat slots install`, and name it with --bundle",
            port,
        )
    # what is wrong with a bundle is said before the broker is asked; a trial is held where it is seen
    runs = None if models.trial_is_due else _bundle(models, manager)
    state_dir = state_dir or default_state_dir(device)
    if fleet is not None:
        config = fleet.device(device, fleet.address(device, broker_url, password_file), state_dir)
    else:
        config = _without_fleet(
            device, next(iter(models.entries), DEFAULT_MODEL), broker_url, certs, state_dir, password_file
        )
    timing = Timing(grace_s=POOL_GRACE_S) if config.pool else Timing()
    model = SerialModel(Link(port, baud, timing), runs)

    def open_board(_: str) -> SerialModel:
        with model.updating():
            if models.trial_is_due:
                service.say_trying()
            now = _bundle(models, manager)
            if updates is not None and now is not None and not _runs(port, baud, now, wait_s):
                log.info("the board on %s runs something else than %s; it is brought there", port, now.manifest.name)
                updates.bring(now)
            model.use(now)
        return model.open(wait_s, lambda: service.stopping)

    plan = _plan(models, updates) if updates is not None else None
    service = Service(config, open_board, manager, model, updates=plan)
    try:
        run_until_stopped(service, wait_for_broker=wait_for_broker)
    finally:
        model.close()


def _models(device: str, fleet: Fleet | None, bundle: Path | None, keys: Path | None) -> DeviceModels:
    """The one model of a board, as the fleet file or a path names it; none: the board says what it runs."""
    entries = dict(fleet.models_of(device)) if fleet is not None else {}
    if fleet is not None and len(entries) > 1:
        raise ConfigurationError(f"{device!r} has {len(entries)} models in {fleet.path}; a board runs one.")
    if bundle is not None:
        entries = {name: ModelEntry(str(bundle)) for name in entries or (_name_of(bundle),)}
    return device_models(device, fleet, keys, entries)


def _name_of(bundle: Path) -> str:
    """What a model without a fleet file is called: as its bundle; with an empty slot folder as the one on trial."""
    state = read_state(bundle) if is_slot_folder(bundle) else None
    if state is not None and state.active is None and state.trial is not None:
        bundle = bundle / state.trial.slot
    name = open_bundle(bundle).manifest.name
    return name if is_id(name) else DEFAULT_MODEL


def _bundle(models: DeviceModels, manager: ServiceManager) -> Bundle | None:
    """What the board runs, if it was named, after the trial that is due: trusted, and not at odds with the file."""
    for name in models.entries:
        opened = Bundle.open(models.ready(name, manager), trust=models.may_run)
        models.check(name, opened.manifest)
        return opened
    return None


def _runs(port: str, baud: int, bundle: Bundle, wait_s: float) -> bool:
    """Whether the board says that it runs this bundle's model."""
    return bytes.fromhex(bundle.manifest.files[MODEL].sha256)[:8] == hello_of(port, baud, wait_s).model


def _plan(models: DeviceModels, updates: BoardUpdates) -> UpdatePlan:
    """What the board takes over the air."""
    policy = Policy(models.trust, updates.board.id, fits_on(updates.board))
    return UpdatePlan(models.slot_folders, policy, lambda: updates.moved)


def _without_fleet(
    device: str,
    model: str,
    broker_url: str | None,
    certs: Path | None,
    state_dir: Path,
    password_file: Path | None,
) -> DeviceConfig:
    """What the service needs."""
    check_id("device", device)
    broker = BrokerAddress.from_url(
        broker_url or "mqtt://localhost:1883",
        password=read_password(password_file, device),
        certificates=Certificates.of(certs, device) if certs is not None else None,
    )
    return DeviceConfig(device, broker, state_dir, (ModelSettings(model),))
