"""Lines of logs and what they are about: JSON lines, the same for the same seed.

    python generate.py --seed 0 --cases 1000

high: something is down, lost, killed or broken into. normal: an error or a warning that should not wait for ever.
low: small, over, or healed by itself. Lines of everyday work ask for nothing: none, low.

A line is one that somebody wrote (written.csv), or a message (messages.yaml, routine.yaml), or a thing with what can be
said of it (phrases.yaml, and of many worlds worlds.yaml), after the prefix of some log format, with names and numbers
put in. Some are written as a program's code or as fields, get a tail, lose a word, or have a letter wrong.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit.examples.wording import chosen, misspelt

HERE = Path(__file__).parent
PHRASES, MESSAGES, ROUTINE, WORLDS = (
    yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    for name in ("phrases", "messages", "routine", "worlds")
)
CATEGORIES = list(MESSAGES)
INTERFACES = [
    "eth0", "eth1", "eth3", "enp3s0", "ens18", "wlan0", "eno1", "bond0", "wlp2s0", "usb0", "ppp0", "br0", "Gi0/3",
    "ge-0/0/1", "tun0",
]  # fmt: skip
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
SYLLABLES = [
    "ka", "lo", "mi", "ve", "ra", "to", "ni", "sa", "pe", "du", "ro", "xi", "ba", "ne",
    "zu", "fi", "go", "lan", "ter", "mon", "dex", "cor", "vel", "tan", "bri", "sol", "quo", "net",
]  # fmt: skip
TYPO_SHARE, DROP_SHARE, TAIL_SHARE, STRANGE_LEVEL = 0.06, 0.12, 0.15, 0.3
WRITTEN_SHARE, WORLD_SHARE, CODED_SHARE, LOUD_SHARE = 0.65, 0.6, 0.06, 0.05
BARE_SHARE, OTHER_HEAD = 0.7, 0.3  # of written lines: without a prefix of ours, and said by another device
GLUE = ["{t} {s}", "{t} {s}", "{t} {s}", "{t}: {s}", "{t} is {s}", "{s}: {t}", "{t} - {s}", "{t} on {d}: {s}"]
GLUE += ["{d}: {t} {s}", "{d}: {t} {s}", "{d} N: {t} {s}", "{d} HOST {t} {s}", "{p}: {t} {s}", "{d} N {t}: {s}"]
GLUE += ["{t} of {d} N {s}", "{t} {s} at {d} N", "{t} N {s}", "{t} HOST {s}", "{p}[N]: {t} N: {s}"]
ALONE = ["{s}", "{d} N: {s}", "{d} {s}", "{d} N {s}", "{p}: {s}", "{p}[N]: {s}", "{d} HOST: {s}", "{s} ({d} N)"]
ALONE += ["{s}, {d} N", "{d} HOST {s}", "{p}: {d} N: {s}", "{p} on HOST: {s}", "{s} at {d} N", "ORDERS {d}: {s}"]
CODES = ["Event N: ", "EventID N ", "E-N ", "ERR N: ", "ALM N: ", "code 0xHEX: ", "fault N: ", "[N] ", "#N ", "F0N "]
CODES += ["MSG-N ", "ID=N ", "alarm N: ", "Error N: ", "W0N ", "N: ", "LOC N: ", "msg N - "]

Names = dict[str, Callable[[], str]]


def invented(rng: random.Random) -> str:
    """A name that no list holds."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))
    return word + rng.choice(["", "", "", "d", "ctl", "-svc", "-api", "_worker", "db", "-agent", "-proxy", "2"])


def names(rng: random.Random) -> Names:
    """What is put in place of the capitals."""

    def of(kind: str, strange: float = 0.3) -> str:
        return invented(rng) if rng.random() < strange else str(rng.choice(PHRASES[kind]))

    def digits(count: int, letters: str = "0123456789abcdef") -> str:
        return "".join(rng.choice(letters) for _ in range(count))

    def number() -> str:
        return str(rng.choice([rng.randint(1, 9), rng.randint(10, 99), rng.randint(100, 99999)]))

    return {
        "IP": lambda: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
        "MAC": lambda: ":".join(digits(2) for _ in range(6)),
        "UUID": lambda: "-".join(digits(n) for n in (8, 4, 4, 4, 12)),
        "HEX": lambda: digits(rng.choice([7, 8, 12])),
        "HOST": lambda: of("hosts") + rng.choice(["", "", "", ".local", ".example.com", f"-{rng.randint(1, 30)}"]),
        "URL": lambda: f"http{rng.choice(['', 's'])}://{of('hosts')}:{rng.randint(80, 9999)}/{of('things')}",
        "IF": lambda: rng.choice(INTERFACES),
        "PCI": lambda: f"0000:{digits(2)}:{digits(2)}.0",
        "DEV": lambda: of("devs", 0),
        "PATH": lambda: of("paths", 0) if rng.random() < 0.6 else f"/{of('things')}/{of('procs')}",
        "PROC": lambda: of("procs"),
        "POD": lambda: f"{of('procs')}-{digits(5)}",
        "USER": lambda: of("users"),
        "ORDERS": lambda: of("things"),
        "CLOCK": lambda: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
        "DATE": lambda: f"{rng.randint(2019, 2027)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        "PCTHI": lambda: str(rng.randint(80, 99)),
        "PCT": lambda: str(rng.randint(3, 60)),
        "N": number,
    }


def filled(slots: Names, text: str) -> str:
    """With names and numbers in place of the capitals."""
    return re.sub(rf"(?<![A-Z])({'|'.join(slots)})(?![A-Z])", lambda found: slots[found[1]](), text)


def prefix(rng: random.Random, priority: str, slots: Names) -> str:
    """What is before the message: a date, a host, a program, a level."""
    of = priority if rng.random() > STRANGE_LEVEL else rng.choice(list(PHRASES["levels"]))
    level, host, program, date = rng.choice(PHRASES["levels"][of]), slots["HOST"](), slots["PROC"](), slots["DATE"]()
    clock = f"{slots['CLOCK']()}:{rng.randint(0, 59):02}"
    month, pid, known = rng.choice(MONTHS), rng.randint(1, 99999), rng.choice(["kernel", "systemd", "syslog", "app"])
    return rng.choice(
        [
            *[""] * 8,
            f"{level}: ",
            f"[{level}] ",
            f"{level} ",
            f"{date} {clock} {level} ",
            f"{date}T{clock}Z {level} ",
            f"{date} {clock} ",
            f"{month} {rng.randint(1, 28)} {clock} {host} {program}[{pid}]: ",
            f"{month} {rng.randint(1, 28)} {clock} {host} {known}: ",
            f"{month} {rng.randint(1, 28)} {clock} {host} ",
            f"{program}[{pid}]: ",
            f"kernel: [{pid}.{rng.randint(100000, 999999)}] ",
            f"[ {pid}.{rng.randint(100000, 999999)}] ",
            f"[{clock}] ",
            f"{date} {clock},123 - {level} - ",
            f"<{rng.randint(1, 191)}>{host} ",
            f"<{rng.randint(1, 191)}>1 {date}T{clock}Z {host} {program} {pid} - - ",
            f"{level} {program}: ",
            f"[{date} {clock}] [{level.lower()}] [pid {pid}] ",
            f"level={level.lower()} msg=",
            f"{program}: ",
            f"{date} {clock} [{program}] {level} ",
            f"time={date}T{clock} level={level.lower()} ",
            f'{{"ts":"{date}T{clock}","level":"{level.lower()}","msg":"',
            f'{{"host":"{host}","service":"{program}","message":"',
            f"{date} {clock}.{rng.randint(100, 999)} {pid} {level} --- [{slots['ORDERS']()}] c.{program}.Main : ",
            f"{host} | ",
            f"{program} | ",
            f"{level[0]}{rng.randint(1000, 1231)} {clock} {pid} {program}.go:{rng.randint(10, 999)}] ",
        ]
    )


def tail(rng: random.Random, slots: Names) -> str:
    """What programs write after a message, which says nothing of it."""
    return rng.choice(
        [
            f" (pid {slots['N']()})",
            f" host={slots['HOST']()}",
            f" [{slots['PROC']()}.c:{slots['N']()}]",
            f" trace_id={slots['HEX']()}",
            f" request_id={slots['UUID']()}",
            f" at {slots['CLOCK']()}",
            f" on {slots['HOST']()}",
            f", client: {slots['IP']()}",
            f" ({slots['DATE']()})",
            f" user={slots['USER']()}",
            ".",
            "!",
            '"}',
            f" | {slots['PROC']()}",
        ]
    )


def worn(rng: random.Random, text: str) -> str:
    """With a word left out or a letter wrong, now and then."""
    if rng.random() < DROP_SHARE and len(words := text.split(" ")) > 5:
        del words[rng.randrange(len(words))]
        text = " ".join(words)
    return misspelt(rng, text) if rng.random() < TYPO_SHARE else text


@functools.cache
def weighed(texts: tuple[str, ...]) -> list[float]:
    """How often each is taken: those with more alternatives more often."""
    return [1.0 + text.count("|") ** 0.7 for text in texts]


def one_of(rng: random.Random, texts: list[str]) -> str:
    """A message, with its alternatives chosen."""
    return chosen(rng, rng.choices(texts, weighed(tuple(texts)))[0]).replace(".*", "").strip()


def of_world(rng: random.Random) -> tuple[str, str, str]:
    """A line of some world, its category and its priority: a thing and what can be said of it."""

    def some(texts: list[str]) -> str:
        return chosen(rng, rng.choices(texts, weighed(tuple(texts)))[0])

    device, program = some(WORLDS["devices"]), some(WORLDS["programs"])
    kind = rng.choices(["high", "normal", "low", "routine"], [0.26, 0.31, 0.15, 0.28])[0]
    category = rng.choice(CATEGORIES)
    of = WORLDS[category]
    if kind == "routine":
        if rng.random() < 0.6:
            text = rng.choice(ALONE).format(s=some(WORLDS["routine"]), d=device, p=program)
        else:
            text = rng.choice(GLUE).format(s=rng.choice(of["says"][kind]), t=some(of["things"]), d=device, p=program)
        category, priority = "none", "low"
    else:
        priority = kind
        if rng.random() < 0.5:
            text = rng.choice(ALONE).format(s=some(of["alone"][kind]), d=device, p=program)
        else:
            text = rng.choice(GLUE).format(s=rng.choice(of["says"][kind]), t=some(of["things"]), d=device, p=program)
    text = chosen(rng, text).strip()
    return (rng.choice(CODES) + text if rng.random() < 0.12 else text), category, priority


def coded(rng: random.Random, text: str) -> str:
    """The same words as programs write names: DISK_FULL, DiskFull, disk-full."""
    words = re.findall(r"[A-Za-z]+|\d+", text)
    style = rng.randrange(4)
    if style == 0:
        return "".join(word.capitalize() for word in words)
    return ["_", "-", "."][style - 1].join(words).upper() if rng.random() < 0.6 else "_".join(words).lower()


def written(rng: random.Random, rows: Sequence[Mapping[str, str]]) -> tuple[str, str, str]:
    """A line that somebody wrote, its category and its priority; some are said by another device or program."""
    row = rng.choice(rows)
    text = row["text"]
    if (head := re.match(r"[A-Za-z][\w .#/-]{2,24}: (?=.{20})", text)) and rng.random() < OTHER_HEAD:
        other = chosen(rng, rng.choice(WORLDS["devices"] + WORLDS["programs"]))
        text = f"{other} {rng.randint(1, 40)}: {text[head.end() :]}"
    return text, row["category"], row["priority"]


def message(rng: random.Random) -> tuple[str, str, str]:
    """A message, its category and its priority."""
    if rng.random() < WORLD_SHARE:
        return of_world(rng)
    chance = rng.random()
    if chance < 0.22:
        return one_of(rng, ROUTINE["work"]), "none", "low"
    if chance < 0.27:
        return rng.choice(PHRASES["routine"]), "none", "low"
    if chance < 0.32:
        return one_of(rng, ROUTINE["chatter"]), "none", "low"
    category = rng.choice(CATEGORIES)
    priority = rng.choices(["high", "normal", "low"], [0.37, 0.42, 0.21])[0]
    chance = rng.random()
    if chance < 0.6:
        return one_of(rng, MESSAGES[category][priority]), category, priority
    if chance < 0.75:
        return rng.choice(PHRASES["known"][category][priority]), category, priority
    subject, state = rng.choice(PHRASES["subjects"][category]), rng.choice(PHRASES["states"][category][priority])
    return rng.choice(PHRASES["glue"]).format(s=subject, t=state, h="HOST"), category, priority


def line(rng: random.Random, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """An example; `rows` are those that somebody wrote."""
    slots = names(rng)
    if by_hand := rng.random() < WRITTEN_SHARE:
        text, category, priority = written(rng, rows)
    else:
        text, category, priority = message(rng)
        text = filled(slots, text)
    if len(text) < 60 and rng.random() < CODED_SHARE:
        text = coded(rng, text)
    if rng.random() < LOUD_SHARE:
        text = text.upper()
    if not by_hand or rng.random() > BARE_SHARE:
        text = prefix(rng, "none" if category == "none" else priority, slots) + text
    if rng.random() < TAIL_SHARE:
        text += tail(rng, slots)
    return {"input": {"text": worn(rng, text)}, "answer": {"category": category, "priority": priority}}


def main(lines: str = "written.csv") -> None:
    """Print them; `lines` is the file with those that somebody wrote."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    rows = list(csv.DictReader((HERE / lines).read_text(encoding="utf-8").splitlines()))
    rng = random.Random(f"log-triage {args.seed}")
    for _ in range(args.cases):
        print(json.dumps(line(rng, rows), ensure_ascii=False))


if __name__ == "__main__":
    main()
