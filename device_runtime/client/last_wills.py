"""How long a `lost` is doubted: a broker that ends publishes the last wills of healthy devices, and may keep them."""

from __future__ import annotations

from device_runtime.mqtt.messages import DeviceState, State

__all__ = ["BROKER_ENDS_S", "RETURNS_S", "doubted_s", "is_lost"]

# A broker that is stopped in order (mosquitto by SIGTERM) publishes the last wills of all devices, and closes the
# connections after that. So a `lost` holds when our own connection is still there so much later.
BROKER_ENDS_S = 1.0
# A broker that keeps what is retained on the disk comes back with these wills, and a healthy device a second after it.
# So a `lost` that was kept holds when the device has not said so long that it is there, though it was asked to.
RETURNS_S = 2.0


def doubted_s(state: State | None, retained: bool) -> float:
    """For how many seconds from now a device's state that has just come is doubted; 0: it holds."""
    if not is_lost(state):
        return 0.0
    return RETURNS_S if retained else BROKER_ENDS_S


def is_lost(state: State | None) -> bool:
    """Whether it says that the device is lost."""
    return state is not None and state.state is DeviceState.LOST
