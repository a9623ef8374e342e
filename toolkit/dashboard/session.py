"""Who may see the page: on loopback everybody on this machine, else those who have typed the token once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict

from starlette.requests import Request
from starlette.responses import Response

from toolkit.web.guard import same_token
from toolkit.web.listen import Listen

__all__ = ["Sessions"]

COOKIE = "stonechat"
LASTS_S = 12 * 3600.0
MAX_SESSIONS = 256  # the oldest ends
WRONG_S = 1.0  # what a wrong token costs


class Sessions:
    """Browsers that are logged in. They are forgotten when the server ends."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._until: OrderedDict[str, float] = OrderedDict()  # on the monotonic clock
        self._trying = asyncio.Semaphore(4)  # who guesses waits for other guesses

    @property
    def needed(self) -> bool:
        """Whether a token is asked."""
        return self._listen.token is not None

    def knows(self, request: Request) -> bool:
        """Whether a request comes from a browser that is logged in, or needs not be."""
        if not self.needed:
            return True
        until = self._until.get(request.cookies.get(COOKIE, ""))
        return until is not None and time.monotonic() < until

    async def login(self, token: str, response: Response) -> bool:
        """Give a cookie to who knows the token."""
        async with self._trying:
            if self._listen.token is None or not same_token(token, self._listen.token):
                await asyncio.sleep(WRONG_S)
                return False
        name = secrets.token_urlsafe(32)
        self._until[name] = time.monotonic() + LASTS_S
        if len(self._until) > MAX_SESSIONS:
            self._until.popitem(last=False)
        response.set_cookie(
            COOKIE, name, max_age=int(LASTS_S), httponly=True, samesite="strict", path="/",
            secure=self._listen.certificate is not None,
        )  # fmt: skip
        return True

    def logout(self, request: Request, response: Response) -> None:
        """Forget a browser."""
        self._until.pop(request.cookies.get(COOKIE, ""), None)
        response.delete_cookie(COOKIE)
