"""Writes tests/fuzz/corpus/fleet: requests as clients write them, after a byte that lets the board read all of each."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus" / "fleet"
ADDRESS = {"reply_to": "stonechat/1/fuzz/out/reply/me/1", "id": 'a"\u00e9'}
REQUESTS = (
    {**ADDRESS, "prompt": "temp_c +061.0\n", "max_new": 12, "temperature": 0.5, "top_p": 1e-1, "seed": 3},
    {"messages": [{"role": "system", "content": "\U0001f600"}, {"content": "x", "role": "user"}], **ADDRESS},
    {**ADDRESS, "prompt": "x", "schema": {"type": "object", "properties": {"a": {"enum": [1, None, True]}}}},
    {**ADDRESS, "prompt": "x", "deadline_ms": 5, "stream": False, "model": None, "unknown": [[{}]]},
)


def main() -> None:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, request in enumerate(REQUESTS):
        (FOLDER / f"request-{number}").write_bytes(b"1" + json.dumps(request, indent=number % 2 or None).encode())


if __name__ == "__main__":
    main()
