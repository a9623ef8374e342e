"""What came from outside, in log lines and errors."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.records.log_lines import OneLine
from device_runtime.records.printable import counted, one_line, shown, without_secrets
from device_runtime.update.http_source import check_url


@given(st.text())
def test_a_line_is_one_line_and_moves_no_cursor(text):
    assert one_line(text).isprintable()


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 cases"), (1, "1 case"), (2, "2 cases"), ("1", "1 case"), ("?", "? cases"), (11, "11 cases")],
)
def test_one_thing_is_no_plural(number, said):
    assert counted(number, "case") == said


@given(st.text(), st.integers(1, 100))
def test_what_is_shown_is_short(text, limit):
    assert len(shown(text[:1] * 3, limit)) <= 10 * limit + 1


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("see https://anna:s3cret@host/x now", "see https://***@host/x now"),
        ("mqtt://anna:p/w#d@host:1883", "mqtt://***@host:1883"),
        ("http://host/a?token=s3cret", "http://host/a?***"),
        ("http://host/a", "http://host/a"),
        ("a@b.c, and no URL", "a@b.c, and no URL"),
    ],
)
def test_secrets_of_urls_are_masked(text, masked):
    assert without_secrets(text) == masked


@pytest.mark.parametrize(
    "url",
    ["https://anna:s3cret@host/x", "https://anna@host/s3cret/../x", "http://anna:s3cret/@host/", "ftp://a:s3cret@h"],
)
def test_a_url_of_a_bundle_holds_no_password_and_the_error_does_not_either(url):
    with pytest.raises(ConfigurationError) as error:
        check_url(url)
    assert "s3cret@" not in str(error.value) and ":s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["mqtt://anna:s3cret@host", "mqtt://anna:s3cret", "http://anna:s3cret@host", "mqtt://h/?s3cret"]
)
def test_an_error_about_a_broker_url_does_not_show_its_password(url):
    with pytest.raises(ConfigurationError) as error:
        BrokerAddress.from_url(url)
    assert "s3cret" not in str(error.value)


def test_a_log_record_is_one_line_without_passwords():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine("%(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("link %s: %s", "hot", "no field a\n12:00:00 FAKE \x1b[2J; https://anna:s3cret@host")
    assert stream.getvalue() == "link hot: no field a\\n12:00:00 FAKE \\x1b[2J; https://***@host\n"
