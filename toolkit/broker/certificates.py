"""A small certificate authority: one for the broker's site, what it issues, and what it takes back.

`issued.pem` has every certificate that was ever issued, so that one whose file was moved to its device, or that a newer
one has replaced, can still be revoked. `crl.pem` is the list of revoked ones, which mosquitto reads.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from device_runtime.errors import ConfigurationError
from toolkit.broker.files import write_private, write_public

__all__ = ["SERVER", "Authority", "common_name"]

SERVER = "broker"  # whose certificate is the broker's own

_REGISTER, _LIST = "issued.pem", "crl.pem"
_AUTHORITY_DAYS = 3650
_EARLIER = datetime.timedelta(days=1)  # boards without a clock start in the past


class Authority:
    """The keys in a folder: `ca.crt`, `ca.key`, NAME.crt and NAME.key of whatever it has issued, and `crl.pem`."""

    def __init__(self, folder: Path, site: str) -> None:
        """Open the authority of this folder, or make one."""
        self.folder = folder
        self._issued = self._read_issued()
        self._serials = {entry.serial_number for entry in self._revoked()}  # of revoked certificates
        key_path, certificate_path = folder / "ca.key", folder / "ca.crt"
        if certificate_path.is_file() != key_path.is_file():
            raise ConfigurationError(
                f"{folder} has only one of ca.crt and ca.key; restore the other, or take an empty folder."
            )
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

    def issue(self, name: str, days: int, hosts: Sequence[str] = ()) -> None:
        """Make NAME.crt and NAME.key; a former certificate of this name stays valid.

        Args:
            days: how long it is to last.
            hosts: names and addresses of a server; without any it is a client's certificate.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, self._certificate.subject, key.public_key(), days, hosts=hosts)
        with open(self.folder / _REGISTER, "ab") as register:  # first: whatever is in use can be revoked
            register.write(_pem(certificate))
        self._issued[certificate.serial_number] = certificate
        self._write(name, key, certificate)

    def renew(self, name: str, days: int) -> None:
        """Issue a certificate again, a server's for the same hosts.

        Raises:
            ConfigurationError: this name has none that is valid.
        """
        current = self.current(name)
        if current is None:
            raise ConfigurationError(f"{self.folder} has no certificate for {name!r} that could be renewed.")
        self.issue(name, days, _hosts(current))

    def revoke(self, name: str) -> int:
        """Put all certificates of a name on the list of revoked ones; how many there were."""
        revoked, now = self._revoked(), datetime.datetime.now(datetime.UTC)
        known = {entry.serial_number for entry in revoked}
        serials = {serial for serial, c in self._issued.items() if common_name(c) == name} - known
        builder = x509.RevokedCertificateBuilder().revocation_date(now)
        revoked += [builder.serial_number(serial).build() for serial in sorted(serials)]
        self._write_list(revoked)
        self._serials |= serials
        for ending in ("crt", "key"):
            (self.folder / f"{name}.{ending}").unlink(missing_ok=True)
        return len(serials)

    def ensure_list(self) -> None:
        """Have a list of revoked certificates, if only an empty one: mosquitto does not start without."""
        if not (self.folder / _LIST).is_file():
            self._write_list([])

    def current(self, name: str) -> x509.Certificate | None:
        """The latest certificate of a name that is not revoked."""
        own = [c for s, c in self._issued.items() if s not in self._serials and common_name(c) == name]
        return max(own, key=lambda c: c.not_valid_after_utc, default=None)

    def _read_issued(self) -> dict[int, x509.Certificate]:
        """By serial number. Folders of earlier releases have no register, only the files of each name."""
        register = self.folder / _REGISTER
        files = [register] if register.is_file() else []
        files += [path for path in sorted(self.folder.glob("*.crt")) if path.name != "ca.crt"]
        found: dict[int, x509.Certificate] = {}
        for path in files:
            try:
                found |= {c.serial_number: c for c in x509.load_pem_x509_certificates(path.read_bytes())}
            except ValueError as error:
                raise ConfigurationError(f"{path} is damaged ({error}); put it back, or move it away.") from None
        return found

    def _revoked(self) -> list[x509.RevokedCertificate]:
        path = self.folder / _LIST
        if not path.is_file():
            return []
        try:
            return list(x509.load_pem_x509_crl(path.read_bytes()))
        except ValueError as error:
            raise ConfigurationError(f"{path} is damaged ({error}); put it back.") from None

    def _write_list(self, revoked: Sequence[x509.RevokedCertificate]) -> None:
        """Valid as long as the authority: once a list is out of date, mosquitto lets nobody in."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(datetime.datetime.now(datetime.UTC) - _EARLIER)
            .next_update(self._certificate.not_valid_after_utc)
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(entry)
        content = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        write_public(self.folder / _LIST, content)

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
        write_private(self.folder / f"{name}.key", private)
        write_public(self.folder / f"{name}.crt", _pem(certificate))


def common_name(certificate: x509.Certificate) -> str:
    """Whose certificate it is."""
    (attribute,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _hosts(certificate: x509.Certificate) -> list[str]:
    """The names and addresses of a server's certificate; of a client's, none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


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
