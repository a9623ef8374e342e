"""Where a broker is, and what of our secrets shows: nothing."""

from __future__ import annotations

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.address import BrokerAddress, Certificates


@pytest.mark.parametrize(
    "url",
    ["mqtt://me:secret@h:99999", "mqtt://me:secret/x@h", "mqtt://me:secret#x@h", "mqtt://me:12#secret@h",
     "mqtt://me:secret?x@h", "http://me:secret@h", "me:secret@h", "mqtt://me:secret@[::1"],
)  # fmt: skip
def test_a_password_in_a_url_is_not_repeated_wherever_else_the_url_is_wrong(url):
    with pytest.raises(ConfigurationError, match="holds a password") as e:
        BrokerAddress.from_url(url)
    assert "secret" not in str(e.value)


def test_nothing_of_a_url_is_left_out_silently():
    with pytest.raises(ConfigurationError, match="cannot be used"):
        BrokerAddress.from_url("mqtt://h#topic")


def test_a_proof_is_the_same_at_each_start_and_another_for_each_secret(tmp_path):
    for name, content in (("a", "one"), ("b", "two")):
        (tmp_path / f"{name}.key").write_text(content)
    own = [Certificates(own=tmp_path / "x.crt", key=tmp_path / f"{name}.key") for name in "aab"]
    first, again, other = (BrokerAddress("h", tls=True, certificates=c).proof() for c in own)
    word, another = (BrokerAddress("h", user="me", password=p).proof() for p in ("secret", "secret2"))
    assert first == again
    assert len({first, other, word, another}) == 4
    assert all(len(proof) == 16 for proof in (first, other, word, another))
    assert BrokerAddress("h").proof() == ""


def test_a_key_that_cannot_be_read_is_named(tmp_path):
    broker = BrokerAddress("h", tls=True, certificates=Certificates(key=tmp_path / "no.key"))
    with pytest.raises(ConfigurationError, match=r"no\.key cannot be read: No such file"):
        broker.proof()
