"""Why no connection to a broker could be opened, in words that say what to check."""

from __future__ import annotations

import ssl
import time

from device_runtime.errors import ConfigurationError, StonechatError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress, reason

__all__ = ["no_connection"]

_NOT_YET_VALID = {9, 11}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CRL_NOT_YET_VALID


def no_connection(broker: BrokerAddress, error: OSError | ValueError) -> StonechatError:
    """What to raise in place of what a socket or TLS said: trying again helps where it is an UnreachableError."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NOT_YET_VALID:  # a board without a battery is in the past until it has the time
            return UnreachableError(
                f"the broker at {broker} cannot prove yet who it is: {error.verify_message}. Check this machine's "
                f"clock: it says {time.strftime('%Y-%m-%d %H:%M')}."
            )
        return ConfigurationError(
            f"the broker at {broker} does not prove who it is: {error.verify_message}. Check the host in the "
            "broker URL, and that the certificates are of this broker's authority."
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ConfigurationError(
            f"the broker at {broker} and this client cannot agree on TLS: {reason(error)}. Check the port of "
            "the broker URL (8883 is MQTT with TLS), and that the certificates are of this broker's authority."
        )
    return UnreachableError(
        f"no {'TLS ' if broker.tls else ''}connection to the broker at {broker}: {reason(error)}. "
        "Check that it runs, and the host and port of the broker URL."
    )
