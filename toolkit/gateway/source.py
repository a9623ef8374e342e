"""What the gateway is in front of: the one seam between HTTP and models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Protocol

from device_runtime.mqtt.messages import Final, Request

__all__ = ["Answering", "Card", "Source"]


@dataclass(frozen=True)
class Card:
    """A model that clients may name."""

    id: str
    task: str = "generate"  # generate, embed, classify or translate
    created: int = 0  # seconds since 1970
    owner: str = "stonechat"  # which device or bundle it is
    chosen_there: bool = False  # the device chooses among its models


class Answering(Protocol):
    """An answer as it comes: pieces of text, then `final`. `device_runtime.client.remote.RemoteAnswer` fits it.

    The iteration raises a StonechatError where there is no answer.
    """

    def __aiter__(self) -> AsyncIterator[str]: ...

    def __anext__(self) -> Awaitable[str]: ...

    @property
    def final(self) -> Final: ...

    @property
    def device(self) -> str | None: ...

    def cancel(self) -> None: ...


class Source(Protocol):
    """Models, wherever they run."""

    raw: bool  # whether a text can be continued as it is, without a chat template

    def open(self) -> None: ...

    def close(self) -> None: ...

    def cards(self) -> list[Card]: ...

    def why_absent(self, name: str) -> str | None:
        """Why a model is not among the cards that is known all the same; None for one that is not known."""
        ...

    async def ask(self, card: Card, request: Request, *, raw: bool, client: str, timeout_s: float) -> Answering:
        """Begin an answer; `client` is who asks, so that nobody keeps the others out."""
        ...
