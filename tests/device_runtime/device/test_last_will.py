"""Real processes, really killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEVICE = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from tests.support.scripted_model import ScriptedModel
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.device.service import Service, stop_on_signals
broker = BrokerAddress("127.0.0.1", int(sys.argv[1]))
service = Service(DeviceConfig("mortal", broker, Path(sys.argv[2])), lambda name: ScriptedModel())
with stop_on_signals(service):
    service.run()
"""


@pytest.mark.parametrize(
    ("how", "says", "code"),
    [(signal.SIGKILL, "lost", -9), (signal.SIGTERM, "disconnected", 0), (signal.SIGINT, "disconnected", 0)],
)
def test_how_a_device_leaves_is_what_its_state_says(port, peer, tmp_path, how, says, code):
    client = peer()
    client.subscribe("stonechat/1/mortal/out/state")
    for boot in (1, 2):
        command = [sys.executable, "-c", DEVICE, str(port), str(tmp_path), str(ROOT)]
        process = subprocess.Popen(command)
        client.until(lambda topic, value: value == {"state": "ready", "boot": boot}, 15)  # noqa: B023
        process.send_signal(how)
        client.until(lambda topic, value: value == {"state": says, "boot": boot})  # noqa: B023
        assert process.wait(5) == code
