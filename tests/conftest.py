"""Small models for every test: checkpoints of tests/data, converted once a session."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.c_objects import kept_folder

# The same examples on every machine, so that a change is judged by what it changes; and a busy machine is no fault of
# what is tested. `pytest --hypothesis-profile=search` draws new examples each time, and prints how to repeat one.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("stonechat", **PATIENT, derandomize=True)
settings.register_profile("search", **PATIENT, print_blob=True)
settings.load_profile("stonechat")

# A shell that starts `make test` in the background has it ignore Ctrl-C, and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

STARTED_S = pytest.StashKey[float]()  # on the monotonic clock

CHECKPOINTS = Path(__file__).parent / "data" / "checkpoints"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow-budget-s", type=float, metavar="S",
        help="slow tests that would begin later than S seconds after the start are skipped, and counted as such",
    )  # fmt: skip


def pytest_sessionstart(session: pytest.Session) -> None:
    session.stash[STARTED_S] = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    budget_s = item.config.getoption("--slow-budget-s")
    if budget_s is None or item.get_closest_marker("slow") is None:
        return
    if time.monotonic() - item.session.stash[STARTED_S] > budget_s:
        pytest.skip(f"left out: the {budget_s:g} s for slow tests are used up")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What runtimes keep between starts goes to a folder of the session, not to the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STONECHAT_CACHE", str(folder))
        patch.delenv("STONECHAT_NATIVE_LOG", raising=False)
        (folder / "native").symlink_to(kept_folder("native"))  # the C engine, named by its sources and their compiler
        yield folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A small checkpoint as a bundle, by name: `converted("gqa-tied")`. Read only: copy it to change it."""
    bundles: dict[tuple[str, str], Path] = {}

    def convert_once(name: str, profile: str = "pi") -> Path:
        if (name, profile) not in bundles:
            from converters.checkpoints import open_checkpoint
            from converters.convert import Options, convert

            folder = tmp_path_factory.mktemp(f"{name}-{profile}") / name
            convert(open_checkpoint(CHECKPOINTS / name), folder, Options(profile, fast=name != "gqa-tied"))
            bundles[name, profile] = folder
        return bundles[name, profile]

    return convert_once


@pytest.fixture(scope="session")
def pi_bundle(converted: Callable[..., Path]) -> Path:
    """gqa-tied: a chat template, a prefix of one token, context 256, and a quality report. Read only."""
    return converted("gqa-tied")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a bundle with other fields in its manifest."""

    def change(bundle: Path, **fields: Any) -> Path:
        copy = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(bundle, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | fields))
        return copy

    return change


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
