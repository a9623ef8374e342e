"""Who may sign: trusted, retired and unknown keys, and files that only look like keys and signatures."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime.bundle import trust as trust_module
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.trust import PublicKey, TrustStore, device_keys, parse_signatures, read_key, trusted
from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import ConfigurationError, SignatureError, StonechatError
from tests.support.signed_bundles import Workshop, plain_bundle
from toolkit.signing.keys import retire

# RFC 8032, section 7.1, test 1
RFC_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
    "5141438e7a100b"
)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def opened(folder: Path, trust: TrustStore) -> Bundle:
    return Bundle.open(folder, trust=trust)


def refused(folder: Path, trust: TrustStore, *words: str) -> None:
    with pytest.raises(SignatureError) as caught:
        opened(folder, trust)
    assert caught.value.exit_code == 4
    assert all(word in str(caught.value) for word in (str(folder), *words)), str(caught.value)


def test_a_signature_of_the_standard_is_one() -> None:
    key = PublicKey("rfc", RFC_KEY)
    assert key.has_signed(b"", RFC_SIGNATURE)
    assert not key.has_signed(b"x", RFC_SIGNATURE)
    assert not key.has_signed(b"", RFC_SIGNATURE[:-1])


def test_signed_by_a_trusted_key(shop: Workshop) -> None:
    folder = shop.signed()
    assert opened(folder, shop.trust).manifest.name == "noise"
    manifest, signature = ((folder / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    assert shop.trust.verify(manifest, signature) == shop.trusted.public.key_id


def test_unsigned_is_refused(shop: Workshop, tmp_path: Path) -> None:
    refused(plain_bundle(tmp_path / "unsigned"), shop.trust, "not signed", "plant-2026", "stonechat bundle sign")


def test_a_wrong_key_is_refused(shop: Workshop) -> None:
    refused(shop.signed("b", shop.stranger), shop.trust, shop.stranger.public.key_id, "does not know", "plant-2026")


def test_a_wrong_key_that_takes_a_trusted_ones_name_is_refused(shop: Workshop) -> None:
    folder = shop.signed("b", shop.stranger)
    text = (folder / "manifest.sig").read_text()
    (folder / "manifest.sig").write_text(text.replace(shop.stranger.public.key_id, shop.trusted.public.key_id))
    refused(folder, shop.trust, "is not what plant-2026")


def test_a_retired_key_is_refused_by_name(shop: Workshop) -> None:
    refused(shop.signed("b", shop.retired), shop.trust, f"signed by {shop.retired.public}", "retired")


def test_a_retired_key_that_is_still_among_the_trusted_is_refused(shop: Workshop) -> None:
    (shop.keys / "plant-2025.pub").write_text(shop.retired.public.to_text())
    refused(shop.signed("b", shop.retired), shop.trust, "plant-2025", "retired")


def test_while_keys_change_a_bundle_with_both_signatures_is_taken(shop: Workshop) -> None:
    folder = shop.signed("b", shop.retired, shop.trusted, shop.stranger)
    manifest, signature = ((folder / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    assert shop.trust.signers(manifest, signature) == [shop.trusted.public]


def test_several_keys_are_valid_at_once_until_one_is_retired(shop: Workshop) -> None:
    (shop.keys / "next.pub").write_text(shop.stranger.public.to_text())
    old, new = shop.signed("old"), shop.signed("new", shop.stranger)
    opened(old, shop.trust)
    opened(new, shop.trust)
    retire(shop.trusted.public, shop.keys)
    opened(new, shop.trust)
    refused(old, shop.trust, "plant-2026", "retired")


def test_keys_are_read_again_and_a_device_that_had_some_demands_them(shop: Workshop) -> None:
    before = shop.trust
    for path in shop.keys.rglob("*.pub"):
        path.unlink()
    with pytest.raises(ConfigurationError, match="has no"):
        before.reloaded()
    (shop.keys / "stranger.pub").write_text(shop.stranger.public.to_text())
    assert list(before.reloaded().keys) == [shop.stranger.public.key_id]


def test_a_device_whose_keys_are_all_retired_takes_nothing(shop: Workshop, tmp_path: Path) -> None:
    retire(shop.trusted.public, shop.keys)
    refused(plain_bundle(tmp_path / "unsigned"), shop.trust, "not signed")
    refused(shop.signed("b"), shop.trust, "retired", "it has none")


def test_a_device_without_keys_takes_unsigned_bundles_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_module, "_said", set())
    folder, store = plain_bundle(tmp_path / "unsigned"), TrustStore.load(tmp_path / "no-keys")
    with caplog.at_level(logging.WARNING, "stonechat"):
        for _ in range(3):
            opened(folder, store)
    assert [record.getMessage() for record in caplog.records] == [
        f"no key in {tmp_path}/no-keys: bundles are taken without a signature"
    ]


def test_an_engine_opens_only_what_is_signed(shop: Workshop, pi_bundle: Path) -> None:
    with pytest.raises(SignatureError, match="not signed"):
        LanguageModel.open(pi_bundle, trust=shop.trust)


def test_without_the_package_that_checks_signatures_nothing_is_accepted(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shop.signed()
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[sign\]'"):
        opened(folder, shop.trust)


def test_a_key_folder_that_somebody_names_must_hold_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a folder"):
        TrustStore.load(tmp_path / "nowhere", required=True)
    with pytest.raises(ConfigurationError, match=r"has no \*\.pub"):
        trusted(tmp_path)


def test_the_devices_own_keys_are_under_its_root(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STONECHAT_ROOT", str(shop.folder))
    assert list(trusted(None).keys) == [shop.trusted.public.key_id]
    monkeypatch.delenv("STONECHAT_ROOT")
    assert device_keys() == Path("/var/lib/stonechat/keys")


def test_a_key_file_that_cannot_be_read_is_never_skipped(shop: Workshop) -> None:
    (shop.keys / "retired" / "broken.pub").write_text("?")
    with pytest.raises(ConfigurationError, match=r"broken\.pub"):
        TrustStore.load(shop.keys)


def test_a_key_survives_being_written_and_read(shop: Workshop) -> None:
    text = shop.trusted.public.to_text()
    assert PublicKey.from_text(text) == shop.trusted.public
    assert PublicKey.from_text(text.replace("\n", "\r\n")) == shop.trusted.public  # from an editor on Windows
    assert text.splitlines()[1] == f"id {shop.trusted.public.key_id}"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.replace("id ", "id 0", 1).replace("\ned", "", 1), "no stonechat public key"),
        (lambda t: t[:40] + ("0" if t[40] != "0" else "1") + t[41:], "has"),
        (lambda t: t + "x", "no stonechat public key"),
        (lambda t: "-----BEGIN PRIVATE KEY-----", "no stonechat public key"),
        (lambda t: t * 100, "too long"),
        (lambda t: "", "no stonechat public key"),
        (lambda t: "ü", "no text"),
    ],
)
def test_a_damaged_key_file_is_refused(change: Any, word: str, shop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "k.pub"
    file.write_text(change(shop.trusted.public.to_text()))
    with pytest.raises(ConfigurationError, match=word) as caught:
        read_key(file)
    assert str(file) in str(caught.value)


ID = "0123456789abcdef"
GOOD = base64.b64encode(bytes(64)).decode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff", b"[]", b"[" * 100_000, b"1" * 70_000, b"9" * 9000,
        {"schema": 2, "signatures": [{"key": ID, "ed25519": GOOD}]},
        {"schema": True, "signatures": [{"key": ID, "ed25519": GOOD}]},
        {"schema": 1}, {"schema": 1, "signatures": []}, {"schema": 1, "signatures": {}},
        {"schema": 1, "signatures": [7]}, {"schema": 1, "signatures": [{"key": ID}]},
        {"schema": 1, "signatures": [{"key": "../evil", "ed25519": GOOD}]},
        {"schema": 1, "signatures": [{"key": ID, "ed25519": GOOD}] * 2},
        {"schema": 1, "signatures": [{"key": f"{i:016x}", "ed25519": GOOD} for i in range(65)]},
        {"schema": 1, "signatures": [{"key": ID, "ed25519": GOOD[:-4]}]},
        {"schema": 1, "signatures": [{"key": ID, "ed25519": GOOD[:-3] + "B=="}]},  # bits that no byte uses
        {"schema": 1, "signatures": [{"key": ID, "ed25519": GOOD + "\n"}]},
        b'{"schema":1,"schema":1,"signatures":[{"key":"%s","ed25519":"%s"}]}' % (ID.encode(), GOOD.encode()),
    ],
)  # fmt: skip
def test_what_is_no_signature_file_is_refused(content: Any) -> None:
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(SignatureError, match=r"manifest\.sig cannot be read") as caught:
        parse_signatures(content)
    assert len(str(caught.value)) < 500


many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
entry = st.fixed_dictionaries({"key": st.just(ID) | anything, "ed25519": st.just(GOOD) | anything})


@many
@given(
    st.binary(max_size=200)
    | anything.map(lambda value: json.dumps(value).encode())
    | st.lists(entry | anything, max_size=3).map(lambda e: json.dumps({"schema": 1, "signatures": e}).encode())
)
def test_any_signature_file_is_read_or_refused(content: bytes) -> None:
    try:
        assert len(parse_signatures(content)) > 0
    except SignatureError as error:
        str(error).encode()


@many
@given(st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=3))
def test_a_changed_signature_file_is_refused(signed: tuple[Path, TrustStore], changes: list[tuple[float, int]]) -> None:
    """Or it says the same in another spelling: JSON has several for one text."""
    folder, store = signed
    manifest, signature = ((folder / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    content = bytearray(signature)
    for share, change in changes:
        content[int(share * len(content))] ^= change
    try:
        store.verify(manifest, bytes(content))
    except SignatureError:
        return
    assert parse_signatures(bytes(content)) == parse_signatures(signature)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrustStore]:
    shop = Workshop(tmp_path_factory.mktemp("shop"))
    return shop.signed(), shop.trust


@many
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_key_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "keys"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "any.pub").write_bytes(content)
    try:
        TrustStore.load(folder)
    except StonechatError as error:
        assert "any.pub" in str(error)
