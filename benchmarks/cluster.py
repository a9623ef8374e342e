"""A broker of two nodes on loopback under one fleet: what works across the nodes, and what it lacks.

    python benchmarks/cluster.py ejabberd [--json]
    python benchmarks/cluster.py rabbitmq

One device of a pool is at each node, a client at the other one. Needs Debian's package of that broker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from device_runtime.client.remote import RemoteModel  # noqa: E402
from device_runtime.client.roll_call import roll_call  # noqa: E402
from device_runtime.device.service import Service  # noqa: E402
from device_runtime.errors import StonechatError  # noqa: E402
from device_runtime.fleet.settings import DeviceConfig  # noqa: E402
from device_runtime.mqtt.address import BrokerAddress  # noqa: E402
from tests.support.broker_clusters import CLUSTERS, PASSWORD  # noqa: E402
from tests.support.brokers import await_ready  # noqa: E402
from tests.support.scripted_model import ScriptedModel  # noqa: E402

REQUESTS = 20
USERS = ("at-0", "at-1", "in-0", "in-1", "anna", "probe", "victim", "watcher")
START_S = 60.0


class Rig:
    """At each node a device, and a member of one pool."""

    def __init__(self, folder: Path, ports: tuple[int, int], protocol: str, stack: ExitStack) -> None:
        self.ports, self.protocol = ports, protocol
        self.services = []
        for name, port, pool in (("at-0", 0, None), ("at-1", 1, None), ("in-0", 0, "herd"), ("in-1", 1, "herd")):
            broker = self.broker(ports[port], name)
            config = DeviceConfig(name, broker, folder / name, pool=pool, home_assistant=False)
            service = Service(config, lambda name: ScriptedModel())
            thread = threading.Thread(target=_run, args=(service,), daemon=True)
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(service.stop)
            self.services.append(service)

    def broker(self, port: int, user: str) -> BrokerAddress:
        """A node, for one of its users."""
        return BrokerAddress("127.0.0.1", port, user=user, password=PASSWORD, protocol=self.protocol)  # type: ignore[arg-type]

    def ask(self, number: int, pool: str | None = None, *, across: bool = True) -> str | None:
        """Ask the device at the one node, or the pool, from the other, or from the same; who has answered."""
        device = None if pool else f"at-{number}"
        port = self.ports[1 - number if across else number]
        with RemoteModel(self.broker(port, "anna"), device, pool=pool, client="anna") as remote:
            answer = remote.generate("it is hot", timeout_s=20)
            text = "".join(answer)
        assert text == "IT IS HOT", text
        return answer.device or device


def _run(service: Service) -> None:
    try:
        service.run(wait_for_broker=True)
    except StonechatError as error:
        print(f"a device: {error}", file=sys.stderr)


def offered(port: int) -> dict[str, Any]:
    """What the broker's CONNACK says of MQTT 5, or why there is none."""
    found: dict[str, Any] = {}
    done = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="probe", protocol=paho.MQTTv5)

    def connected(c: Any, u: Any, flags: Any, reason: Any, properties: Any) -> None:
        found["answer"] = str(reason)
        found.update(vars(properties) if properties else {})
        done.set()

    client.username_pw_set("probe", PASSWORD)
    client.on_connect = connected
    client.on_disconnect = lambda *_: done.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    done.wait(10)
    client.disconnect()
    client.loop_stop()
    return {name: value for name, value in found.items() if isinstance(value, int | str)}


def requests_at_a_node(rig: Rig) -> str:
    """Each device is asked at its own node, with response topic and correlation data."""
    for number in (0, 1):
        rig.ask(number, across=False)
    return "both devices answered a client of their own node"


def requests_across(rig: Rig) -> str:
    """Each device is asked from the other node; the client looks for its retained state first, then asks for it."""
    for number in (0, 1):
        rig.ask(number)
    return "both devices answered a client of the other node"


def retained_across(rig: Rig) -> str:
    """What was retained at one node is given to who subscribes at the other later."""
    for number in (0, 1):
        with contextlib.suppress(queue.Empty):
            await_ready(rig.ports[1 - number], f"at-{number}", login=("watcher", PASSWORD), timeout_s=10)
            continue
        raise AssertionError("who subscribes at the other node gets only what is published from then on")
    return "retained states were given at the other node"


def found_across(rig: Rig) -> str:
    """A client lists the devices of both nodes, as the dashboard and the gateway do."""
    for port in rig.ports:
        found = {name for name, of in roll_call(rig.broker(port, "anna"), client="anna").items() if of.info is not None}
        assert {"at-0", "at-1"} <= found, f"only {', '.join(sorted(found)) or 'none'} of the devices was found"
    return "a client of either node found the devices of both"


def pool_across(rig: Rig) -> str:
    """The pool's requests are shared among members at both nodes, each answered once."""
    by = Counter(rig.ask(number % 2, "herd") for number in range(REQUESTS))
    assert len(by) == 2, f"only {next(iter(by))} was asked"
    return f"{REQUESTS} requests, " + ", ".join(f"{count} by {name}" for name, count in sorted(by.items()))


def last_will_across(rig: Rig) -> str:
    """A device whose connection breaks is `lost` at the other node, too."""
    states: list[str] = []
    watcher = paho.Client(CallbackAPIVersion.VERSION2, client_id="watcher", protocol=_version(rig))
    watcher.username_pw_set("watcher", PASSWORD)
    watcher.on_message = lambda c, u, message: states.append(json.loads(message.payload)["state"])
    watcher.on_connect = lambda c, *_: c.subscribe("stonechat/1/victim/out/state", 1)
    watcher.connect("127.0.0.1", rig.ports[1])
    watcher.loop_start()
    _until(watcher.is_connected, "the watcher was refused")
    victim = paho.Client(CallbackAPIVersion.VERSION2, client_id="victim", protocol=_version(rig))
    victim.username_pw_set("victim", PASSWORD)
    victim.will_set("stonechat/1/victim/out/state", '{"state":"lost"}', 1, retain=True)
    victim.connect("127.0.0.1", rig.ports[0])
    victim.loop_start()
    _until(victim.is_connected, "the victim was refused")
    victim.publish("stonechat/1/victim/out/state", '{"state":"ready"}', 1, retain=True).wait_for_publish(10)
    _until(lambda: "ready" in states, "the state did not come to the other node")
    victim._sock_close()  # as a power cut ends it: no DISCONNECT
    victim.loop_stop()
    _until(lambda: "lost" in states, "the will did not come to the other node")
    watcher.disconnect()
    watcher.loop_stop()
    return "messages and the last will came to a subscriber of the other node"


def _version(rig: Rig) -> MQTTProtocolVersion:
    return MQTTProtocolVersion.MQTTv5 if rig.protocol == "5" else MQTTProtocolVersion.MQTTv311


def _until(holds: Callable[[], bool], why: str) -> None:
    end_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end_s, why
        time.sleep(0.05)


FEATURES = {
    "at one node": requests_at_a_node, "live, and will": last_will_across, "retained": retained_across,
    "found across": found_across, "requests across": requests_across, "pool across": pool_across,
}  # fmt: skip


def measured(broker: str, folder: Path) -> dict[str, Any]:
    """What works, by feature: what was seen, or `lacks: …`."""
    with CLUSTERS[broker](folder, USERS) as ports, ExitStack() as stack:
        says = offered(ports[0])
        protocol = "5" if says.get("answer") == "Success" else "3.1.1"
        found: dict[str, Any] = {"broker": broker, "protocol": protocol, "connack": says}
        rig = Rig(folder, ports, protocol, stack)
        with contextlib.suppress(queue.Empty, OSError):  # what does not come is found to be lacking
            for number, port in enumerate(ports):
                await_ready(port, f"at-{number}", login=("watcher", PASSWORD), timeout_s=START_S)
        for name, check in FEATURES.items():
            try:
                found[name] = check(rig)
            except (StonechatError, AssertionError, OSError, RuntimeError) as error:
                found[name] = f"lacks: {error}"
        return found


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("broker", choices=CLUSTERS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(args.broker, Path(folder))
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:15} {value}")


if __name__ == "__main__":
    main()
