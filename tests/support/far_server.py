"""An OpenAI-compatible server whose answers a test decides: real HTTP, a scripted model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["FarServer", "far_server"]


class FarServer:
    """What it was asked, and what it says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.raw: list[bytes] = []  # all bytes of all requests
        self.say: Callable[[dict[str, Any]], Any] = lambda body: "{}"  # the text of the answer
        self.status = 200
        self.before: list[int] = []  # statuses of the answers before that; 0 breaks the connection off
        self.retry_after = ""  # that all other statuses than 200 come with
        self.error: dict[str, Any] = {}  # what they come with
        self.refuses: set[str] = set()  # kinds of `response_format` that it does not know
        self.refusal = 422  # the status of that; llama-cpp-python's server has 500
        self.location = ""  # with which it redirects
        self.wait_s = 0.0
        self.drips = False  # a byte at a time
        self.finish = "stop"
        self.extra: dict[str, Any] = {}  # that it says beside the answer
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def far_server() -> Iterator[FarServer]:
    server = FarServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.raw.append(self.path.encode() + bytes(str(self.headers), "utf-8") + body)
            asked = json.loads(body)
            server.asked.append(asked)
            server.headers.append(dict(self.headers))
            if server.location:
                self.send_response(307)
                self.send_header("Location", server.location)
                self.end_headers()
                return None
            form = asked.get("response_format", {}).get("type")
            if form in server.refuses:
                return self._send(server.refusal, {"error": {"message": f"unknown response_format {form}"}})
            time.sleep(server.wait_s)
            status = server.before.pop(0) if server.before else server.status
            if status == 0:
                self.close_connection = True
                return None
            if status != 200 and server.error:
                return self._send(status, server.error)
            choice = {"index": 0, "message": {"role": "assistant", "content": server.say(asked)}}
            return self._send(
                status,
                {
                    "id": "1", "object": "chat.completion", "created": 1, "model": asked["model"],
                    "choices": [{**choice, "finish_reason": server.finish}],
                    "usage": {"prompt_tokens": 11, "completion_tokens": 7}, **server.extra,
                },
            )  # fmt: skip

        def _send(self, status: int, fields: dict[str, Any]) -> None:
            payload = json.dumps(fields).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            if status != 200 and server.retry_after:
                self.send_header("Retry-After", server.retry_after)
            self.end_headers()
            try:
                for byte in [payload[i : i + 1] for i in range(len(payload))] if server.drips else [payload]:
                    self.wfile.write(byte)
                    time.sleep(0.05 if server.drips else 0)
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
