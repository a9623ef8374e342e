"""Connects a device that starts unattended: it tries until there is a broker."""

from __future__ import annotations

import logging
import random
import threading

from device_runtime.errors import UnreachableError
from device_runtime.mqtt.client import Client

__all__ = ["connect"]

FIRST_PAUSE_S = 1.0  # after a try that failed; doubles each time,
LONGEST_PAUSE_S = 30.0  # up to this

log = logging.getLogger("stonechat.serve")


def connect(client: Client, stopping: threading.Event) -> bool:
    """Connect, and return True; or False, if `stopping` is set before there is a broker.

    The reason is logged once, and again when it changes.

    Raises:
        ConfigurationError: the broker refuses this client, or one of the two cannot prove who it is: trying again
            would not help.
    """
    told, pause_s = "", FIRST_PAUSE_S
    while not stopping.is_set():
        try:
            client.connect()
        except UnreachableError as error:
            if str(error) != told:
                told = str(error)
                log.warning("%s Trying again until it is there.", told)
        else:
            return True
        stopping.wait(pause_s * random.uniform(0.7, 1.0))  # so that a fleet does not come as one
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return False
