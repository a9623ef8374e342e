"""mosquitto.conf: who is listened to, and the limits that keep one client from taking the broker from the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import ConfigurationError

__all__ = ["Listeners"]

_PORT = 8883  # MQTT with TLS
_HEAD = """\
# Made by `stonechat broker init`. Start it with: mosquitto -c {folder}/mosquitto.conf
allow_anonymous false
acl_file {folder}/acl
"""
_PASSWORD_FILE = """\
password_file {folder}/passwords
"""
_LIMITS = """\
# Pieces of an answer are small; without this they wait for one another.
set_tcp_nodelay true
# Twice what a request may have, so that descriptions of devices with many links fit too. A client that sends more is
# disconnected before it is in memory. (mosquitto 1 called it message_size_limit.)
max_packet_size 131072
# A device with many sensors may lag for a moment: its readings are sent many at a time, and the rest waits.
# mosquitto's defaults, 20 and 1000, hold one second of a thousand sensors.
max_inflight_messages 200
# What may wait for one client that reads too slowly, whichever is reached first. Without it memory has no limit.
max_queued_messages 10000
max_queued_bytes 8388608
# The same for all together: retained messages have no other limit. A client that would exceed it is disconnected.
memory_limit 134217728
# Clients that want their messages kept and never come back are forgotten.
persistent_client_expiration 1d
# Devices say their state again and send unconfirmed answers again after a restart, so nothing here needs a disk, and
# an SD card lasts longer. If other software on this broker wants it: `persistence true` and `persistence_location`.
persistence false
"""
_CONNECTIONS = """\
# Below the 1,024 open files that Linux gives a process; raise both together (LimitNOFILE= of the service).
max_connections {connections}
"""
_CERTIFICATES = """\

# Nobody comes in here without a certificate of this authority, and its name is the user's.
listener {port}
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
crlfile {folder}/crl.pem
require_certificate true
use_identity_as_username true
"""
_PASSWORDS = """\

# Nobody comes in here without a password; the connection is encrypted all the same.
listener {port}
certfile {folder}/broker.crt
keyfile {folder}/broker.key
"""


@dataclass(frozen=True)
class Listeners:
    """What a configuration of ours says, besides what they all say."""

    folder: Path  # where the files lie on the broker's machine
    certificates: int | None  # the port for clients that prove themselves by certificate
    passwords: int | None  # the port for those with a password
    revocation: bool = True  # whether the list of revoked certificates is read

    def __post_init__(self) -> None:
        if self.certificates is not None and self.certificates == self.passwords:
            raise ConfigurationError(
                f"certificates and passwords need a port each, and both are {self.passwords}; "
                "set --port for the one, --password-port for the other."
            )

    @classmethod
    def plan(
        cls,
        now: Listeners | None,
        *,
        folder: Path,
        certificates: bool,
        passwords: bool,
        port: int | None,
        password_port: int | None,
    ) -> Listeners:
        """The listeners that a folder needs.

        Args:
            now: what its configuration says at present.
            certificates: whether anybody has a certificate.
            passwords: whether anybody has a password.
            port: asked for: of the only listener, or that for certificates.
            password_port: asked for, for passwords.
        """
        by_certificate, by_password = (now.certificates, now.passwords) if now else (None, None)
        if certificates:
            by_certificate = port or by_certificate or _free(by_password)
        elif by_certificate is None:
            password_port = password_port or port
        if passwords:
            by_password = password_port or by_password or _free(by_certificate)
        return cls(folder, by_certificate, by_password)

    @classmethod
    def of(cls, text: str) -> Listeners:
        """Read a configuration that stonechat has made, whatever a person has added since.

        Raises:
            ConfigurationError: it is none.
        """
        folder, certificates, passwords, port, revocation = None, None, None, 0, False
        for line in text.splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "acl_file":
                folder = Path(rest.strip()).parent
            elif word == "listener" and rest.split()[0:1] and rest.split()[0].isdecimal():
                port = int(rest.split()[0])
                passwords = passwords or port
            elif word == "require_certificate" and rest.strip() == "true":
                certificates, passwords = port, None if passwords == port else passwords
            elif word == "crlfile":
                revocation = True
        if folder is None or not (certificates or passwords):
            raise ConfigurationError(
                "mosquitto.conf has no acl_file or no listener, so it is not one of stonechat's; move it away to have "
                "it made again."
            )
        return cls(folder, certificates, passwords, revocation or certificates is None)

    def text(self) -> str:
        """mosquitto.conf."""
        both = self.certificates is not None and self.passwords is not None
        parts = [_HEAD, _PASSWORD_FILE if self.passwords else "", _LIMITS]
        for part, port in ((_CERTIFICATES, self.certificates), (_PASSWORDS, self.passwords)):
            if port is not None:
                parts += [part.replace("{port}", str(port)), _CONNECTIONS]
        return "".join(parts).format(folder=self.folder, connections=480 if both else 960)


def _free(taken: int | None) -> int:
    return _PORT if taken != _PORT else _PORT + 1
