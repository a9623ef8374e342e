"""The page and what it asks: live events, questions to devices, links and roll-outs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from device_runtime.errors import RefusedError, StonechatError
from device_runtime.fleet.file import Fleet
from toolkit.dashboard.dry_run import DryRun
from toolkit.dashboard.editor import Change, FleetEditor
from toolkit.dashboard.kept_there import KeptThere
from toolkit.dashboard.live import LiveFleet
from toolkit.dashboard.rollouts import Rollouts
from toolkit.dashboard.session import Sessions
from toolkit.gateway.app import Gateway, answer_to
from toolkit.gateway.fleet import FleetModels
from toolkit.gateway.replies import event, status_of
from toolkit.gateway.requests import MAX_BODY, parse_body
from toolkit.web.guard import Guard, read_body
from toolkit.web.listen import Listen
from toolkit.web.stream import Stream

__all__ = ["Dashboard"]


STATIC = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
PAGES = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in TYPES}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGE_HEADER = "x-stonechat"  # a page of another site cannot send it without asking first, and is not allowed to

log = logging.getLogger("stonechat.dashboard")

Handler = Callable[[Request], Awaitable[Response]]


class Dashboard:
    """The ASGI application."""

    def __init__(
        self,
        live: LiveFleet,
        editor: FleetEditor,
        rollouts: Rollouts,
        models: FleetModels,
        dry_run: DryRun,
        kept: KeptThere,
        listen: Listen,
        *,
        read_only: bool = False,
        timeout_s: float = 300.0,
    ) -> None:
        """`read_only`: nobody asks, changes links or touches roll-outs from here."""
        self._live, self._editor, self._rollouts, self._dry_run = live, editor, rollouts, dry_run
        self._kept, self._sessions = kept, Sessions(listen)
        self._read_only = read_only
        self._gateway = Gateway(models, Listen(), timeout_s)
        asking = [
            Route(route.path, self._api(route.endpoint, writes="POST" in (route.methods or ())), methods=route.methods)
            for route in self._gateway.routes
        ]
        routes = [
            Route("/api/login", self._login, methods=["POST"]),
            Route("/api/logout", self._api(self._logout), methods=["POST"]),
            Route("/api/me", self._me, methods=["GET"]),
            Route("/api/events", self._api(self._events), methods=["GET"]),
            Route("/api/links", self._api(self._links), methods=["GET"]),
            Route("/api/links/check", self._api(self._check, writes=True), methods=["POST"]),
            Route("/api/links/try", self._api(self._try, writes=True), methods=["POST"]),
            Route("/api/links/save", self._api(self._save, writes=True), methods=["POST"]),
            Route("/api/links/delete", self._api(self._delete, writes=True), methods=["POST"]),
            Route("/api/correct", self._api(self._correct, writes=True), methods=["POST"]),
            Route("/api/devices/{id}/records", self._api(self._records), methods=["GET"]),
            Route("/api/rollouts/{id}/{action}", self._api(self._rollout, writes=True), methods=["POST"]),
            Mount("/api", routes=asking),
            Route("/{path:path}", _page, methods=["GET"]),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _not_here})
        self.app: ASGIApp = Guard(GZipMiddleware(app, minimum_size=1000, compresslevel=6), listen, answer_to)

    def end(self) -> None:
        """End what pages wait for."""
        self._live.end()
        self._gateway.end()

    def _api(self, handle: Handler, writes: bool = False) -> Handler:
        """Ask for a session and, of what changes something, for a header that only our page sends."""

        async def guarded(request: Request) -> Response:
            try:
                if not self._sessions.knows(request):
                    raise RefusedError("log in first.", status=401, reason="login")
                if request.method != "GET":
                    _require_page(request)
                if writes and self._read_only:
                    raise RefusedError("this dashboard only shows (--read-only).", status=403, reason="read_only")
                return await handle(request)
            except Exception as error:
                if not isinstance(error, StonechatError):
                    log.exception("%r failed", request.url.path)
                elif status_of(error) in (500, 507):  # of this machine, so its operator has to know
                    log.error("%r: %s", request.url.path, error)
                return answer_to(error)

        return guarded

    async def _me(self, request: Request) -> Response:
        return JSONResponse(
            {"login": self._sessions.needed, "known": self._sessions.knows(request), "read_only": self._read_only}
        )

    async def _login(self, request: Request) -> Response:
        try:
            _require_page(request)
            token = parse_body(await read_body(request, 4096)).get("token")
            response: Response = JSONResponse({"known": True})
            if not isinstance(token, str) or not await self._sessions.login(token, response):
                raise RefusedError("this is not the token.", status=401, reason="login")
        except StonechatError as error:
            return answer_to(error)
        return response

    async def _logout(self, request: Request) -> Response:
        response = JSONResponse({"known": False})
        self._sessions.logout(request, response)
        return response

    async def _events(self, request: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            async for some in self._live.events():
                if not self._sessions.knows(request):
                    return
                yield event(some) if some else b": alive\n\n"

        return Stream(lines(), {"X-Accel-Buffering": "no"})

    async def _links(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self._editor.links))

    async def _check(self, request: Request) -> Response:
        body = await _body(request)
        change = await asyncio.to_thread(self._editor.change, *_wanted(body))
        return JSONResponse({"faults": list(change.faults), "difference": change.difference, "base": change.base})

    async def _try(self, request: Request) -> Response:
        body = await _body(request)
        was, fields, devices = _wanted(body)
        readings = body.get("readings")
        if not isinstance(readings, str) or not readings.strip():
            raise RefusedError("there are no readings; give one a line, as `stonechat try` takes them.")
        change = await asyncio.to_thread(self._editor.change, was, fields, devices)
        if change.fleet is None:
            return JSONResponse({"faults": list(change.faults)}, 400)
        return JSONResponse(await asyncio.to_thread(self._dry_run.run, change.fleet, fields["name"].strip(), readings))

    async def _save(self, request: Request) -> Response:
        body = await _body(request)
        change = await asyncio.to_thread(self._editor.change, *_wanted(body))
        if change.fleet is None:
            return JSONResponse({"faults": list(change.faults)}, 400)
        return await self._saved(change, change.fleet, body)

    async def _delete(self, request: Request) -> Response:
        body = await _body(request)
        if not isinstance(name := body.get("was"), str):
            raise RefusedError("expected {was: the name of a link, base: …}.")
        change = await asyncio.to_thread(self._editor.removal, name)
        if change.fleet is None:
            return JSONResponse({"faults": list(change.faults)}, 400)
        return await self._saved(change, change.fleet, body)

    async def _saved(self, change: Change, fleet: Fleet, body: dict[str, Any]) -> Response:
        await asyncio.to_thread(self._editor.save, change, str(body.get("base", "")))
        self._live.plan(fleet)
        links = await asyncio.to_thread(self._editor.links)
        self._live.put("links", links)
        return JSONResponse(links)

    async def _correct(self, request: Request) -> Response:
        body = await _body(request)
        device = body.pop("device", None)
        return JSONResponse(await asyncio.to_thread(self._kept.correct, device, body))

    async def _records(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self._kept.records, request.path_params["id"]))

    async def _rollout(self, request: Request) -> Response:
        of = request.path_params
        return JSONResponse(await asyncio.to_thread(self._rollouts.act, of["id"], of["action"]))


def _require_page(request: Request) -> None:
    if request.headers.get(PAGE_HEADER) != "page":
        raise RefusedError("this is for the dashboard's own page.", status=403, reason="not_the_page")


async def _body(request: Request) -> dict[str, Any]:
    return parse_body(await read_body(request, MAX_BODY))


def _wanted(body: dict[str, Any]) -> tuple[str | None, dict[str, Any], list[str]]:
    was, fields, devices = body.get("was"), body.get("link"), body.get("devices")
    if (
        not isinstance(was, str | None)
        or not isinstance(fields, dict)
        or not isinstance(devices, list)
        or not all(isinstance(device, str) for device in devices)
        or not isinstance(fields.get("name", ""), str)
    ):
        raise RefusedError("expected {was, link: {name, from, …}, devices: [id, …]}.")
    return was, fields, devices


async def _page(request: Request) -> Response:
    name = request.path_params["path"] or "index.html"
    if name not in PAGES:  # nothing but these, whatever a path says
        return JSONResponse({"error": {"message": "there is no such page.", "code": "not_found"}}, 404, SAFE)
    path = PAGES[name]
    return FileResponse(path, media_type=TYPES[path.suffix], headers={**SAFE, "Cache-Control": "no-cache"})


async def _not_here(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return JSONResponse({"error": {"message": "there is nothing like that here.", "code": "not_found"}}, status, SAFE)
