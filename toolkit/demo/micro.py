"""Shows a boiler advisor on a microcontroller: `python -m toolkit.demo.micro [--board mps3-an547] [--answers 6]`.

Starts a broker, the board in QEMU, `stonechat bridge` between the two, and publishes readings; prints what the board
answers. Each is a process of its own, and all are stopped at the end.
"""

from __future__ import annotations

import argparse
import json
import queue
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boards import load_board
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import UnreachableError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.topics import DeviceTopics, matches
from toolkit.demo import broker
from toolkit.demo.processes import Processes
from toolkit.demo.run import STONECHAT, exit_code_of, next_message, own_path
from toolkit.firmware.build import build_firmware
from toolkit.firmware.images import image_for
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.slots import firmware_image, model_image, write_flash

__all__ = ["READINGS", "main", "show"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "boiler-advisor"
DEVICE = "boiler-room"
READY_S = 120.0
ANSWER_S = 120.0
READINGS: tuple[dict[str, float], ...] = (  # a day with a pump that stops
    {"temp_c": 61.0, "bar": 1.6, "flow_l_min": 12.0},
    {"temp_c": 74.5, "bar": 1.8, "flow_l_min": 11.8},
    {"temp_c": 86.0, "bar": 2.2, "flow_l_min": 3.1},
    {"temp_c": 97.5, "bar": 2.4, "flow_l_min": 0.4},
    {"temp_c": 58.0, "bar": 0.6, "flow_l_min": 11.9},
    {"temp_c": 63.0, "bar": 1.5, "flow_l_min": 12.1},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m toolkit.demo.micro", description=__doc__.splitlines()[0])
    parser.add_argument("--board", metavar="ID", default="mps3-an547", help="one that QEMU has (default mps3-an547)")
    parser.add_argument("--answers", metavar="N", type=int, default=len(READINGS), help="stop after N answers")
    args = parser.parse_args(argv)

    def answered() -> None:
        for _ in show(args.board, args.answers):
            pass

    return exit_code_of(answered)


def show(board_id: str, answers: int) -> Iterator[tuple[dict[str, float], dict[str, Any]]]:
    """Run all parts; each reading with what the board answered.

    Raises:
        PartFailedError: a part ended by itself.
        UnreachableError: no answer in time.
        BackendMissingError: a compiler or QEMU is not installed.
        ConfigurationError: there is no broker on this machine.
    """
    board, bundle = load_board(board_id), Bundle.open(EXAMPLE / "bundle")
    with Processes() as processes:
        print(f"building the firmware for {board.name} …", file=sys.stderr)
        folder = processes.folder
        build = build_firmware(image_for(bundle, folder, current=True), board, folder / "firmware")
        flash = None
        if build.program is not None:
            flash = folder / "flash.bin"
            model = model_image(build.image.read_bytes(), bundle.manifest, board)
            write_flash(flash, board, firmware_image(build, board), model)
        kind, port = broker.start(processes)
        url = f"mqtt://127.0.0.1:{port}"
        print(f"broker   {kind} on port {port}")
        heard: queue.Queue[Incoming] = queue.Queue()
        client = Client(BrokerAddress.from_url(url), f"demo-{secrets.token_hex(4)}", on_message=heard.put)
        client.subscribe(Subscription(DeviceTopics(DEVICE).state), Subscription("plant/+/boiler/advice"))
        client.connect()
        try:
            with Emulator(build, board, flash) as emulator:
                print(f"board    {board.name} in QEMU, its serial line on {emulator.url}")
                _start_bridge(processes, emulator.url, url)
                _await_ready(processes, heard)
                print(f"bridge   the board is the device {DEVICE}\n")
                for reading in READINGS[:answers]:
                    client.publish("plant/7/boiler", json.dumps(reading).encode(), qos=1)
                    started_s = time.monotonic()
                    answer = _next_answer(processes, heard)
                    _print(reading, answer, time.monotonic() - started_s)
                    yield reading, answer
        finally:
            client.close()


def _start_bridge(processes: Processes, line: str, broker_url: str) -> None:
    command = [*STONECHAT, "bridge", str(EXAMPLE / "fleet.yaml"), "--device", DEVICE, "--port", line]
    command += ["--broker", broker_url, "--wait", "60", "--state-dir", str(processes.folder / "state")]
    processes.start("bridge", command, own_path())


def _await_ready(processes: Processes, heard: queue.Queue[Incoming]) -> None:
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s:
        message = next_message(processes, heard, end_s - time.monotonic())
        if message is not None and message.topic == DeviceTopics(DEVICE).state and b'"ready"' in message.payload:
            return
    raise UnreachableError(f"the board is not ready after {READY_S:g} s.{processes.last_words('bridge')}")


def _next_answer(processes: Processes, heard: queue.Queue[Incoming]) -> dict[str, Any]:
    end_s = time.monotonic() + ANSWER_S
    while time.monotonic() < end_s:
        message = next_message(processes, heard, end_s - time.monotonic())
        if message is not None and matches("plant/+/boiler/advice", message.topic):
            answer: dict[str, Any] = json.loads(message.payload)
            return answer
    raise UnreachableError(f"no answer for {ANSWER_S:g} s.{processes.last_words('bridge')}")


def _print(reading: dict[str, float], answer: dict[str, Any], seconds: float) -> None:
    figures = ", ".join(f"{name} {value:g}" for name, value in reading.items())
    print(
        f"{figures}\n    {json.dumps(answer.get('answer', answer), ensure_ascii=False)}   {seconds:.1f} s", flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
