"""What a trained bundle knows of its own certainty: a temperature for each field, and the look of familiar texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from device_runtime.tasks.answering import TypedAnswer, confidence_of
from device_runtime.tasks.examples import Example
from device_runtime.tasks.purpose import Purpose

__all__ = ["fit_temperatures", "longest_pieces"]

_TEMPERATURES = np.geomspace(1.0, 8.0, 61)  # never surer than the model itself: other wording is harder
_FAMILIAR = 0.999  # of the training's own texts, which count as familiar


def fit_temperatures(purpose: Purpose, examples: Sequence[Example], answers: Sequence[TypedAnswer]) -> dict[str, float]:
    """For each typed field the temperature at which its confidence predicts best whether it is right.

    It is the likelihood that is made largest (Guo et al. 2017, "On Calibration of Modern Neural Networks"), of right
    and wrong as they came out on examples that training has not seen.
    """
    found = {}
    for name in purpose.fields:
        held = [
            (answer.choices[name], answer.answer[name] == example.answer[name])
            for example, answer in zip(examples, answers, strict=True)
            if answer.answer is not None and example.answer is not None and answer.choices.get(name)
        ]
        if not held:
            continue
        losses = []
        for temperature in _TEMPERATURES:
            sure = np.clip([confidence_of(choices, float(temperature)) for choices, _ in held], 1e-6, 1 - 1e-6)
            right = np.array([r for _, r in held])
            losses.append(-np.mean(np.where(right, np.log(sure), np.log(1 - sure))))
        found[name] = round(float(_TEMPERATURES[int(np.argmin(losses))]), 4)
    return found


def longest_pieces(encode: Callable[[str], Sequence[int]], prompts: Sequence[str]) -> float:
    """Tokens for each character, which nearly all texts of the training stay under."""
    shares = [len(encode(prompt)) / len(prompt) for prompt in prompts if len(prompt) >= 4]
    return round(float(np.quantile(shares, _FAMILIAR)) * 1.1, 4)
