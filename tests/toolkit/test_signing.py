"""Keys, signatures and packed bundles as a desk machine makes them, and `serve` with a device's keys."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device_runtime.bundle.archive import Archive
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.trust import parse_signatures
from device_runtime.errors import BundleError, ConfigurationError
from device_runtime.fleet import file as fleet
from tests.support.brokers import free_port, mosquitto
from tests.support.power_cut import recorded
from tests.support.signed_bundles import Workshop, plain_bundle
from toolkit.cli import main
from toolkit.signing import bundles
from toolkit.signing.bundles import expiry, golden_answer, pack_bundle, sign_bundle
from toolkit.signing.keys import PASSPHRASE_VARIABLE, new_key, read_any_key, read_passphrase, read_signing_key, retire


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def ids(folder: Path) -> list[str]:
    return [s.key_id for s in parse_signatures((folder / "manifest.sig").read_bytes())]


class TestKeys:
    def test_only_the_owner_can_read_the_private_half(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            new_key("k", tmp_path / "new", None)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new" / "k.key").stat().st_mode) == 0o600

    def test_both_halves_have_one_id(self, tmp_path: Path) -> None:
        key = new_key("k", tmp_path, None)
        assert read_any_key(tmp_path / "k.pub", None) == read_any_key(tmp_path / "k.key", None) == key.public

    def test_the_private_half_is_pem_as_other_programs_read_it(self, tmp_path: Path) -> None:
        new_key("k", tmp_path, None)
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("openssl is not installed")
        done = subprocess.run([openssl, "pkey", "-in", tmp_path / "k.key", "-noout", "-text"], capture_output=True)
        assert b"ED25519" in done.stdout.upper()

    def test_a_passphrase_comes_from_a_file_or_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "word").write_text("tüt\n", encoding="utf-8")
        word = read_passphrase(tmp_path / "word")
        key = new_key("k", tmp_path, word)
        assert b"ENCRYPTED" in (tmp_path / "k.key").read_bytes()
        assert read_signing_key(tmp_path / "k.key", word).public == key.public
        monkeypatch.setenv(PASSPHRASE_VARIABLE, "tüt")
        assert read_signing_key(tmp_path / "k.key", read_passphrase(None)).public == key.public
        open_key = new_key("open", tmp_path, None)  # the variable is of another key
        assert read_signing_key(tmp_path / "open.key", read_passphrase(None)).public == open_key.public

    def test_a_missing_or_wrong_passphrase_is_said(self, tmp_path: Path) -> None:
        new_key("k", tmp_path, b"right")
        with pytest.raises(ConfigurationError, match=f"--passphrase-file.*{PASSPHRASE_VARIABLE}"):
            read_signing_key(tmp_path / "k.key", None)
        with pytest.raises(ConfigurationError, match="cannot be read with this passphrase"):
            read_signing_key(tmp_path / "k.key", b"wrong")

    def test_a_damaged_or_foreign_private_key_is_refused(self, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        new_key("k", tmp_path, None)
        (tmp_path / "cut.key").write_bytes((tmp_path / "k.key").read_bytes()[:60])
        with pytest.raises(ConfigurationError, match="is damaged"):
            read_signing_key(tmp_path / "cut.key", None)
        other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / "other.key").write_bytes(other)
        with pytest.raises(ConfigurationError, match="no Ed25519 key"):
            read_signing_key(tmp_path / "other.key", None)

    def test_a_key_is_never_overwritten(self, tmp_path: Path) -> None:
        new_key("k", tmp_path, None)
        content = (tmp_path / "k.key").read_bytes()
        with pytest.raises(ConfigurationError, match="never overwritten"):
            new_key("k", tmp_path, None)
        (tmp_path / "k.pub").unlink()
        with pytest.raises(ConfigurationError, match="never overwritten"):
            new_key("k", tmp_path, None)
        assert (tmp_path / "k.key").read_bytes() == content

    def test_retiring_moves_the_file_whatever_it_is_called(self, shop: Workshop) -> None:
        (shop.keys / "plant-2026.pub").rename(shop.keys / "renamed.pub")
        target, trusted = retire(shop.trusted.public, shop.keys)
        assert target == shop.keys / "retired" / "plant-2026.pub" and target.is_file()
        assert not list(shop.keys.glob("*.pub"))
        assert (list(trusted.keys), len(trusted.retired)) == ([], 2)

    def test_a_loss_of_power_does_not_bring_a_retired_key_back(self, shop: Workshop) -> None:
        with recorded(shop.keys) as disk:
            retire(shop.trusted.public, shop.keys)
        assert disk.log and disk.pending(len(disk.log)) == []

    def test_two_retired_keys_of_one_name_are_both_kept(self, shop: Workshop) -> None:
        again = new_key("plant-2025", shop.folder / "again", None)
        (shop.keys / "plant-2025.pub").write_text(again.public.to_text())
        _, trusted = retire(again.public, shop.keys)
        assert {shop.retired.public.key_id, again.public.key_id} == set(trusted.retired)


class TestSigning:
    def test_signers_add_up_and_one_signs_in_its_own_place(self, shop: Workshop) -> None:
        folder = shop.signed("b")
        sign_bundle(folder, {}, [shop.stranger])
        once = (folder / "manifest.sig").read_bytes()
        sign_bundle(folder, {}, [shop.trusted])
        assert (folder / "manifest.sig").read_bytes() == once
        assert sorted(ids(folder)) == sorted([shop.trusted.public.key_id, shop.stranger.public.key_id])

    def test_a_changed_manifest_loses_the_signatures_of_others(self, shop: Workshop) -> None:
        folder = shop.signed("b", shop.stranger)
        signed = sign_bundle(folder, {"security_counter": 9}, [shop.trusted])
        assert signed.dropped == (shop.stranger.public.key_id,)
        assert ids(folder) == [shop.trusted.public.key_id]
        assert Bundle.open(folder, trust=shop.trust).manifest.security_counter == 9

    def test_a_field_set_to_what_it_is_changes_nothing(self, shop: Workshop) -> None:
        folder = shop.signed("b", shop.stranger)
        before = (folder / "manifest.json").read_bytes()
        assert sign_bundle(folder, {"security_counter": 3}, [shop.trusted]).dropped == ()
        assert (folder / "manifest.json").read_bytes() == before

    def test_fields_of_a_later_version_survive(self, shop: Workshop) -> None:
        folder = plain_bundle(shop.folder / "b")
        fields = json.loads((folder / "manifest.json").read_text()) | {"colour": "red"}
        (folder / "manifest.json").write_text(json.dumps(fields))
        sign_bundle(folder, {"security_counter": 9}, [shop.trusted])
        assert json.loads((folder / "manifest.json").read_text())["colour"] == "red"

    def test_a_zip_is_signed_in_its_place(self, shop: Workshop) -> None:
        folder = plain_bundle(shop.folder / "b")
        pack_bundle(folder, shop.folder / "b.zip", {}, [])
        sign_bundle(shop.folder / "b.zip", {"security_counter": 9}, [shop.trusted])
        with Archive.open(shop.folder / "b.zip", shop.trust) as archive:
            assert archive.manifest.security_counter == 9
            archive.unpack(shop.folder / "out")
        assert Bundle.open(folder).manifest.security_counter == 3

    def test_signing_first_and_packing_first_give_the_same_bytes(self, shop: Workshop) -> None:
        folder = plain_bundle(shop.folder / "b")
        pack_bundle(folder, shop.folder / "one.zip", {"boards": ["esp32-s3"]}, [])
        sign_bundle(shop.folder / "one.zip", {}, [shop.trusted])
        sign_bundle(folder, {"boards": ["esp32-s3"]}, [shop.trusted])
        pack_bundle(folder, shop.folder / "two.zip", {}, [])
        assert (shop.folder / "one.zip").read_bytes() == (shop.folder / "two.zip").read_bytes()

    def test_a_damaged_signature_file_is_mended_by_signing(self, shop: Workshop) -> None:
        folder = shop.signed("b")
        (folder / "manifest.sig").write_text("{")
        sign_bundle(folder, {}, [shop.trusted])
        Bundle.open(folder, trust=shop.trust)

    @pytest.mark.parametrize("name", ["model.tflite", "prefix.npz", "tokenizer.json"])
    def test_nobody_vouches_for_a_damaged_bundle(self, shop: Workshop, name: str) -> None:
        folder = plain_bundle(shop.folder / "b")
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=name):
            sign_bundle(folder, {}, [shop.trusted])
        with pytest.raises(BundleError, match=name):
            pack_bundle(folder, shop.folder / "b.zip", {}, [shop.trusted])
        assert not (folder / "manifest.sig").exists() and not list(shop.folder.glob("*.zip"))

    def test_a_file_that_changes_while_it_is_packed_leaves_the_old_zip(
        self, shop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = plain_bundle(shop.folder / "b")
        target = shop.folder / "b.zip"
        target.write_bytes(b"the old one")
        sign = bundles._sign

        def slow(*args: object) -> object:
            (folder / "prefix.npz").write_bytes(bytes(300))  # after every file was checked
            return sign(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(bundles, "_sign", slow)
        with pytest.raises(BundleError, match=r"prefix\.npz has changed while it was packed"):
            pack_bundle(folder, target, {}, [])
        assert target.read_bytes() == b"the old one"
        assert not list(shop.folder.glob(".b*"))

    def test_what_a_bundle_answers_here_is_what_its_trial_expects(self, pi_bundle: Path, tmp_path: Path) -> None:
        flags = ["--trial-prompt", "hello", "--trial-max-new", "12"]
        assert main(["bundle", "pack", str(pi_bundle), "-o", str(tmp_path / "b.zip"), *flags]) == 0
        with Archive.open(tmp_path / "b.zip") as archive:
            trial = archive.manifest.trial
        assert trial is not None and (trial.prompt, trial.max_new) == ("hello", 12)
        assert trial.expect == golden_answer(pi_bundle, "hello", 12) != ""
        assert "\ufffd" not in golden_answer(pi_bundle, "hello", 4)  # which ends within a character

    def test_ctrl_c_while_packing_leaves_nothing(self, shop: Workshop, tmp_path: Path) -> None:
        folder = plain_bundle(shop.folder / "b")
        command = [
            sys.executable,
            "-m",
            "toolkit",
            "bundle",
            "pack",
            str(folder),
            "-o",
            str(tmp_path / "out" / "b.zip"),
        ]
        (tmp_path / "out").mkdir()
        hook = "import os, signal, zipfile; zipfile.ZipInfo = lambda *_: os.kill(os.getpid(), signal.SIGINT)"
        command[1:3] = ["-c", f"{hook}; from toolkit.cli import main; raise SystemExit(main())"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr.strip()) == (130, "stonechat: interrupted")
        assert list((tmp_path / "out").iterdir()) == []


NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("90", "2026-08-30T12:00:00Z"),
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        ("2027-01-31T06:30:00Z", "2027-01-31T06:30:00Z"),
        ("2027-01-31 06:30+00:00", "2027-01-31T06:30:00Z"),
    ],
)
def test_an_expiry_is_a_number_of_days_or_a_date(text: str, expires: str) -> None:
    assert expiry(text, NOW) == {"expires": expires, "issued": "2026-06-01T12:00:00Z"}


@pytest.mark.parametrize("text", ["", "soon", "-3", "0", "99999999999", "2026-05-31", "2027-02-30", "2027-01-31T00:00"])
def test_what_is_no_expiry_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--expires"):
        expiry(text, NOW)


def test_a_device_without_a_folder_of_keys_named_takes_its_own(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STONECHAT_ROOT", str(shop.folder))
    assert main(["bundle", "verify", str(shop.signed("b"))]) == 0
    assert f"signed by         {shop.trusted.public}" in capfd.readouterr().out


def test_a_package_that_is_missing_is_named(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "cryptography" or n == "toolkit.signing.keys"]:
        monkeypatch.setitem(sys.modules, name, None if name.startswith("cryptography") else sys.modules[name])
        if name == "toolkit.signing.keys":
            monkeypatch.delitem(sys.modules, name)
    assert main(["key", "new", "k", "-o", str(shop.folder)]) == 2
    assert "pip install '.[sign]'" in capfd.readouterr().err
    assert not (shop.folder / "k.key").exists()


FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
{keys}
models: {{tiny: {{bundle: "{bundle}", threads: 1}}}}
devices: {{north: {{model: tiny}}}}
"""


def test_a_fleet_file_names_keys_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET.format(port=1883, keys="keys: certs/../keys", bundle="b"))
    assert fleet.load(tmp_path / "fleet.yaml").keys_folder() == tmp_path / "keys"
    (tmp_path / "fleet.yaml").write_text(FLEET.format(port=1883, keys="", bundle="b"))
    assert fleet.load(tmp_path / "fleet.yaml").keys_folder() is None


class TestServe:
    """The real command at a real broker."""

    def command(self, shop: Workshop, bundle: Path, port: int, keys: str, *flags: str) -> list[str]:
        (shop.folder / "fleet.yaml").write_text(FLEET.format(port=port, bundle=bundle, keys=keys))
        fleet_file, state = str(shop.folder / "fleet.yaml"), str(shop.folder / "state")
        return [sys.executable, "-m", "toolkit", "serve", fleet_file, "--device", "north", "--state-dir", state, *flags]

    @pytest.mark.parametrize("way", ["flag", "fleet file", "device root"])
    def test_an_unsigned_bundle_is_refused_with_exit_code_4(self, way: str, shop: Workshop, pi_bundle: Path) -> None:
        keys = "keys: keys" if way == "fleet file" else ""
        flags = ["--keys", str(shop.keys)] if way == "flag" else []
        environment = os.environ | ({"STONECHAT_ROOT": str(shop.folder)} if way == "device root" else {})
        with mosquitto(shop.folder) as port:
            command = self.command(shop, pi_bundle, port, keys, *flags)
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 4, done.stderr
        assert "The bundle is not signed" in done.stderr and "plant-2026" in done.stderr

    def test_a_signed_bundle_goes_on_the_air(self, shop: Workshop, pi_bundle: Path) -> None:
        bundle = Path(shutil.copytree(pi_bundle, shop.folder / "bundle"))
        sign_bundle(bundle, {}, [shop.trusted])
        if shutil.which("mosquitto_sub") is None:
            pytest.skip("mosquitto_sub is not installed (Debian: apt install mosquitto-clients)")
        with mosquitto(shop.folder) as port:
            process = subprocess.Popen(
                self.command(shop, bundle, port, "keys: keys"), stderr=subprocess.PIPE, text=True
            )
            watch = ["mosquitto_sub", "-p", str(port), "-t", "stonechat/1/north/out/state", "-W", "60"]
            try:
                with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as watcher:
                    assert watcher.stdout is not None
                    assert any(json.loads(line)["state"] == "ready" for line in watcher.stdout)
                    watcher.terminate()
            finally:
                process.send_signal(signal.SIGTERM)
                _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err

    def test_a_folder_of_keys_without_a_key_is_no_way_around_them(self, shop: Workshop, pi_bundle: Path) -> None:
        (shop.folder / "empty").mkdir()
        command = self.command(shop, pi_bundle, free_port(), "keys: empty")
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "has no *.pub" in done.stderr


@pytest.mark.parametrize("name", ["model.tflite", "manifest.json", "manifest.sig"])
def test_packing_follows_no_link(shop: Workshop, name: str) -> None:
    """A bundle that came from somebody could name any file of this machine."""
    folder = shutil.copytree(plain_bundle(shop.folder / "linked"), shop.folder / f"linked-{name}")
    (folder / "manifest.sig").write_bytes(b"{}")
    (shop.folder / f"secret-{name}").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(shop.folder / f"secret-{name}")
    target = shop.folder / f"{name}.zip"
    with pytest.raises(BundleError, match=rf"{re.escape(name)} is a link to .*secret-.*Put the file itself there"):
        pack_bundle(folder, target, {}, [])
    assert not target.exists()
