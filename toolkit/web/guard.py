"""Who may come in, before anything is read: the Host and Origin headers, the token, and the size of what is sent.

A page of any site that somebody has open in a browser can send requests to this machine. So a server that asks for
no token takes only requests whose Host is this machine's name (a DNS name that was pointed here afterwards, "DNS
rebinding", is refused), and no request whose Origin is another site, unless that site is allowed by name.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device_runtime.errors import RefusedError
from toolkit.web.listen import Listen, is_loopback

__all__ = ["Guard", "bearer", "read_body", "same_token"]

BODY_S = 20.0  # for all of a body: a client that dribbles is cut off
# What is too large is read on for a while, and let go: a client that is still sending when the line is closed gets a
# broken connection, and not the answer that says why.
DRAIN_S, _DRAIN_BYTES = 2.0, 8 << 20
_CORS_HEADERS = "Authorization, Content-Type"
_CORS_METHODS = "GET, POST, OPTIONS"


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, listen: Listen, refuse: Callable[[RefusedError], Response]) -> None:
        """`refuse` makes the answer to what is not let in."""
        self._app, self._listen, self._refuse = app, listen, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin is not None and origin in self._listen.origins
        try:
            self._check_host(headers.get("host", ""))
            if origin is not None and not allowed:
                _check_origin(origin, headers.get("host", ""))
        except RefusedError as error:
            await self._refuse(error)(scope, receive, send)
            return
        if allowed and scope["method"] == "OPTIONS":
            response = Response(status_code=204, headers=_cors(origin or "") | {"Access-Control-Max-Age": "600"})
            await response(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                found.setdefault("X-Content-Type-Options", "nosniff")
                found.setdefault("Cache-Control", "no-store")
                found.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                if allowed:
                    found.update(_cors(origin or ""))
            await send(message)

        await self._app(scope, receive, with_headers)

    def _check_host(self, host: str) -> None:
        """A server with a token may have any name: who asks has to know the token all the same."""
        name = _parts(f"//{host}").hostname or ""
        if self._listen.token is None and not is_loopback(name):
            raise RefusedError(
                f"the Host header says {host[:100]!r}; without a token only localhost and 127.0.0.1 are answered. Use "
                "such an address, or start with --token-file.",
                status=403, reason="host_not_allowed",
            )  # fmt: skip


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # half of an IPv6 address
        return urlsplit("")


def _check_origin(origin: str, host: str) -> None:
    """Our own pages have our own name; the scheme may be another, where a proxy in front speaks TLS."""
    if not host or _parts(origin).netloc.lower() != host.lower():
        raise RefusedError(
            f"a page of {origin[:100]!r} may not ask here: it is another site.",
            status=403,
            reason="origin_not_allowed",
        )


def _cors(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Headers": _CORS_HEADERS,
        "Access-Control-Allow-Methods": _CORS_METHODS,
        "Vary": "Origin",
    }


def same_token(given: str, wanted: str) -> bool:
    """Whether two tokens are the same; takes as long whatever they have in common."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def bearer(request: Request) -> str:
    """The token of an Authorization header; empty where there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Args:
        most: bytes that it may have.

    Raises:
        RefusedError: it is larger, or does not come whole in time.
    """
    too_large = RefusedError(
        f"the body has more than {most:,} bytes; send less at once.", status=413, reason="request_too_large"
    )
    length = request.headers.get("content-length", "0")
    refused = length.isdecimal() and int(length) > most
    body, seen = bytearray(), 0
    try:
        async with asyncio.timeout(DRAIN_S if refused else BODY_S) as limit:
            async for chunk in request.stream():
                seen += len(chunk)
                if not refused:
                    body += chunk
                    if refused := len(body) > most:
                        limit.reschedule(asyncio.get_running_loop().time() + DRAIN_S)
                if refused and seen > _DRAIN_BYTES:
                    break
    except TimeoutError:
        if not refused:
            raise RefusedError(
                f"the body did not come whole within {BODY_S:g} s; send it at once.",
                status=408,
                reason="request_timeout",
            ) from None
    if refused:
        raise too_large
    return bytes(body)
