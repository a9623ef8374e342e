"""What also comes to a device, and is for none of its models: questions, requests and talk, by pattern, and readings.

Readings are among them because a task of logs has JSON objects among its texts: without others, every object of which a
field holds words would be taken for a line of a log.
"""

# ruff: noqa: E501  (sentences)

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator

__all__ = ["other_readings", "other_texts"]

_THINGS = (
    "a volcano", "the moon", "photosynthesis", "inflation", "the Roman empire", "a black hole", "jazz", "chess", "bread",
    "a violin", "the immune system", "a mortgage", "sea level", "a bicycle", "an old oak tree", "friendship", "autumn",
    "the history of glass", "a passport", "whales", "gravity", "my taxes", "a good novel", "coffee beans", "marathon training",
    "a stomach ache", "the French revolution", "an exam", "potatoes", "a birthday cake", "a job interview", "poetry",
)  # fmt: skip
_QUESTIONS = (
    "What is {}?", "What do you know about {}?", "Why do people like {}?", "How does one explain {} to a child?",
    "Who was the first to write about {}?", "When was {} discovered?", "Is it true what they say about {}?",
    "Can you help me with {}?", "Is it healthy to think about {} every day?", "What is {} good for?", "Which book on {} is best?",
)  # fmt: skip
_REQUESTS = (
    "Write a short poem about {}.", "Summarize what is known about {}.", "Translate a sentence about {} into Italian.",
    "Write a polite letter to my landlord about {}.", "Give me five names for a shop that sells {}.",
    "Explain {} in two sentences.", "Do you know a joke about {}?", "Draft an email about {} to my boss.", "List ten facts about {}.",
)  # fmt: skip
_TALK = (
    "I read an article about {} yesterday and I did not understand a word of it.", "My grandfather always talked about {}.",
    "When I was a child I was afraid of {}.", "He said that {} had changed his life, and nobody believed him.",
    "She carried it to the station, thinking of {} all the way.", "We spent two weeks there and saw {}.",
    "I could never afford {}, though I wanted it more than anything.", "They had been married for years before {} came up.",
    "It seemed to me that {} was the only thing that mattered to them.", "I put it in my pocket and forgot about {}.",
)  # fmt: skip
_LINES = (
    "SELECT name, price FROM orders WHERE id = 7;", "for i in range(10): print(i)", "Preheat the oven to 180 degrees and butter a tin.",
    "The patient reports pain in the left knee.", "Wo ist der nächste Bahnhof?", "Je voudrais un café, s'il vous plaît.",
    "¿Qué tiempo hace mañana?", "Buy two kilos of apples, flour and eggs.", "x = (-b + sqrt(b*b - 4*a*c)) / (2*a)",
    "Dear Sir or Madam, I am writing to apply for the position.", "The court dismissed the appeal on Tuesday.",
    "12 + 30 = ?", "def add(a, b): return a + b", "The shares closed two percent lower.", "Goal in the last minute of the match!",
    "<html><body><h1>Welcome</h1></body></html>", "Fold the paper along the dotted line.", "qwertz asdf yxcv", "lorem ipsum dolor sit amet",
)  # fmt: skip


_WHERE = ("sensor", "name", "station", "location", "place", "probe", "label", "room", "zone", "site")
_PLACES = (
    "north wall", "second floor", "cow shed", "roof garden", "left bank", "hall 3", "old barn", "upper field", "tank 2",
    "main street", "boat house", "herb bed", "pond east", "attic window", "green house 4", "bus stop", "wood store",
    "west gate", "fish tank", "hay loft", "river bridge", "play room", "vine row 12", "bee hive", "cold store", "gate house",
)  # fmt: skip
_FIGURES = (
    "temperature", "ph", "lux", "wind_m_s", "level_cm", "battery", "co2_ppm", "rain_mm", "pressure_hpa", "moisture",
    "weight_kg", "voltage", "noise_db", "pm25", "uv_index", "speed_kmh", "count", "salinity", "power_w", "rssi",
)  # fmt: skip


def other_readings(count: int, seed: int = 0) -> Iterator[str]:
    """`count` readings of sensors with a name of two words, as JSON, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        named = {rng.choice(_WHERE): rng.choice(_PLACES)}
        figures = {
            name: round(rng.uniform(0, 100), rng.choice((0, 1, 2))) for name in rng.sample(_FIGURES, rng.randint(1, 3))
        }
        yield json.dumps({**named, **figures} if rng.random() < 0.6 else {**figures, **named})


def other_texts(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts, the same for the same seed."""
    rng = random.Random(seed)
    made = [form.format(thing) for form, thing in itertools.product(_QUESTIONS + _REQUESTS + _TALK, _THINGS)]
    yield from [*_LINES, *rng.sample(made, min(count, len(made)))][:count]
