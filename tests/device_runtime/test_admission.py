"""What a device asks of a signed bundle before it installs it: no way back, no old date, no other board."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle.admission import check_admission, warn_if_expired
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Manifest, Trial, utc_time
from device_runtime.errors import BundleError, DoesNotFitError, SignatureError
from tests.support.signed_bundles import plain_bundle

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DATED: dict[str, Any] = {"issued": "2026-03-01T00:00:00Z", "expires": "2026-07-01T00:00:00Z"}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return with_fields(tmp_path)


def with_fields(tmp_path: Path, **fields: Any) -> Manifest:
    return Bundle.open(plain_bundle(tmp_path / "bundle", **fields)).manifest


def test_an_older_security_counter_is_refused(manifest: Manifest) -> None:
    with pytest.raises(SignatureError, match="security counter 3; this device has confirmed 4") as caught:
        check_admission(manifest, security_counter=4, now=NOW)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("confirmed", [0, 2, 3])
def test_the_same_or_a_newer_security_counter_is_taken(manifest: Manifest, confirmed: int) -> None:
    check_admission(manifest, security_counter=confirmed, now=NOW)


@pytest.mark.parametrize("now", ["2026-07-01T00:00:00Z", "2027-01-01T00:00:00Z", "9999-12-31T00:00:00Z"])
def test_expired_is_refused(tmp_path: Path, now: str) -> None:
    manifest = with_fields(tmp_path, **DATED)
    with pytest.raises(SignatureError, match=f"good until 2026-07-01T00:00:00Z, and the clock says {now}") as caught:
        check_admission(manifest, now=utc_time(now))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("now", ["2026-03-01T00:00:00Z", "2026-06-30T23:59:59Z"])
def test_until_its_date_it_is_taken(tmp_path: Path, now: str) -> None:
    check_admission(with_fields(tmp_path, **DATED), now=utc_time(now))


@pytest.mark.parametrize("now", ["1970-01-01T00:00:42Z", "2024-12-31T23:59:59Z", "2026-02-28T23:59:59Z"])
def test_with_a_clock_that_was_never_set_a_bundle_with_a_date_has_to_wait(tmp_path: Path, now: str) -> None:
    with pytest.raises(SignatureError, match=f"clock says {now}, which is before .* Set the clock"):
        check_admission(with_fields(tmp_path, **DATED), now=utc_time(now))


def test_a_date_without_its_beginning_is_held_against_a_fixed_one(tmp_path: Path) -> None:
    manifest = with_fields(tmp_path, expires=DATED["expires"])
    check_admission(manifest, now=NOW)
    with pytest.raises(SignatureError, match="Set the clock"):
        check_admission(manifest, now=datetime(1980, 1, 1, tzinfo=UTC))


def test_without_a_date_the_clock_does_not_matter(manifest: Manifest) -> None:
    check_admission(manifest, now=datetime(1970, 1, 1, tzinfo=UTC))


def test_what_runs_goes_on_after_its_date_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = with_fields(tmp_path, **DATED)
    with caplog.at_level(logging.WARNING, "stonechat"):
        warn_if_expired(manifest, NOW)
        warn_if_expired(manifest, datetime(1970, 1, 1, tzinfo=UTC))
        assert not caplog.records
        warn_if_expired(manifest, datetime(2026, 8, 1, tzinfo=UTC))
    assert "it goes on" in caplog.text


def test_for_another_board_is_refused(tmp_path: Path) -> None:
    manifest = with_fields(tmp_path, boards=("raspberry-pi-5-4gb", "raspberry-pi-4-2gb"))
    with pytest.raises(DoesNotFitError, match="raspberry-pi-5-4gb, raspberry-pi-4-2gb, and this is esp32-s3") as caught:
        check_admission(manifest, board="esp32-s3", now=NOW)
    assert caught.value.exit_code == 5
    check_admission(manifest, board="raspberry-pi-4-2gb", now=NOW)
    check_admission(manifest, board=None, now=NOW)


def test_for_no_board_in_particular_is_taken_by_each(manifest: Manifest) -> None:
    check_admission(manifest, board="esp32-s3", now=NOW)


def test_the_fields_survive_being_written_and_read(tmp_path: Path) -> None:
    manifest = with_fields(tmp_path, boards=("esp32-s3",), trial=Trial("2+2?", "4", 8), **DATED)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.trial == Trial("2+2?", "4", 8)


@pytest.mark.parametrize("field", ["expires", "issued"])
@pytest.mark.parametrize("value", ["soon", "2026-07-01T00:00:00", "2026-07-01T00:00:00+02:00", "2026-13-01T00:00:00Z"])
def test_a_date_that_is_none_is_named(tmp_path: Path, field: str, value: str) -> None:
    folder = plain_bundle(tmp_path / "bundle")
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(fields | {field: value}))
    with pytest.raises(BundleError, match=f"{field} is .*expected a date-time in UTC"):
        Bundle.open(folder)
