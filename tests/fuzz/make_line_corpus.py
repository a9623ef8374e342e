"""Writes the corpora of the fuzz targets `line` and `smp`: real conversations, to begin with.

python tests/fuzz/make_line_corpus.py
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import cbor2
from smp.packet import encode

HERE = Path(__file__).parent
EXCHANGE = HERE.parent / "data" / "serial_exchange.txt"


def request(op: int, group: int, command: int, body: object) -> bytes:
    data = cbor2.dumps(body)
    return bytes([op | 8, 0, len(data) >> 8, len(data) & 255, 0, group, 1, command]) + data


def main() -> None:
    """Write them."""
    image = bytes(range(256)) * 8
    sha = hashlib.sha256(image).digest()
    requests = [
        request(2, 0, 0, {"d": "hello"}),
        request(0, 0, 6, {}),
        request(0, 1, 0, {}),
        request(2, 1, 1, {"image": 1, "len": len(image), "off": 0, "sha": sha, "data": image[:900]}),
        request(2, 1, 1, {"off": 900, "data": image[900:1800]}),
        request(2, 1, 1, {"off": 1800, "data": image[1800:]}),
        request(2, 1, 0, {"hash": sha, "confirm": False}),
        request(2, 1, 0, {"confirm": True, "extra": [1, {"a": [True, None, 1.5]}]}),
        request(2, 1, 5, {"slot": 1}),
        request(2, 0, 5, {}),
    ]
    (HERE / "corpus" / "smp").mkdir(parents=True, exist_ok=True)
    whole = b"".join(len(one).to_bytes(2, "little") + one for one in requests)
    (HERE / "corpus" / "smp" / "update").write_bytes(whole)
    line = HERE / "corpus" / "line"
    line.mkdir(parents=True, exist_ok=True)
    bodies = [bytes.fromhex(row.split()[2]) for row in EXCHANGE.read_text("ascii").splitlines() if row[:1] == ">"]
    (line / "bodies").write_bytes(b"\xff" + b"".join(bytes([len(body)]) + body for body in bodies))
    commands = ["/help", "/temperature 0.5", "/top-k 20", "/schema 1", "/seed 99999999999999999999", "/status", "hello"]
    (line / "console").write_bytes("\r\n".join(commands).encode() + b"\n")
    (line / "packets").write_bytes(b"".join(part for one in requests for part in encode(one)))


if __name__ == "__main__":
    main()
