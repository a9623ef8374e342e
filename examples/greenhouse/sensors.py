"""Simulated sensors of two glasshouses, publishing JSON over MQTT.

    python examples/greenhouse/sensors.py --broker mqtt://localhost:1883 --rate 4

Temperature and humidity follow the sun, soil dries by day and is watered when it is very dry. The same seed gives the
same readings. A simulated day passes in `--day` seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

HOUSES = {"tomato": 3.0, "fern": -2.0}  # name -> °C above the average house
STEP_H = 0.1  # simulated hours between two rounds of readings


def readings(seed: int, start_h: float = 6.0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Endless (topic, reading) pairs, house by house, from `start_h` hours of the first day."""
    rng = random.Random(seed)
    soil = {house: rng.uniform(30.0, 45.0) for house in HOUSES}
    clouds, hour = 0.3, start_h
    while True:
        sun = max(0.0, math.sin((hour % 24 - 6.0) / 12.0 * math.pi))  # 0 at 6:00 and 18:00, 1 at noon
        clouds = min(1.0, max(0.0, clouds + rng.gauss(0.0, 0.03)))
        for house, offset_c in HOUSES.items():
            temp_c = 16.0 + offset_c + 18.0 * sun * (1.0 - 0.6 * clouds) + rng.gauss(0.0, 0.3)
            humidity = min(99.0, max(20.0, 88.0 - 45.0 * sun - offset_c + rng.gauss(0.0, 1.5)))
            soil[house] -= STEP_H * (0.3 + 2.2 * sun)
            if soil[house] < 18.0:  # the gardener came
                soil[house] = rng.uniform(40.0, 50.0)
            clock = f"{int(hour % 24):02d}:{int(hour * 60 % 60):02d}"
            air = {"temp_c": round(temp_c, 1), "humidity_percent": round(humidity), "time": clock}
            yield f"greenhouse/{house}/air", air
            yield f"greenhouse/{house}/soil", {"moisture_percent": round(soil[house], 1), "time": clock}
        hour += STEP_H


def main() -> int:
    """Publish until stopped."""
    parser = argparse.ArgumentParser(description="Simulated greenhouse sensors.")
    parser.add_argument("--broker", metavar="URL", default="mqtt://localhost:1883", help="mqtt://host[:port]")
    parser.add_argument("--rate", metavar="N", type=float, default=4.0, help="readings per second (default 4)")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="the same seed gives the same readings")
    parser.add_argument("--start", metavar="H", type=float, default=6.0, help="hour at which the first day starts")
    parser.add_argument("--count", metavar="N", type=int, default=0, help="stop after N readings (default: never)")
    args = parser.parse_args()
    if not 0 < args.rate <= 10_000:
        parser.error("--rate must be above 0 and at most 10000 readings per second")

    broker = urlsplit(args.broker)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    try:
        client.connect(broker.hostname or "localhost", broker.port or 1883)
    except OSError as e:
        print(f"no broker at {args.broker}: {e}. Start one, or name another with --broker.", file=sys.stderr)
        return 3
    client.loop_start()
    try:
        for number, (topic, reading) in enumerate(readings(args.seed, args.start), 1):
            sent = client.publish(topic, json.dumps(reading), qos=1)
            if number == args.count:
                sent.wait_for_publish(5.0)
                break
            time.sleep(1 / args.rate)
    except KeyboardInterrupt:
        pass
    finally:
        client.disconnect()
        client.loop_stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
