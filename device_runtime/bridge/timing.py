"""When a bridge asks again, and when it gives up."""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.bridge.messages import Hello

__all__ = ["Timing"]


@dataclass(frozen=True)
class Timing:
    """In seconds. A board may be deaf for a while on top of them: while its model takes a step."""

    greet_s: float = 0.5  # from one Greet to the next
    ping_s: float = 2.0  # from the last word of an idle board to the next Ping
    reply_s: float = 0.25  # for an answer, on top of the board's own deaf time and the time on the line
    lost_s: float = 4.0  # without a word, asked again and again: the board is gone
    grace_s: float = 20.0  # that a request waits for a lost board to come back
    tries: int = 12  # of one message, while the board answers others

    def lost_after_s(self, hello: Hello | None) -> float:
        """How long a board may be silent."""
        return self.lost_s + 4 * _deaf_s(hello)

    def reply_after_s(self, hello: Hello | None, line_s: float, tries: int) -> float:
        """How long to wait for an answer that takes `line_s` on the line, after so many tries."""
        return float((self.reply_s + 1.5 * _deaf_s(hello) + line_s) * 2 ** min(tries, 3))


def _deaf_s(hello: Hello | None) -> float:
    return hello.deaf_ms / 1000 if hello else 0.0
