"""A small certificate authority: one for the broker's site, and what it issues."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from device_runtime.errors import ConfigurationError

__all__ = ["Authority"]

_AUTHORITY_DAYS = 3650
_EARLIER = datetime.timedelta(days=1)  # boards without a clock start in the past


class Authority:
    """The keys in a folder: `ca.crt`, `ca.key`, and NAME.crt and NAME.key of whatever it has issued."""

    def __init__(self, folder: Path, site: str) -> None:
        """Open the authority of this folder, or make one."""
        self.folder = folder
        key_path, certificate_path = folder / "ca.key", folder / "ca.crt"
        if certificate_path.is_file() != key_path.is_file():
            raise ConfigurationError(f"{folder} has only one of ca.crt and ca.key; put the other back, or start anew.")
        if not key_path.is_file():
            self._key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"stonechat {site}"[:64])])
            self._certificate = self._sign(name, name, self._key.public_key(), _AUTHORITY_DAYS, authority=True)
            self._write("ca", self._key, self._certificate)
            return
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            self._certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{folder}: ca.crt or ca.key cannot be read ({error}).") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigurationError(f"{key_path} is not a key that stonechat has made; name another folder.")
        self._key = key

    def issue(self, name: str, days: int, hosts: Sequence[str] = ()) -> bool:
        """Make NAME.crt and NAME.key; False if they are there already.

        Args:
            hosts: names and addresses of a server; without any it is a client's certificate.
        """
        if (self.folder / f"{name}.crt").is_file():
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, self._certificate.subject, key.public_key(), days, hosts=hosts)
        self._write(name, key, certificate)
        return True

    def _sign(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        days: int,
        *,
        hosts: Sequence[str] = (),
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(_usage(authority), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_host, hosts))), critical=False)
        if not authority:
            purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """The key first, which nobody else may read: a certificate without its key would look finished."""
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self.folder / f"{name}.key"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        (self.folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
