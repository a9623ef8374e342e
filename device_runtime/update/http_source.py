"""The files of a bundle from an HTTP(S) server, which serves the bundle's folder as it is.

A broken transfer goes on at the byte where it stopped (RFC 9110, section 14.2). What arrives is checked against the
manifest by the one who reads it, so a server that sends the wrong bytes does no harm.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus

from device_runtime.errors import BundleError, ConfigurationError, UnreachableError
from device_runtime.records.printable import without_secrets

__all__ = ["HttpSource", "check_url"]

_TIMEOUT_S = 30.0  # without a byte
_TRIES = 5  # in a row that bring nothing
_PAUSE_S = 1.0  # after the first of them; doubles
_CHUNK_BYTES = 1 << 18
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)  # like those from 500 on


def check_url(url: str) -> str:
    """`url`, if it can be that of a bundle's folder.

    Raises:
        ConfigurationError: it is no http:// or https:// URL.
    """
    if "@" in url.partition("//")[2].partition("/")[0] or re.search(r"//[^/]*:[^/]*@", url):
        raise ConfigurationError(
            f"{without_secrets(url[:200])!r} holds a user or a password, which logs and reports would show; serve the "
            "folder without: a bundle's signature is what is trusted."
        )
    try:
        parts = urllib.parse.urlsplit(url)
        good = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(
            f"{without_secrets(url[:200])!r} is not the URL of a folder; expected http:// or https://HOST/PATH."
        )
    return url


class HttpSource:
    """A folder at a URL."""

    def __init__(self, url: str, *, pause_s: float = _PAUSE_S) -> None:
        """`url` is that of the folder.

        Raises:
            ConfigurationError: it is no http:// or https:// URL.
        """
        self._url, self._pause_s = check_url(url).rstrip("/"), pause_s

    def read(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """What the file `name` holds from byte `offset` on; nothing if there is no such file.

        Raises:
            UnreachableError: the server does not answer, or stops in the middle, time after time.
            BundleError: it answers with something else.
        """
        failed = 0
        while True:
            try:
                for chunk in self._transfer(name, offset):
                    offset, failed = offset + len(chunk), 0
                    yield chunk
                return
            except urllib.error.HTTPError as error:
                if error.code == HTTPStatus.NOT_FOUND:
                    return
                if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in _PASSING:
                    raise BundleError(f"{self._url}/{name}: the server answers {error.code} {error.reason}.") from None
                reason = f"{error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            failed += 1
            if failed == _TRIES:
                raise UnreachableError(f"{self._url}/{name} cannot be read: {reason}. Check the server and the URL.")
            time.sleep(self._pause_s * 2 ** (failed - 1))

    def _transfer(self, name: str, offset: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = urllib.request.Request(f"{self._url}/{urllib.parse.quote(name)}", headers=headers)
        try:
            answer = _opener().open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it is here
                return
            raise
        with answer:
            skip = offset if answer.status == HTTPStatus.OK else 0  # it serves no ranges
            said = answer.headers.get("Content-Length") or ""
            expected = int(said) if said.isascii() and said.isdigit() else -1
            got = 0
            while chunk := answer.read1(_CHUNK_BYTES):  # what is there: a slow server must not hold up who calls off
                got += len(chunk)
                rest = chunk[skip:]
                skip -= min(skip, len(chunk))
                if rest:
                    yield rest
            if got < expected:
                raise http.client.IncompleteRead(b"", expected - got)


def _opener() -> urllib.request.OpenerDirector:
    """Speaks HTTP(S) alone: a server that redirects elsewhere, as to ftp://, is not followed."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
