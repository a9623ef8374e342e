"""A larger model on an OpenAI-compatible server: llama.cpp's, Ollama, vLLM, llama-cpp-python, a cloud.

The standard library's HTTP client, on sockets that went through `site.connect`: no proxy of the environment is asked,
and no redirection is followed, or a question could leave the site by them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from device_runtime.brain.far.side import FarAnswer, FarQuestion
from device_runtime.brain.site import connect
from device_runtime.engine.schema.rules import closed
from device_runtime.errors import (
    ConfigurationError,
    IncompleteError,
    MessageError,
    OffSiteError,
    StonechatError,
    UnreachableError,
)
from device_runtime.fleet.policies.escalation import Target
from device_runtime.mqtt.messages import Usage
from device_runtime.mqtt.strict_json import require_characters

__all__ = ["OpenAIServer", "read_key"]

MAX_ANSWER_BYTES = 1 << 20
_PIECE_BYTES = 65_536
_REFUSED = (400, 404, 415, 422, 500, 501)  # with which servers refuse a `response_format` that they do not know
# Codes of OpenAI and of a gateway of ours for what no other `response_format` would change.
_OF_THE_QUESTION = ("unfamiliar", "no_model", "model_not_found", "unknown_url", "context_length_exceeded")
_PASSING = (429, 502, 503, 504)  # of a server that may answer the same question in a moment
_WAITS_S = (0.5, 1.0)  # before the second and the third try, where the server does not say


def read_key(path: Path) -> str:
    """The API key in a file.

    Raises:
        ConfigurationError: the file cannot be read, or holds none.
    """
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the key in {path} cannot be read: {error}") from None
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigurationError(f"{path} holds no API key: expected one line of ASCII.")
    return key


class OpenAIServer:
    """See `FarSide`. A connection for each question: it may be the only one in hours."""

    def __init__(self, target: Target, *, off_site: bool, key: str | None = None) -> None:
        """Prepare.

        Args:
            off_site: whether an address outside of the site will do.
            key: goes along as a bearer token.
        """
        assert target.url is not None and target.model is not None
        parts = urlsplit(target.url)
        self._name, self._model = target.name, target.model
        self._host, self._path = parts.hostname or "", parts.path
        self._off_site = off_site and parts.scheme == "https"  # a name of the site may come to lead elsewhere
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._format = 0  # which of `_FORMATS` this server takes
        self._tries = True  # whether what may pass is waited for
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._under_way: set[_Connection] = set()

    @classmethod
    def open(cls, target: Target, *, off_site: bool) -> OpenAIServer:
        """With the key of the target's file.

        Raises:
            ConfigurationError: it cannot be read.
        """
        key = None if target.key_file is None else read_key(Path(target.key_file))
        return cls(target, off_site=off_site, key=key)

    def ask(self, question: FarQuestion, end_s: float) -> FarAnswer:
        """See `FarSide.ask`."""
        for tried in range(self._format, len(_FORMATS)):
            status, body = self._post_again(self._body(question, tried), end_s)
            if status == 200:
                self._format = tried
                return self._answer(body)
            if question.schema is None or status not in _REFUSED or _is_of_the_question(body):
                break
        raise self._refusal(status, body)

    def close(self) -> None:
        """Close the connections of the questions that are under way; their `ask` ends with an error."""
        self._closed.set()
        with self._lock:
            under_way, self._under_way = self._under_way, set()
        for connection in under_way:
            connection.shut()

    def _body(self, question: FarQuestion, form: int) -> bytes:
        fields: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in question.messages],
            "temperature": 0,
            "stream": False,
        }
        if question.max_new is not None:
            fields["max_tokens"] = question.max_new
        if question.schema is not None:
            schema = closed(question.schema)
            if (asked := _FORMATS[form](schema)) is not None:
                fields["response_format"] = asked
            else:
                text = f"Answer with JSON alone, which fits this JSON schema: {json.dumps(schema, ensure_ascii=False)}"
                fields["messages"].insert(0, {"role": "system", "content": text})
        return json.dumps(fields).encode()

    def _post_again(self, body: bytes, end_s: float) -> tuple[int, bytes]:
        """Ask up to three times, while it may help: the server is busy, or the connection broke off.

        A server that was away for a whole question is asked once for each later one, until it answers: the device's own
        answers, which wait for it, would pile up.
        """
        for wait_s in (*_WAITS_S, None) if self._tries else (None,):
            failed, after_s = None, None
            try:
                status, found, after_s = self._post(body, end_s)
            except OffSiteError:
                raise
            except UnreachableError as error:
                failed = error
            if failed is None and status not in _PASSING:
                self._tries = True
                return status, found
            if wait_s is None:
                break
            wait_s = wait_s if after_s is None else after_s
            if time.monotonic() + wait_s >= end_s or self._closed.wait(wait_s):
                break
        self._tries = False
        if failed is not None:
            raise failed
        return status, found

    def _post(self, body: bytes, end_s: float) -> tuple[int, bytes, float | None]:
        """(status, body, seconds of Retry-After)."""
        connection = _Connection(self._host, self._port, self._tls, end_s, off_site=self._off_site)
        with self._lock:
            self._under_way.add(connection)
        # A server that sends a byte now and then, or `100 Continue` for ever, never keeps a single read waiting.
        end = threading.Timer(max(0.0, end_s - time.monotonic()), connection.shut)
        end.daemon = True
        end.start()
        try:
            connection.request("POST", f"{self._path}/chat/completions", body, self._headers)
            connection.limit()
            response = connection.getresponse()
            found = bytearray()
            while True:
                connection.limit()
                piece = response.read1(_PIECE_BYTES)
                found += piece
                if not piece:
                    connection.limit()  # what was cut off for its time is no answer
                    return response.status, bytes(found), _seconds(response.getheader("Retry-After"))
                if len(found) > MAX_ANSWER_BYTES:
                    raise StonechatError(f"{self._name} sent more than {MAX_ANSWER_BYTES >> 10} KiB.")
        except StonechatError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, TimeoutError) or time.monotonic() >= end_s:
                what = "did not answer in time"
            elif isinstance(error, ssl.SSLCertVerificationError):
                raise ConfigurationError(
                    f"{self._name} does not prove who it is: {error.verify_message or error}."
                ) from None
            else:
                what = f"broke off: {error or type(error).__name__}"
            raise UnreachableError(f"{self._name} {what}.") from None
        finally:
            end.cancel()
            with self._lock:
                self._under_way.discard(connection)
            connection.close()

    def _refusal(self, status: int, body: bytes) -> StonechatError:
        """Its body stays out of the message: a server may repeat there what it was asked."""
        kind = UnreachableError if status in (408, 429) or status >= 500 else StonechatError
        hint = {401: "; check `key_file`", 403: "; check `key_file`", 404: "; check `url` and `model`"}.get(status, "")
        return kind(f"{self._name} answers with HTTP status {status}, {len(body)} bytes{hint}.")

    def _answer(self, body: bytes) -> FarAnswer:
        try:
            source = body.decode()  # of bytes, `json` would take surrogates as they are
            value = json.loads(source)
            require_characters(source, value, f"answer of {self._name}")
            choice = value["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
            usage = value.get("usage") or {}
            counts = [usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
            model = value.get("model")
            own = value.get("stonechat")  # of a gateway of ours
        except MessageError as error:
            raise StonechatError(str(error)) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise StonechatError(f"{self._name} sent no chat completion.") from None
        if not isinstance(text, str):
            raise StonechatError(f"{self._name} sent a chat completion without a text.")
        if finish == "length":
            raise IncompleteError(f"the answer of {self._name} met its limit of tokens before it was complete.")
        known = [count if isinstance(count, int) and 0 <= count < 2**53 else 0 for count in counts]
        name = model if isinstance(model, str) and 0 < len(model) <= 64 else self._model
        own = own if isinstance(own, dict) else {}
        sure, strange = _shares(own.get("confidence")), ""
        likely = own.get("probabilities")
        likely = {name: _shares(of_field) for name, of_field in likely.items()} if isinstance(likely, dict) else {}
        if own.get("unfamiliar") is True:
            reason = own.get("reason")
            strange = reason if isinstance(reason, str) and reason else "it does not say why"
        return FarAnswer(
            text,
            self._name,
            name,
            Usage(known[0], 0, known[1]),
            sure,
            {name: shares for name, shares in likely.items() if shares} or None,
            strange,
        )


def _is_of_the_question(body: bytes) -> bool:
    """Whether a refusal, in OpenAI's form, has nothing to do with the `response_format`."""
    try:
        return json.loads(body)["error"]["code"] in _OF_THE_QUESTION
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After says (RFC 9110, 10.2.3), in seconds from now; None where that cannot be read."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _shares(value: Any) -> dict[str, float] | None:
    """A confidence by field, if it is one."""
    if not isinstance(value, dict) or not value:
        return None
    good = all(type(share) in (int, float) and 0 <= share <= 1 for share in value.values())
    return {name: float(share) for name, share in value.items()} if good else None


_FORMATS = (
    lambda schema: {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}},
    lambda schema: {"type": "json_object", "schema": schema},  # llama-cpp-python, older llama.cpp
    lambda schema: None,  # in words: the answer is held to the schema when it comes
)


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was looked at, with one time limit for all that happens on it."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, end_s: float, *, off_site: bool) -> None:
        super().__init__(f"[{host}]" if ":" in host else host, port)
        self._plain_host, self._tls, self._end_s, self._off_site = host, tls, end_s, off_site
        self._socket: Any = None

    def connect(self) -> None:
        """Open the socket."""
        found = connect(self._plain_host, self.port, self._end_s, off_site=self._off_site)
        self.sock = self._socket = found
        self.limit()
        if self._tls is not None:
            self.sock = self._socket = self._tls.wrap_socket(found, server_hostname=self._plain_host)

    def limit(self) -> None:
        """Let the next operation take what is left of the time."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if self._socket is not None and self._socket.fileno() >= 0:
            self._socket.settimeout(left_s)

    def shut(self) -> None:
        """Make a blocked operation return. From any thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
