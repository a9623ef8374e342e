"""Why an answer ended: the one list that requests, replies and the serial protocol share."""

from __future__ import annotations

from typing import Literal

__all__ = ["Finish"]

Finish = Literal["stop", "length", "cancelled"]
# a stop token or text; the limit of tokens or the end of the context; a call of `cancel`
