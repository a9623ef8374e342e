"""How long the reading of a payload takes, by its size: each step on bytes from outside has to be linear.

    python benchmarks/payloads.py

Prints milliseconds of CPU time for payloads that make a careless parser slow, at 1, 4, 16 and 64 KiB, and the factor
from 16 to 64 KiB: 4 is linear, 16 is quadratic. Exits with 1 if a factor is above 8 and the time above 20 ms.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from device_runtime.fleet.links import Link, LinkError, Windows, read
from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES, MessageError, parse

SIZES = (1024, 4096, 16_384, MAX_PAYLOAD_BYTES)
PAYLOADS: dict[str, Callable[[int], bytes]] = {
    "escapes in an open string": lambda n: b'"' + rb"\"" * (n // 2 - 1),
    "quotes": lambda n: b'"' * n,
    "backslashes": lambda n: b"\\" * n,
    "backslashes and quotes": lambda n: b'{"a":"' + rb"\\\"" * (n // 4 - 2),
    "brackets in a string": lambda n: b'"' + b"[" * (n - 2) + b'"',
    "digits": lambda n: b"1" * n,
    "digits after the point": lambda n: b"0." + b"1" * (n - 2),
    "fields": lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n // 9)) + b"}",
    "half surrogates": lambda n: b'"' + rb"\ud800" * (n // 6 - 1) + b'"',
    "a list in a list": lambda n: b"[" + b"[]," * (n // 3 - 2) + b"[]]",
    "spaces": lambda n: b" " * (n - 1) + b"x",
}
LINK = Link(name="a", source="#", prompt="{{ value }} {{ window | length }}", to="b", when="value == 1")


def best_ms(act: Callable[[], object]) -> float:
    """The fastest of three."""
    times = []
    for _ in range(3):
        started_s = time.process_time()
        with contextlib.suppress(MessageError, LinkError):
            act()
        times.append((time.process_time() - started_s) * 1e3)
    return min(times)


def main() -> int:
    """Print a table; 1 if something is worse than linear."""
    slow = []
    windows = Windows(LINK)
    ways: dict[str, Callable[[bytes], object]] = {
        "parse": parse,
        "read and consider": lambda payload: windows.consider(read("t", payload, 0.0)),
    }
    print(f"{'ms':<18}{'payload':<28}" + "".join(f"{size // 1024:>7} KiB" for size in SIZES) + "  factor")
    for way, act in ways.items():
        for name, make in PAYLOADS.items():
            times = [best_ms(lambda act=act, make=make, size=size: act(make(size))) for size in SIZES]  # type: ignore[misc]
            factor = times[-1] / times[-2]
            print(f"{way:<18}{name:<28}" + "".join(f"{ms:>11.2f}" for ms in times) + f"{factor:>8.1f}")
            if factor > 8 and times[-1] > 20:
                slow.append(f"{way}, {name}")
    for name in slow:
        print(f"worse than linear: {name}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
