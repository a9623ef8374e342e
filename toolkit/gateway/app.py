"""The gateway's routes: `/v1/models`, `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from device_runtime.errors import IncompleteError, RefusedError, StonechatError, UnreachableError
from device_runtime.mqtt.messages import Final, Request, Usage
from toolkit.gateway import requests
from toolkit.gateway.replies import Shape, embedding_list, error_body, event, model, model_list, status_of
from toolkit.gateway.requests import MAX_BODY, Asked, Embed
from toolkit.gateway.source import Answering, Card, Source
from toolkit.web.guard import Guard, bearer, read_body, same_token
from toolkit.web.listen import Listen
from toolkit.web.stream import Stream, until_gone

__all__ = ["Gateway", "answer_to"]

FIRST_S = 10.0  # until a stream begins without a piece; what fails before has a status of its own
ALIVE_S = 15.0  # between comments that keep a silent stream open

log = logging.getLogger("stonechat.gateway")


class Gateway:
    """The ASGI application of one source."""

    def __init__(self, source: Source, listen: Listen, timeout_s: float) -> None:
        self._source, self._listen, self._timeout_s = source, listen, timeout_s
        self._under_way: set[Answering] = set()
        self.routes = [
            Route("/v1/models", self._guarded(self._models), methods=["GET"]),
            Route("/v1/models/{id:path}", self._guarded(self._model), methods=["GET"]),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
            Route("/v1/embeddings", self._guarded(self._embeddings), methods=["POST"]),
        ]
        routes = [*self.routes, Route("/health", self._health, methods=["GET"])]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _not_here, Exception: _failed})
        self.app: ASGIApp = Guard(_WithoutSlash(app), listen, answer_to)

    def end(self) -> None:
        """End the answers that are under way."""
        for answer in list(self._under_way):
            answer.cancel()

    def _guarded(
        self, handle: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        """Ask for the token, and say what goes wrong in OpenAI's form."""

        async def guarded(request: HttpRequest) -> Response:
            wanted = self._listen.token
            if wanted is not None and not same_token(bearer(request), wanted):
                what = "is not the right one" if bearer(request) else "is missing"
                error = RefusedError(
                    f"the token {what}; send it as `Authorization: Bearer TOKEN` (as the API key of a client).",
                    status=401, reason="invalid_api_key",
                )  # fmt: skip
                return answer_to(error, {"WWW-Authenticate": "Bearer"})
            try:
                return await handle(request)
            except Exception as error:
                if status_of(error) == 500:
                    log.error("%s %r: %s", request.method, request.url.path, error)
                return answer_to(error)

        return guarded

    async def _health(self, request: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, request: HttpRequest) -> Response:
        return JSONResponse(model_list(self._source.cards()))

    async def _model(self, request: HttpRequest) -> Response:
        return JSONResponse(model(self._card(request.path_params["id"])))

    def _card(self, name: str) -> Card:
        cards = {card.id: card for card in self._source.cards()}
        if name not in cards:
            if why := self._source.why_absent(name):
                raise UnreachableError(f"{why} Try again when it is.")
            if not cards:
                raise UnreachableError("no model is there at present; see /v1/models, and try again.")
            known = ", ".join(list(cards)[:20])
            raise RefusedError(
                f"there is no model {name[:100]!r}; there are {known}.",
                status=404, reason="model_not_found", param="model",
            )  # fmt: skip
        return cards[name]

    async def _chat(self, request: HttpRequest) -> Response:
        return await self._text(request, requests.chat)

    async def _completion(self, request: HttpRequest) -> Response:
        return await self._text(request, requests.completion)

    async def _text(self, request: HttpRequest, read: Callable[[Mapping[str, Any]], Asked]) -> Response:
        asked = read(requests.parse_body(await read_body(request, MAX_BODY)))
        card = self._card(asked.model)
        if card.task == "embed":
            raise RefusedError(f"{card.id} gives vectors; use /v1/embeddings.", param="model")
        if asked.raw and (not self._source.raw or card.task != "generate"):
            raise RefusedError(f"{card.id} is asked in messages; use /v1/chat/completions.", param="model")
        try:
            answer = await self._ask(request, card, asked.request, asked.raw)
            if asked.stream:
                return await self._streamed(request, answer, asked)
            try:
                final = await until_gone(request, self._drained(answer))
            finally:
                self._forget(answer)
        except StonechatError as error:
            raise asked.in_their_words(error) from None
        return JSONResponse(_shape(asked).whole(final, answer.device))

    async def _streamed(self, request: HttpRequest, answer: Answering, asked: Asked) -> Response:
        """A stream; but an error that comes before its beginning is an answer of its own."""
        coming = asyncio.ensure_future(answer.__anext__())
        try:
            await until_gone(request, asyncio.wait([coming], timeout=FIRST_S))
            if coming.done() and (error := coming.exception()) and not isinstance(
                error, StopAsyncIteration | IncompleteError
            ):  # fmt: skip
                raise error
        except BaseException:
            coming.cancel()
            self._forget(answer)
            raise
        return Stream(self._events(answer, asked, coming), {"X-Accel-Buffering": "no"})

    async def _events(self, answer: Answering, asked: Asked, coming: asyncio.Future[str]) -> AsyncIterator[bytes]:
        shape = _shape(asked)
        try:
            yield shape.first()
            count = 0
            while True:
                while not (await asyncio.wait([coming], timeout=ALIVE_S))[0]:
                    yield b": waiting\n\n"
                try:
                    text = coming.result()
                except StopAsyncIteration:
                    final = answer.final
                    break
                except IncompleteError:
                    final = Final(count, "", "length", Usage(completion_tokens=count))
                    break
                count += 1
                yield shape.piece(text)
                coming = asyncio.ensure_future(answer.__anext__())
            self._under_way.discard(answer)
            yield shape.end(final, answer.device)
        except Exception as error:
            self._under_way.discard(answer)
            if status_of(error) == 500:
                log.error("an answer broke off: %s", error)
            yield event(error_body(asked.in_their_words(error) if isinstance(error, StonechatError) else error))
        finally:
            coming.cancel()
            self._forget(answer)

    async def _embeddings(self, request: HttpRequest) -> Response:
        asked = requests.embeddings(requests.parse_body(await read_body(request, MAX_BODY)))
        card = self._card(asked.model)
        if card.task != "embed":
            raise RefusedError(f"{card.id} is a model to {card.task}, and gives no vectors.", param="model")

        async def all_of_them() -> list[Final]:
            return [await self._vector(request, card, asked, text) for text in asked.inputs]

        finals = await until_gone(request, all_of_them())
        width = len(finals[0].embedding or ())
        if asked.dimensions not in (None, width):
            raise RefusedError(
                f"dimensions is {asked.dimensions}; the vectors of {card.id} have {width}.", param="dimensions"
            )
        return JSONResponse(embedding_list(card.id, finals, asked.base64, asked.ignored))

    async def _vector(self, request: HttpRequest, card: Card, asked: Embed, text: str) -> Final:
        one = Request(
            ({"role": "user", "content": text},), task="embed", truncate=asked.truncate, prompt_name=asked.prompt_name
        )
        answer = await self._ask(request, card, one, raw=False)
        try:
            return await self._drained(answer)
        finally:
            self._forget(answer)

    async def _ask(self, request: HttpRequest, card: Card, asked: Request, raw: bool) -> Answering:
        client = request.client.host if request.client else ""
        answer = await self._source.ask(card, asked, raw=raw, client=client, timeout_s=self._timeout_s)
        self._under_way.add(answer)
        return answer

    async def _drained(self, answer: Answering) -> Final:
        """The end of an answer. One that was cut before it fitted its schema ended by its length, in OpenAI's words."""
        pieces: list[str] = []
        try:
            async for text in answer:
                pieces.append(text)
            final = answer.final
        except IncompleteError:
            final = Final(len(pieces), "".join(pieces), "length", Usage(completion_tokens=len(pieces)))
        self._under_way.discard(answer)
        return final

    def _forget(self, answer: Answering) -> None:
        """Nobody waits for it any more: if it has not ended, the rest is not computed."""
        if answer in self._under_way:
            self._under_way.discard(answer)
            answer.cancel()


def _shape(asked: Asked) -> Shape:
    return Shape(asked.model, asked.raw, asked.usage_in_stream, asked.ignored)


class _WithoutSlash:
    """A path with a slash at its end is the same: clients do not follow a redirection with their body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(path := scope["path"]) > 1 and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/") or "/"}
        await self._app(scope, receive, send)


def answer_to(error: BaseException, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer that says why there is none."""
    sent = dict(headers or {})
    status = status_of(error)
    if status in (429, 503):
        after_ms = getattr(error, "retry_after_ms", None) or 2000
        sent["Retry-After"] = str(max(1, math.ceil(after_ms / 1000)))
    if status in (408, 413):
        sent["Connection"] = "close"
    return JSONResponse(error_body(error), status, sent)


async def _not_here(request: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    what = f"{request.method} {request.url.path[:100]}"
    return answer_to(
        RefusedError(
            f"{what} is not served; there are /v1/models, /v1/chat/completions, /v1/completions and /v1/embeddings.",
            status=status,
            reason="unknown_url",
        )
    )


async def _failed(request: HttpRequest, error: Exception) -> Response:
    log.exception("a request failed")
    return answer_to(error)
