"""docs/guides/bundles.md: its commands work as they stand there, and it names what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from device_runtime.bundle.archive import Archive
from device_runtime.bundle.manifest import MAX_MANIFEST_BYTES
from device_runtime.bundle.trust import MAX_SIGNATURE_BYTES
from tests.support.signed_bundles import FILES, plain_bundle
from toolkit.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "bundles.md").read_text(encoding="utf-8")


def test_the_first_commands_work_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    plain_bundle(tmp_path / "smollm2")
    commands = re.findall(r"(?m)^stonechat (.*)$", PAGE.split("```")[1])
    assert len(commands) == 4
    for command in commands:
        arguments = [a.replace("~", str(tmp_path)) for a in shlex.split(command, comments=True)]
        assert main(arguments) == 0, command
    with Archive.open("smollm2.zip") as archive:
        assert archive.manifest.security_counter == 2
        assert archive.manifest.trial is not None and archive.manifest.trial.expect == "4"


def test_the_limits_and_names_are_those_of_the_code() -> None:
    assert MAX_MANIFEST_BYTES == 2**20 and "`manifest.json` may\nhave 1 MiB" in PAGE
    assert MAX_SIGNATURE_BYTES == 64 * 1024 and "`manifest.sig` 64 KiB" in PAGE
    assert all(name in PAGE for name in FILES)
