"""Runs an ASGI application with uvicorn: bounded in connections and in patience, ended by Ctrl-C."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from device_runtime.errors import ConfigurationError
from toolkit.web.listen import Listen

__all__ = ["WebServer"]

CONNECTIONS = 256  # at the same time; more are answered 503
HEAD_S = 10.0  # for the head of the first request of a connection
IDLE_S = 75  # until a connection without a request is closed: clients keep them for the next one
ENDING_S = 5  # for answers that are under way at the end
_HEAD_BYTES = 32 * 1024


class _PatientOnce(H11Protocol):
    """uvicorn waits without end for a request's head; this closes a connection that does not send one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, self._close_without_a_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _close_without_a_head(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn raises the signal that ended it once more; here the end is a good one."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class WebServer:
    """One application at one address."""

    def __init__(self, app: ASGIApp, listen: Listen, ending: Callable[[], None] = lambda: None) -> None:
        """Listen; `run` answers.

        Args:
            ending: called when the end has begun: ends what clients still wait for.

        Raises:
            ConfigurationError: the address cannot be listened on, or the certificate and its key are of no use.
        """
        self._ending = ending
        self._listener = _bound(listen)
        self.port: int = self._listener.getsockname()[1]
        self.url = listen.url(self.port)
        self._server = _Server(_config(app, listen))
        try:
            self._server.config.load()
        except OSError as error:  # OpenSSL's own is one; its reason is a name such as KEY_VALUES_MISMATCH, or nothing
            self._listener.close()
            reason = f" ({error.reason})" if isinstance(error, ssl.SSLError) and error.reason else ""
            raise ConfigurationError(
                f"{listen.certificate} and {listen.key} cannot be used for TLS{reason}; expected a certificate, its "
                "chain below it, and the private key that belongs to it."
            ) from None

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`."""
        try:
            asyncio.run(self._run())
        finally:
            self._listener.close()

    def stop(self) -> None:
        """End `run`, from any thread."""
        self._server.should_exit = True

    async def _run(self) -> None:
        async def when_ending() -> None:
            while not self._server.should_exit:
                await asyncio.sleep(0.05)
            self._ending()

        watch = asyncio.create_task(when_ending())
        try:
            await self._server.serve([self._listener])
        finally:
            watch.cancel()


def _config(app: ASGIApp, listen: Listen) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_PatientOnce,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=ENDING_S,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.key,
    )


def _bound(listen: Listen) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # pieces are small; accepted ones inherit it
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        hint = "another program listens there; choose another --port" if error.errno == errno.EADDRINUSE else (
            "check --host and --port"
        )  # fmt: skip
        raise ConfigurationError(f"{listen.host}:{listen.port}: {error.strerror or error}; {hint}.") from None
    return listener
