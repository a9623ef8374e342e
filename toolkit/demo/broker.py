"""A broker for the demo: mosquitto if it is installed, else the one inside the Python package iotcore."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
import time

from device_runtime.errors import ConfigurationError
from toolkit.demo.processes import PartFailedError, Processes

__all__ = ["BROKER", "start"]

BROKER = "broker"
START_S = 60.0  # it is noticed at once when it ends; a busy machine may take long to load it

# An MQTT 5 listener only: iotcore 0.4.0 fails when it hands MQTT 5 properties to an MQTT 3.1.1 client.
_IOTCORE = """\
id = 0

[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10

[v5.1]
name = "demo"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 262144
max_inflight_count = 100
dynamic_filters = true
"""
_MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 200
max_queued_messages 10000
"""


def start(processes: Processes) -> tuple[str, int]:
    """Start a broker on a free port of this machine; return what it is and its port.

    Raises:
        ConfigurationError: there is no broker on this machine.
        PartFailedError: it did not start.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    config = processes.folder / "broker.conf"
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if mosquitto:
        kind, text, command = "mosquitto", _MOSQUITTO, [mosquitto, "-c", str(config)]
    elif importlib.util.find_spec("iotcore"):
        config = config.with_suffix(".toml")
        kind, text, command = "iotcore", _IOTCORE, [sys.executable, "-m", "iotcore", "--config", str(config)]
    else:
        raise ConfigurationError(
            "there is no MQTT broker on this machine. Install mosquitto (apt install mosquitto) or iotcore "
            "(pip install iotcore), or name a running broker with --broker mqtt://host:port."
        )
    config.write_text(text.format(port=port), encoding="utf-8")
    processes.start(BROKER, command)
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        processes.check()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return kind, port
    raise PartFailedError(f"{kind} does not listen on port {port} after {START_S:g} s.{processes.last_words(BROKER)}")
