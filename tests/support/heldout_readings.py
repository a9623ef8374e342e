"""Readings for the numeric examples that their generator did not make: other draws, and the truth as plain code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

__all__ = ["HELD_OUT"]

Case = dict[str, Any]


def boiler(count: int, seed: int) -> Iterator[Case]:
    """Readings of a boiler: ordinary days, borders, broken sensors, drifts, and no earlier readings at all."""
    rng = random.Random(seed)
    for _ in range(count):
        given = _boiler_reading(rng)
        if rng.random() < 0.1:
            name = rng.choice(["temp_c", "bar", "flow_l_min"])
            broken = {"temp_c": [-40, -21, 151, 200, 999, -273, 327.7], "bar": [-1, -0.1, 10.5, 25, 99]}
            given[name] = rng.choice(broken.get(name, [-5, -0.5, 61, 80, 1000]))
        earlier: list[Case] = []
        number, drift = rng.choice([0, 5, 5, 5, 3, 1]), rng.choice([0, 0.3, 1, 1.9, 2.0, 2.1, 3, 6, -2, 12, -6])
        for i in range(number):
            then = round(given["temp_c"] - drift * (number - i) / number + rng.gauss(0, 0.1) * (i > 0), 1)
            earlier.append({**_boiler_reading(rng), "temp_c": then})
        if earlier or rng.random() < 0.5:
            given["window"] = earlier
        severity, cause = _boiler_truth(given["temp_c"], given["bar"], given["flow_l_min"], earlier)
        yield {"input": given, "answer": {"severity": severity, "cause": cause}}


def _boiler_reading(rng: random.Random) -> Case:
    temp = rng.choice([rng.uniform(30, 80), rng.uniform(20, 120), rng.gauss(85, 6), rng.gauss(95, 4)])
    bar = rng.choice([rng.uniform(1, 2.5), rng.uniform(0.2, 4), rng.gauss(2.5, 0.2), rng.gauss(3, 0.2)])
    flow = rng.choice([rng.uniform(3, 20), rng.uniform(0, 40), rng.uniform(0, 3), 0.0])
    return {"temp_c": round(temp, 1), "bar": round(bar, rng.choice([1, 2])), "flow_l_min": round(flow, 1)}


def _boiler_truth(temp: float, bar: float, flow: float, earlier: list[Case]) -> tuple[str, str]:
    if not (-20 <= temp <= 150 and 0 <= bar <= 10 and 0 <= flow <= 60):
        return "warn", "sensor_fault"
    if bar >= 3:
        return "alarm", "overpressure"
    if temp >= 95:
        return "alarm", "overheat"
    if flow < 2 and earlier and temp - earlier[0]["temp_c"] >= 2:
        return "alarm", "no_flow"
    if bar < 1:
        return "warn", "low_pressure"
    if temp >= 85:
        return "warn", "overheat"
    return ("warn", "overpressure") if bar >= 2.5 else ("ok", "none")


def fall(count: int, seed: int) -> Iterator[Case]:
    """Readings of a wearable: ordinary ones, and ones on the borders."""
    rng = random.Random(seed)
    for _ in range(count):
        peak = rng.choice([rng.uniform(0.5, 2.5), rng.uniform(0, 6), rng.gauss(3, 0.3), 3.0, rng.uniform(2, 12)])
        still = rng.choice([rng.randint(0, 600), rng.gauss(60, 4), rng.gauss(300, 8), 60, 300, rng.randint(0, 4000)])
        heart = rng.choice([rng.randint(50, 110), rng.randint(25, 200), rng.gauss(40, 3), rng.gauss(150, 4), 40, 150])
        given: Case = {
            "peak_g": max(0.0, round(peak, rng.choice([1, 2]))),
            "posture_after": rng.choice(["lying", "lying", "sitting", "standing", "unknown"]),
            "still_s": max(0, round(still)),
            "heart_bpm": round(heart),
        }
        lying, peak_g = given["posture_after"] == "lying", given["peak_g"]
        still_s, bpm = given["still_s"], given["heart_bpm"]
        if lying and not 40 <= bpm <= 150:
            answer = ("call_help", "heart")
        elif lying and peak_g >= 3 and still_s >= 60:
            answer = ("call_help", "impact")
        elif peak_g >= 3:
            answer = ("check", "impact")
        else:
            answer = ("check", "lying_still") if lying and still_s >= 300 else ("none", "none")
        yield {"input": given, "answer": {"level": answer[0], "reason": answer[1]}}


HELD_OUT = {"boiler-advisor": boiler, "fall-alert": fall}
