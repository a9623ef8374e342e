"""Back to an earlier bundle: its manifest is signed again with a higher counter, so that devices take it.

A device refuses a bundle whose `security_counter` is below one that it has confirmed. So the way back is a way
forward: the earlier files under a manifest that counts higher than the bundle that is to be left.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.errors import BundleError, ConfigurationError
from toolkit.rollout.files import RolloutFiles, writing
from toolkit.rollout.rollout import DevicePhase, Plan, Rollout
from toolkit.signing.bundles import sign_bundle
from toolkit.signing.keys import SigningKey

__all__ = ["earlier_bundle", "way_back"]


def way_back(
    left: Rollout, files: RolloutFiles, new_id: str, bundle: Path | None, keys: Sequence[SigningKey]
) -> Rollout:
    """A roll-out that brings the devices of `left` back.

    Args:
        left: the roll-out whose bundle is to be left.
        new_id: of the roll-out that is made.
        bundle: where to go back to, a folder or a packed bundle; None: what the roll-out before `left` has brought.

    Raises:
        ConfigurationError: no device runs the bundle of `left`, or there is no earlier one.
        BundleError: the earlier bundle is damaged.
        DiskFullError: there is no room for its files.
    """
    devices = tuple(
        name
        for name, device in left.devices.items()
        if device.phase in (DevicePhase.CONFIRMED, DevicePhase.UPDATING)  # one that is updating may have confirmed
    )
    if not devices:
        raise ConfigurationError(
            f"No device of roll-out {left.plan.id} has taken its bundle, so there is nothing to go back from."
        )
    source = Bundle.open(files.keep_bundle(new_id, bundle) if bundle else earlier_bundle(left, files), verify=True)
    if source.manifest_sha256 == left.plan.manifest_sha256:
        raise ConfigurationError(f"{source.path} is the bundle of roll-out {left.plan.id} itself; name an earlier one.")
    counter = 1 + max(_counter(Path(left.plan.bundle)), source.manifest.security_counter)
    folder = files.bundle_folder(new_id)
    with writing(folder):
        if source.path != folder:
            folder.mkdir(parents=True)
            for name in (MANIFEST, *source.manifest.files):
                shutil.copyfile(source.path / name, folder / name)
        signed = sign_bundle(folder, {"security_counter": counter}, keys)
    opened = Bundle.open(folder, verify=True)
    plan = replace(
        left.plan,
        id=new_id,
        bundle=str(folder),
        manifest_sha256=opened.manifest_sha256,
        name=signed.manifest.name,
        version=signed.manifest.version,
        devices=devices,
        url=None,  # it is that of the bundle that is left
    )
    return Rollout.of(plan)


def earlier_bundle(left: Rollout, files: RolloutFiles) -> Path:
    """The bundle that the devices of a roll-out have got before it.

    Raises:
        ConfigurationError: no earlier roll-out of this user has brought them one that is still there.
    """
    for rollout_id in reversed(files.ids()):
        if rollout_id >= left.plan.id:
            continue
        plan = files.read(rollout_id).plan
        path = Path(plan.bundle)
        if _may_be_before(plan, left.plan) and _sha256_is(path, plan.manifest_sha256):
            return path
    raise ConfigurationError(
        f"No earlier roll-out is known here whose bundle the devices of {left.plan.id} had, and that is still on this "
        "disk; name the bundle to go back to with --bundle BUNDLE."
    )


def _may_be_before(plan: Plan, left: Plan) -> bool:
    return (
        plan.model == left.model
        and plan.manifest_sha256 != left.manifest_sha256
        and set(plan.devices) & set(left.devices) != set()
    )


def _sha256_is(path: Path, sha256: str) -> bool:
    try:
        return Bundle.open(path).manifest_sha256 == sha256
    except (BundleError, ConfigurationError):
        return False


def _counter(bundle: Path) -> int:
    try:
        return int(json.loads((bundle / MANIFEST).read_bytes())["security_counter"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"{bundle} cannot be read ({error}), so its security counter is unknown. Pack the earlier bundle with a "
            "higher one (`bundle pack --security-counter`) and deploy that."
        ) from None
