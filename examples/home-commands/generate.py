"""Commands to a house, and sentences that are none: JSON lines, the same for the same seed.

python generate.py --seed 0 --cases 1000
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from toolkit.examples.wording import chosen, misspelt

HERE = Path(__file__).parent
PHRASES, TALK = (yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("phrases", "talk"))
WRITTEN, WRITTEN_SHARE = ("later.jsonl", "written.jsonl"), 0.4  # and of the cases
LONGEST = 120  # characters, as task.yaml has it
NONE: dict[str, Any] = {"action": "none", "device": "none", "room": "none", "value": None}


def spoken(number: int) -> str:
    """21 as twenty-one."""
    if number < 20:
        return PHRASES["ones"][number]
    if number == 100:
        return "one hundred"
    return PHRASES["tens"][number // 10 - 2] + (" " + PHRASES["ones"][number % 10] if number % 10 else "")


def room_phrase(rng: random.Random, room: str) -> tuple[str, str]:
    """(before the device, after it): `kitchen light` or `light in the kitchen`; one of them is empty."""
    if room == "all":
        return ("all ", "") if rng.random() < 0.5 else ("", rng.choice(PHRASES["all"]))
    name = rng.choice(PHRASES["rooms"][room])
    if rng.random() < 0.5 and name not in ("outside", "outdoors"):
        return ("my " if rng.random() < 0.03 else "") + name + " ", ""
    if name in ("outside", "outdoors"):
        return "", name
    place = rng.choice(
        ["in the", "in the", "in the", "in", "in my", "of the", "in our", "inside the", "at the", "for the", "in that"]
    )
    if room == "garden" and name in ("patio", "terrace", "lawn"):
        place = "on the"
    return "", f"{place} {name}"


def thing(rng: random.Random, device: str, room: str) -> str:
    """`the kitchen light`, `every lamp in the house`."""
    name = rng.choice(PHRASES["devices"][device])
    before, after = room_phrase(rng, room) if room != "none" else ("", "")
    if room == "all" and before:
        article = rng.choice(["all ", "all the ", "all ", "every ", "each ", "all of the ", "all our "])
        name = name if name.endswith("s") or article in ("every ", "each ") or "heat" in name else name + "s"
        return article + name
    articles = (
        ["the ", "the ", "the ", "", "", "my ", "that ", "our ", "this "]
        if room == "none"
        else ["the ", "the ", "the ", "", "my ", "our "]
    )
    if room not in ("none", "all") and rng.random() < 0.12 and name.endswith("s"):
        articles = ["all ", "all the ", "both "]
    return f"{rng.choice(articles)}{before}{name}{' ' + after if after else ''}"


def number_phrase(rng: random.Random, device: str) -> tuple[int, str]:
    if device == "heating":
        number = rng.randint(5, 30)
        unit = rng.choice([" degrees", " degrees", "", "°", " °c", "°c", " celsius", " degrees celsius", " c", "c"])
    elif device == "fan":
        number = rng.choice([rng.randint(1, 5), rng.randint(1, 10), rng.randrange(0, 101, 5)])
        unit = rng.choice(["", ""]) if number <= 10 else rng.choice(["%", " percent", " %", ""])
        if number <= 10 and rng.random() < 0.5:
            return number, rng.choice(["level ", "speed ", "stage ", "step "]) + (
                str(number) if rng.random() < 0.8 else spoken(number)
            )
    else:
        number = rng.choice([rng.randrange(0, 101, 10), rng.randrange(0, 101, 5), rng.randint(0, 100)])
        unit = rng.choice(["%", "%", " percent", " percent", " %", "", " per cent"])
    digits = rng.random() < 0.8
    if not digits and unit in ("%", "°", "c", "°c"):
        unit = rng.choice([" percent", ""]) if device != "heating" else rng.choice([" degrees", ""])
    return number, (str(number) if digits else spoken(number)) + unit


def filled(rng: random.Random, template: str, x: str, n: str = "") -> str:
    """A template with its thing; sometimes the room comes first."""
    return re.sub(r"\bN\b", lambda _: n, re.sub(r"\bX\b", lambda _: x, template))


def room_command(rng: random.Random) -> tuple[str, dict[str, object]]:
    """A room that is to be brighter, darker or warmer: the light or the heating is meant."""
    room = rng.choice(list(PHRASES["rooms"]))
    name = rng.choice(PHRASES["rooms"][room])
    place = name if name in ("outside", "outdoors") else rng.choice(["the ", "the ", "the ", "my ", ""]) + name
    kind = rng.choice(["room_brighter", "room_darker", "room_heat"])
    value, number = number_phrase(rng, "heating") if kind == "room_heat" else (None, "")
    text = rng.choice(PHRASES[kind])
    text = re.sub(r"\bR\b", lambda _: place, re.sub(r"\bN\b", lambda _: number, text))
    action = {"room_brighter": "brighten", "room_darker": "dim", "room_heat": "set"}[kind]
    device = "heating" if kind == "room_heat" else "light"
    return text, {"action": action, "device": device, "room": room, "value": value}


def command(rng: random.Random) -> tuple[str, dict[str, object]]:
    """A command, with what is polite around it."""
    text, answer = room_command(rng) if rng.random() < 0.07 else plain_command(rng)
    first, _, rest = text.partition(" ")
    if rng.random() < 0.2:  # with a reason, which is no command itself
        text = chosen(rng, rng.choice(TALK["reasons"])).replace("COMMAND", text)
    elif first in PHRASES["gerunds"] and rng.random() < 0.12:
        text = f"{chosen(rng, rng.choice(TALK['if_you']))} {past(first)} {rest}"
    elif first in PHRASES["gerunds"] and rng.random() < 0.06:
        text = f"{rng.choice(PHRASES['before_gerund'])} {PHRASES['gerunds'][first]} {rest}"
    elif rng.random() < 0.5:
        text = f"{rng.choice(PHRASES['before'])}{rng.choice(['', '', ','])} {text}"
    if rng.random() < 0.25:
        text = f"{text}{rng.choice(['', ',', ''])} {rng.choice(PHRASES['after'])}"
    return text, answer


def past(verb: str) -> str:
    """`switched` for `switch`."""
    return str(TALK["pasts"].get(verb, verb.removesuffix("e") + "ed"))


def plain_command(rng: random.Random) -> tuple[str, dict[str, object]]:
    device = rng.choice(["light", "light", "light", "heating", "heating", "blind", "fan", "socket", "door"])
    room = rng.choice(["none", "none", "all", *PHRASES["rooms"], *PHRASES["rooms"]])
    value: int | None = None
    number = ""
    if device == "light":
        action = rng.choice(["on", "off", "dim", "brighten", "set", "on", "off"])
    elif device in ("blind", "door"):
        action = rng.choice(["open", "close", "open", "close", "set" if device == "blind" else "open"])
    elif device == "socket":
        action = rng.choice(["on", "off"])
    elif device == "fan":
        action = rng.choice(["on", "off", "on", "off", "set"])
    else:
        action = rng.choice(["on", "off", "set", "set"])
    if action in ("dim", "brighten"):
        if rng.random() < 0.4:
            value, number = number_phrase(rng, device)
            template = rng.choice(PHRASES["dim_to"] if action == "dim" else PHRASES["brighten_to"])
        else:
            template = rng.choice(PHRASES["dim"] if action == "dim" else PHRASES["brighten"])
    elif action == "set":
        value, number = number_phrase(rng, device)
        template = rng.choice(PHRASES["set"])
    elif action in ("open", "close"):
        template = rng.choice((PHRASES["open"] if action == "open" else PHRASES["close"])[device])
    else:
        template = rng.choice(PHRASES["on"] if action == "on" else PHRASES["off"])
    if not number and rng.random() < 0.25:
        template = chosen(rng, rng.choice(TALK[action]))
    elif number and rng.random() < 0.2:
        template = chosen(rng, rng.choice(TALK[f"{action}_to"]))
    x = thing(rng, device, room)
    text = filled(rng, template, x, number)
    if room not in ("none", "all") and rng.random() < 0.12:  # in the kitchen, turn on the light
        bare = thing(rng, device, "none")
        text = filled(rng, template, bare, number)
        place = f"{rng.choice(['in the', 'in the', 'in', 'for the'])} {rng.choice(PHRASES['rooms'][room])}"
        text = f"{place}{rng.choice([',', '', ':'])} {text}" if rng.random() < 0.5 else f"{text} {place}"
    return text, {"action": action, "device": device, "room": room, "value": value}


def nothing(rng: random.Random) -> str:
    device, room = rng.choice(list(PHRASES["devices"])), rng.choice(["none", "none", "all", *PHRASES["rooms"]])
    x, n = thing(rng, device, room), str(rng.randint(1, 60)) if rng.random() < 0.7 else spoken(rng.randint(1, 60))
    r = rng.choice(["in the ", "in the ", ""]) + rng.choice(PHRASES["rooms"][rng.choice(list(PHRASES["rooms"]))])
    kind = rng.random()
    if kind < 0.34:
        text = rng.choice(PHRASES["questions"]) if rng.random() < 0.6 else chosen(rng, rng.choice(TALK["questions"]))
        text = filled(rng, text, x, n)
    elif kind < 0.52:
        text = rng.choice(PHRASES["statements"]) if rng.random() < 0.5 else chosen(rng, rng.choice(TALK["statements"]))
        text = filled(rng, text, x, n)
    elif kind < 0.56:
        text = rng.choice(PHRASES["smalltalk"])
    elif kind < 0.62:  # the reason for a command, without one
        text = chosen(rng, rng.choice(TALK["reasons"])).replace("COMMAND", "").strip(" ,;-").removesuffix(" so")
    elif kind < 0.76:
        text = filled(rng, rng.choice(PHRASES["wishes"]), x, n)
    elif kind < 0.93:  # the same verbs, of other things
        other = rng.choice(["the ", "the ", "my ", "a ", ""]) + rng.choice(PHRASES["other"])
        if rng.random() < 0.25:
            other += " " + room_phrase(rng, rng.choice(list(PHRASES["rooms"])))[1]
        verbs = rng.choice(
            [
                PHRASES["on"],
                PHRASES["off"],
                PHRASES["dim"],
                PHRASES["brighten"],
                PHRASES["set"],
                PHRASES["open"]["door"],
                PHRASES["close"]["door"],
                PHRASES["set"],
            ]
        )
        text = filled(rng, rng.choice(verbs), other.strip(), n)
    elif kind < 0.96:
        text = rng.choice(
            [
                x,
                rng.choice(PHRASES["rooms"][rng.choice(list(PHRASES["rooms"]))]),
                n,
                rng.choice(PHRASES["other"]),
                device,
            ]
        )
    else:
        words = (
            f"{rng.choice(PHRASES['smalltalk'])} {rng.choice(PHRASES['wishes'])} {rng.choice(PHRASES['other'])}".split()
        )
        rng.shuffle(words)
        text = " ".join(words[: rng.randint(2, 7)])
    text = re.sub(r"\bR\b", lambda _: r, text)
    text = re.sub(r"\bN\b", lambda _: n, text)
    if rng.random() < 0.35 and not text.startswith(("hello", "hi")):
        opening = rng.choice(PHRASES["before"])
        if kind < 0.34 and opening.split()[0] in (
            "could",
            "can",
            "would",
            "will",
            "may",
            "mind",
            "let's",
            "let",
            "go",
            "please",
        ):
            opening = rng.choice(["hey", "ok", "computer", "so", "um", "hi"])
        text = f"{opening} {text}"
    if rng.random() < 0.15:
        text = f"{text} {rng.choice(PHRASES['after'])}"
    if kind < 0.34 and rng.random() < 0.75:
        text += "?"
    return text


def written(rng: random.Random, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A sentence that somebody wrote; often with another room, device or number in its place, polite words, or a slip
    of the finger."""
    row = rng.choice(rows)
    text, answer = row["input"]["text"], row["answer"]
    if rng.random() < 0.35:
        text, answer = elsewhere(rng, text, answer)
    if rng.random() < 0.25 and answer["device"] != "door":
        text = otherwise(rng, text, answer)
    if rng.random() < 0.3:
        text, answer = with_number(rng, text, answer)
    if answer != NONE and len(text) < 70 and rng.random() < 0.12:
        before = rng.random() < 0.5
        text = f"{rng.choice(PHRASES['before'])} {text}" if before else f"{text} {rng.choice(PHRASES['after'])}"
    if rng.random() < 0.15:
        text = misspelt(rng, text)
    return {"input": {"text": text}, "answer": answer}


@cache
def names_of(kind: str) -> list[tuple[str, str, re.Pattern[str]]]:
    """(thing, name, what finds it), the longest name first."""
    names = sorted({(t, n) for t, ns in PHRASES[kind].items() for n in ns}, key=lambda pair: (-len(pair[1]), pair))
    return [(t, n, re.compile(rf"(?<![\w'-]){re.escape(n)}(?![\w'-])", re.IGNORECASE)) for t, n in names]


def named(text: str, kind: str) -> list[tuple[str, str, int]]:
    """Which rooms or devices a text names: (thing, name, place)."""
    found: list[tuple[str, str, int]] = []
    for thing, name, pattern in names_of(kind):
        for match in pattern.finditer(text):
            if not any(at < match.end() and match.start() < at + len(other) for _, other, at in found):
                found.append((thing, name, match.start()))
    return found


def elsewhere(rng: random.Random, text: str, answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The same of another room, or of the same by another name, where one is named."""
    found = named(text, "rooms")
    if len(found) != 1 or (answer != NONE and answer["room"] != found[0][0]) or found[0][1].startswith("out"):
        return text, answer
    room, name, place = found[0]
    other = room if rng.random() < 0.3 else rng.choice(list(PHRASES["rooms"]))
    names = [n for n in PHRASES["rooms"][other] if not n.startswith("out") and "my " not in n]
    text = text[:place] + rng.choice(names) + text[place + len(name) :]
    return text, answer if answer == NONE else {**answer, "room": other}


def otherwise(rng: random.Random, text: str, answer: Mapping[str, Any]) -> str:
    """The same with another name for its device."""
    found = named(text, "devices")
    if len(found) != 1 or answer["device"] not in ("none", found[0][0]):
        return text
    device, name, place = found[0]
    names = [n for n in PHRASES["devices"][device] if n.endswith("s") == name.endswith("s")]
    return text[:place] + rng.choice(names) + text[place + len(name) :]


def with_number(rng: random.Random, text: str, answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The same with another number, where there is one."""
    found = list(re.finditer(r"(?<![\w.,:])\d{1,2}(?![\w.,:])", text))
    if len(found) != 1 or (answer != NONE and answer["value"] != int(found[0][0])):
        return text, answer
    number, _ = number_phrase(rng, answer["device"] if answer != NONE else rng.choice(["light", "heating", "fan"]))
    text = text[: found[0].start()] + str(number) + text[found[0].end() :]
    return text, answer if answer == NONE else {**answer, "value": number}


def put_together(rng: random.Random) -> dict[str, Any]:
    """A sentence of the phrases, with what it means."""
    text, answer = (nothing(rng), NONE) if rng.random() < 0.45 else command(rng)
    if rng.random() < 0.15:
        for _ in range(rng.choice([1, 1, 2])):
            text = misspelt(rng, text)
    if rng.random() < 0.3:
        text += rng.choice([".", "!", ".", " !", "..", " please."]) if not text.endswith("?") else ""
    elif answer is not NONE and rng.random() < 0.1:
        text += "?"
    return {"input": {"text": text}, "answer": answer}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    rng = random.Random(f"home-commands {args.seed}")
    rows = [json.loads(line) for name in WRITTEN for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    for _ in range(args.cases):
        found = written(rng, rows) if rng.random() < WRITTEN_SHARE else put_together(rng)
        while len(found["input"]["text"]) > LONGEST:
            found = put_together(rng)
        print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
