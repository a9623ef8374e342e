"""Answers that last: server-sent events to clients that may be slow, or go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from device_runtime.errors import RefusedError

__all__ = ["Stream", "until_gone"]

SEND_S = 30.0  # for a client to take what was sent; one that does not is given up

T = TypeVar("T")


class Stream(StreamingResponse):
    """Server-sent events. Their source is closed at once when the client goes away, or stops reading."""

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", **(headers or {})})
        self.headers["content-type"] = "text/event-stream; charset=utf-8"

    async def stream_response(self, send: Send) -> None:
        """As Starlette's, within a time."""

        async def in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_S):
                await send(message)

        async with aclosing(self.body_iterator) as events:  # type: ignore[type-var]
            try:
                await in_time({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for chunk in events:
                    if chunk:
                        await in_time({"type": "http.response.body", "body": chunk, "more_body": True})
            except TimeoutError:
                return  # without an end, so that the connection is closed
            await in_time({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled when the client goes away.

    Raises:
        RefusedError: it went away; nobody reads this any more.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RefusedError("the client went away.", status=499, reason="client_gone")
    finally:
        for future in (task, watch):
            future.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
