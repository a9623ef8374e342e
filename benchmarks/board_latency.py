"""A microcontroller in QEMU: from reset to its first answer, and what the bridge adds to the board's own time.

    python benchmarks/board_latency.py [--board mps3-an547] [--requests 60] [--resets 5] [--json FILE]

The boiler advisor, with its schema. *Own time*: the whole answer over the serial line, asked by a program beside the
board (`SerialModel`). *Over MQTT*: the same requests through mosquitto and `stonechat bridge`. What the bridge adds is
the median over rounds of the difference of the medians: both are measured in turn. *From reset*: from the reset button
(QMP) to the prompt of the console, with hash and self-test, and to the first byte and to the end of an answer to a line
that is sent then. The emulator's speed is this machine's: the times of a part are its own.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from boards import load_board
from device_runtime.bridge.link import Link
from device_runtime.bridge.model import SerialModel
from device_runtime.bundle.folder import Bundle
from device_runtime.client.remote import RemoteModel
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.tasks.purpose import Purpose
from toolkit.demo import broker
from toolkit.demo.processes import Processes
from toolkit.demo.run import STONECHAT, own_path
from toolkit.firmware.build import build_firmware
from toolkit.firmware.images import image_for
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.slots import firmware_image, model_image, write_flash

EXAMPLE = Path(__file__).parents[1] / "examples" / "boiler-advisor" / "bundle"
WARM_UP = 3
DEVICE = "bench-mcu"


def timed(ask: Callable[[str], str], prompts: list[str]) -> list[float]:
    """Milliseconds of each answer, without the first few."""
    found = []
    for number, prompt in enumerate([*prompts[:WARM_UP], *prompts]):
        began_s = time.perf_counter()
        ask(prompt)
        if number >= WARM_UP:
            found.append((time.perf_counter() - began_s) * 1e3)
    return found


def from_reset(emulator: Emulator, prompt: str, times: int) -> list[tuple[float, float, float]]:
    """Milliseconds to the console's prompt, to an answer's first byte, to its end."""
    found = []
    for _ in range(times):
        began_s = time.perf_counter()
        emulator.reset()
        emulator.wait_until_ready()
        ready_s, first_s = time.perf_counter(), None
        for _ in emulator.ask(prompt):
            first_s = first_s or time.perf_counter()
        answered_s = time.perf_counter()
        first_s = first_s or ready_s
        found.append(((ready_s - began_s) * 1e3, (first_s - began_s) * 1e3, (answered_s - began_s) * 1e3))
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--board", metavar="ID", default="mps3-an547")
    parser.add_argument("--requests", metavar="N", type=int, default=60)
    parser.add_argument("--rounds", metavar="N", type=int, default=3)
    parser.add_argument("--resets", metavar="N", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args()
    bundle, board = Bundle.open(EXAMPLE), load_board(args.board)
    purpose = Purpose.of_manifest(bundle.manifest)
    assert purpose is not None
    readings = ({"temp_c": 40.0 + n % 60, "bar": 1.0 + n % 7 / 4, "flow_l_min": n % 13} for n in range(args.requests))
    asked = [json.dumps(reading) for reading in readings]
    line = purpose.inputs.prompt(json.loads(asked[0])).text  # the console's user writes what the model reads
    with Processes() as parts, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = build_firmware(image_for(bundle, folder, current=True), board, folder / "firmware")
        flash = folder / "flash.bin"
        model = model_image(build.image.read_bytes(), bundle.manifest, board)
        write_flash(flash, board, firmware_image(build, board), model)
        _, port = broker.start(parts)
        with Emulator(build, board, flash) as emulator:
            emulator.wait_until_ready()
            starts = from_reset(emulator, line.strip(), args.resets)
            emulator.disconnect()
            own, whole, added = [], [], []
            bridge = [*STONECHAT, "bridge", "--device", DEVICE, "--port", emulator.url, "--bundle", str(EXAMPLE)]
            bridge += ["--broker", f"mqtt://127.0.0.1:{port}", "--wait", "30", "--state-dir", str(folder / "state")]
            for _ in range(args.rounds):  # in turn, so that what else the machine does is in both
                serial = SerialModel(Link(emulator.url), bundle).open(20)
                own += (now := timed(lambda prompt: "".join(serial.generate(prompt)), asked))  # noqa: B023
                serial.close()
                log = open(folder / "bridge.log", "a")  # noqa: SIM115
                process = subprocess.Popen(bridge, stdout=log, stderr=log, env=own_path())
                time.sleep(5)  # it says who it is
                with RemoteModel(BrokerAddress("127.0.0.1", port), DEVICE) as remote:
                    whole += (then := timed(lambda prompt: "".join(remote.generate(prompt)), asked))
                process.send_signal(signal.SIGINT)
                process.wait(30)
                added.append(statistics.median(then) - statistics.median(now))
    ready, first, end = (statistics.median(column) for column in zip(*starts, strict=True))
    figures = {
        "board": board.id,
        "reset_to_ready_ms": round(ready, 1),
        "reset_to_first_byte_ms": round(first, 1),
        "reset_to_first_answer_ms": round(end, 1),
        "own_p50_ms": round(statistics.median(own), 2),
        "mqtt_p50_ms": round(statistics.median(whole), 2),
        "added_p50_ms": round(statistics.median(added), 2),
        "added_p50_ms_by_round": " ".join(f"{one:.2f}" for one in added),
        "own_p99_ms": round(statistics.quantiles(own, n=100)[98], 2),
        "mqtt_p99_ms": round(statistics.quantiles(whole, n=100)[98], 2),
    }
    for key, value in figures.items():
        print(f"{key:<26}{value}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
