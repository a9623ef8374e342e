"""Starts a real Home Assistant in a folder, waits for a stonechat device and an answer, and prints what it saw.

Run by the Python that Home Assistant is installed in: `python home_assistant_driver.py CONFIG_DIR SECONDS`. Prints one
JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from homeassistant import bootstrap, runner
from homeassistant.components import persistent_notification
from homeassistant.core import State
from homeassistant.helpers import device_registry, entity_registry


def known(states: dict[str, State | None], word: str) -> bool:
    """Whether there is an entity with `word` in its id, and each such entity has a value."""
    found = [state for key, state in states.items() if word in key]
    return bool(found) and all(s is not None and s.state not in ("unknown", "unavailable") for s in found)


async def main(config_dir: str, timeout_s: float) -> None:
    """Wait for the device and for the notification of the example's automation, at most `timeout_s`."""
    hass = await bootstrap.async_setup_hass(runner.RuntimeConfig(config_dir=config_dir, skip_pip=True))
    assert hass is not None
    messages: list[str] = []

    def notified(_: object, notifications: dict[str, dict[str, str]]) -> None:
        messages.extend(n["message"] for n in notifications.values() if n["notification_id"] == "stonechat")

    persistent_notification.async_register_callback(hass, notified)
    await hass.async_start()
    devices = device_registry.async_get(hass).devices
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        ours = [d for d in devices.values() if d.manufacturer == "stonechat"]
        entities = {e.unique_id: e for e in entity_registry.async_get(hass).entities.values() if e.platform == "mqtt"}
        states = {key: hass.states.get(e.entity_id) for key, e in entities.items()}
        # An entity exists before its first value has come: the state of the device, and the answers of its link.
        if ours and messages and all(known(states, word) for word in ("_state", "too-hot", "greenhouse_advice")):
            break
        await asyncio.sleep(0.1)
    found = {
        "devices": [{"name": d.name, "model": d.model} for d in ours],
        "states": {key: state.state for key, state in states.items() if state is not None},
        "messages": messages,
    }
    print(json.dumps(found), flush=True)
    await hass.async_stop()


asyncio.run(main(sys.argv[1], float(sys.argv[2])))
