"""A `pi` bundle of before an upgrade, whose graph this version does not run: each way in says so, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.bundle.admission import check_admission
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.engine.backends import open_backend
from device_runtime.engine.backends.tracing import trace_tensors
from device_runtime.errors import BundleError
from device_runtime.update.active import read_state
from device_runtime.update.install import install
from device_runtime.update.slots import lock
from device_runtime.update.state import TrialLimits
from device_runtime.update.trial import roll_back, try_bundle
from tests.support.signed_bundles import COUNTS, plain_bundle
from tests.support.update_bundles import confirm

SAYS = "3 signatures .*Convert the checkpoint again; .*stonechat deploy"


@pytest.fixture
def earlier(tmp_path: Path) -> Bundle:
    """As version 0.1.0 made them until it had one signature: one for a token, one for a few, one for many."""
    return Bundle.open(plain_bundle(tmp_path / "earlier", counts={"pi": replace(COUNTS, signatures=3)}))


WAYS: dict[str, Callable[[Bundle], object]] = {
    "it is opened": open_backend,
    "its layers are traced": lambda bundle: trace_tensors(bundle, [5], ["x"]),
    "a device is asked to install it": lambda bundle: check_admission(bundle.manifest),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_message_names_what_was_found_and_the_next_step(earlier: Bundle, way: str) -> None:
    with pytest.raises(BundleError, match=SAYS):
        WAYS[way](earlier)


def test_check_does_not_call_it_fit(earlier: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from toolkit.cli import main

    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        "schema: 1\nbroker: {url: 'mqtt://localhost'}\n"
        f"models: {{m: {{bundle: {earlier.path}}}}}\ndevices: {{pi-1: {{model: m}}}}\n"
    )
    for command, code in (([str(earlier.path), "--board", "raspberry-pi-5-4gb"], 1), ([str(fleet)], 2)):
        assert main(["check", *command]) == code  # of a fleet file it is a fault among others
        assert "3 signatures" in capsys.readouterr().err


def test_a_trial_fails_with_the_reason(pi_bundle: Path, changed: Callable[..., Path]) -> None:
    counts = json.loads((pi_bundle / MANIFEST).read_text())["counts"]
    counts["pi"]["signatures"] = 3
    found = try_bundle(changed(pi_bundle, counts=counts), TrialLimits())
    assert isinstance(found, str)
    assert "3 signatures" in found


def test_a_device_does_not_go_back_to_it_by_hand(earlier: Bundle, tmp_path: Path) -> None:
    """The service would not start again."""
    folder = tmp_path / "slots"
    for number in (1, 2):
        bundle = plain_bundle(tmp_path / f"bundle-{number}", number)
        with lock(folder, make=True) as slots:
            install(bundle, slots)
            confirm(slots)
    state = read_state(folder)
    assert state.previous is not None
    manifest = folder / state.previous / MANIFEST
    fields = json.loads(manifest.read_text())
    fields["counts"]["pi"]["signatures"] = 3
    manifest.write_text(json.dumps(fields))
    with lock(folder) as slots, pytest.raises(BundleError, match=SAYS):
        roll_back(slots)
    assert read_state(folder) == state
