"""Lines of logs and what they are about: JSON lines, the same for the same seed.

    python generate.py --seed 0 --cases 1000

high: something is down, lost, killed or broken into. normal: an error or a warning that should not wait for ever.
low: small, over, or healed by itself. Lines of everyday work ask for nothing: none, low.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import yaml

PHRASES = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))


def filled(rng: random.Random, text: str) -> str:
    """Names and numbers in place of the capitals."""
    slots = {
        "IP": lambda: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
        "HOST": lambda: rng.choice(PHRASES["hosts"]),
        "IF": lambda: rng.choice(
            ["eth0", "eth1", "enp3s0", "ens18", "wlan0", "eno1", "bond0", "wlp2s0", "usb0", "ppp0"]
        ),
        "DEV": lambda: rng.choice(PHRASES["devs"]),
        "PATH": lambda: rng.choice(PHRASES["paths"]),
        "PROC": lambda: rng.choice(PHRASES["procs"]),
        "USER": lambda: rng.choice(PHRASES["users"]),
        "ORDERS": lambda: rng.choice(PHRASES["things"]),
        "PCTHI": lambda: str(rng.randint(80, 97)),
        "PCT": lambda: str(rng.randint(3, 60)),
        "N": lambda: str(rng.choice([rng.randint(1, 9), rng.randint(10, 99), rng.randint(100, 99999)])),
    }
    return re.sub(r"\b(PCTHI|PCT|IP|HOST|IF|DEV|PATH|PROC|USER|ORDERS|N)(?![A-Za-z])", lambda m: slots[m[1]](), text)


def prefix(rng: random.Random, kind: str) -> str:
    level, host = rng.choice(PHRASES["levels"][kind]), rng.choice(PHRASES["hosts"])
    when = f"{rng.randint(2019, 2027)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
    month = rng.choice(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"])
    program = rng.choice(
        [*PHRASES["procs"], "kernel", "kernel", "systemd", "app", "syslog", "monitor", "agent", "daemon"]
    )
    pid = rng.randint(1, 99999)
    return rng.choice(
        [
            "",
            "",
            "",
            "",
            f"{level}: ",
            f"[{level}] ",
            f"{level} ",
            f"{when} {clock} {level} ",
            f"{when}T{clock}Z {level} ",
            f"{month} {rng.randint(1, 28)} {clock} {host} {program}[{pid}]: ",
            f"{month} {rng.randint(1, 28)} {clock} {host} kernel: ",
            f"{program}[{pid}]: ",
            f"kernel: [{pid}.{rng.randint(100000, 999999)}] ",
            f"[{clock}] ",
            f"{when} {clock},123 - {level} - ",
            f"<{rng.randint(1, 191)}>{host} ",
            f"{level} {program}: ",
            f"[{when} {clock}] [{level.lower()}] [pid {pid}] ",
            f"level={level.lower()} msg=",
            f"{program}: ",
            f"{when} {clock} [{program}] {level} ",
            f"time={when}T{clock} level={level.lower()} ",
        ]
    )


def line(rng: random.Random) -> tuple[str, str, str]:
    if rng.random() < 0.28:
        text = rng.choice(PHRASES["routine"])
        return prefix(rng, "none") + filled(rng, text), "none", "low"
    category = rng.choice(list(PHRASES["subjects"]))
    priority = rng.choices(["high", "normal", "low"], [0.4, 0.4, 0.2])[0]
    if rng.random() < 0.4:
        text = rng.choice(PHRASES["known"][category][priority])
    else:
        subject, state = rng.choice(PHRASES["subjects"][category]), rng.choice(PHRASES["states"][category][priority])
        text = rng.choice(PHRASES["glue"]).format(s=subject, t=state, h="HOST")
    return prefix(rng, priority) + filled(rng, text), category, priority


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    rng = random.Random(f"log-triage {args.seed}")
    for _ in range(args.cases):
        text, category, priority = line(rng)
        answer = {"category": category, "priority": priority}
        print(json.dumps({"input": {"text": text}, "answer": answer}, ensure_ascii=False))


if __name__ == "__main__":
    main()
