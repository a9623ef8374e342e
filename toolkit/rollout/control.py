"""Pausing and aborting a roll-out from outside of the process that carries it out; and how far it is, as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from device_runtime.errors import ConfigurationError
from toolkit.rollout.files import RolloutFiles, Wish
from toolkit.rollout.rollout import Rollout

__all__ = ["fields_of", "hold", "is_paused", "require_open"]


def require_open(rollout: Rollout) -> None:
    """Something can still be done about a roll-out.

    Raises:
        ConfigurationError: it has ended.
    """
    if rollout.ended:
        raise ConfigurationError(f"Roll-out {rollout.plan.id} is {rollout.stage.value} already.")


def hold(files: RolloutFiles, rollout_id: str, wish: Wish) -> Rollout:
    """Pause or abort; returns it as it is then.

    Raises:
        ConfigurationError: there is none of that id, or it has ended.
        UnreachableError: the process that carries it out does not answer.
        DiskFullError: the disk is full. It is as it was.
    """
    require_open(files.read(rollout_id))
    if files.is_carried_out(rollout_id):
        files.wish(rollout_id, wish)
        files.await_wish(rollout_id)
    rollout = files.read(rollout_id)  # again, as that process has left it
    if not (rollout.ended or files.is_carried_out(rollout_id)):  # also where that process has ended meanwhile
        rollout = rollout.abort() if wish == "abort" else replace(rollout, paused=True)
        files.write(rollout)
    return rollout


def is_paused(rollout: Rollout, files: RolloutFiles) -> bool:
    """Whether nobody carries it on at present."""
    return not rollout.ended and not (files.is_carried_out(rollout.plan.id) and not rollout.paused)


def fields_of(rollout: Rollout, files: RolloutFiles) -> dict[str, Any]:
    """As JSON."""
    return {
        "id": rollout.plan.id,
        "bundle": {"name": rollout.plan.name, "version": rollout.plan.version},
        "group": rollout.plan.group,
        "stage": rollout.stage.value,
        "carried_out": files.is_carried_out(rollout.plan.id),
        "canaries": list(rollout.canaries),
        "devices": {
            name: {"phase": d.phase.value, "message": d.message, "code": d.code, "tokens_per_s": d.tokens_per_s}
            for name, d in rollout.devices.items()
        },
    }
