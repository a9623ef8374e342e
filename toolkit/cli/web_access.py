"""Flags of the commands that serve programs and pages over HTTP: where they listen, and who may come in."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from device_runtime.errors import ConfigurationError
from device_runtime.records.text_file import read_text
from toolkit.cli.options import whole_number
from toolkit.web.listen import Listen, is_loopback

__all__ = ["add_listen", "listen_of"]

_TOKEN_VARIABLE = "STONECHAT_TOKEN"
_LEAST_TOKEN = 16  # characters: one that is tried out over a network takes longer than anybody has


def add_listen(parser: argparse.ArgumentParser, port: int) -> None:
    """--host, --port, --token-file, --tls-cert and --tls-key"""
    group = parser.add_argument_group("who may come in")
    group.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1",
        help="listen there (default 127.0.0.1, this machine alone); 0.0.0.0 is every network, and needs a token",
    )  # fmt: skip
    group.add_argument(
        "--port", metavar="N", type=whole_number(0, 65_535), default=port, help=f"default {port}; 0 takes a free one"
    )
    group.add_argument(
        "--token-file", metavar="FILE", type=Path,
        help=f"the token that clients need is in this file (else in ${_TOKEN_VARIABLE}); optional on loopback",
    )  # fmt: skip
    group.add_argument("--tls-cert", metavar="FILE", type=Path, help="speak TLS with this certificate (PEM)")
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="and its key")


def listen_of(args: argparse.Namespace) -> Listen:
    """What `add_listen` asked for.

    Raises:
        ConfigurationError: others could come in without a token, the token is short, or a file is missing.
    """
    token = os.environ.get(_TOKEN_VARIABLE) or None
    source = f"${_TOKEN_VARIABLE}"
    if args.token_file is not None:
        token, source = read_text(args.token_file).strip(), str(args.token_file)
    make_one = f"make one with: openssl rand -hex 24 > {args.token_file or 'token'}"
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ConfigurationError(
            f"the token in {source} has {len(token)} characters; expected at least {_LEAST_TOKEN} of ASCII on one "
            f"line; {make_one}"
        )
    if token is None and not is_loopback(args.host):
        raise ConfigurationError(
            f"--host {args.host} lets other machines in, and there is no token; {make_one}, then add "
            "--token-file token."
        )
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key belong together; name both files, or neither.")
    for path in (args.tls_cert, args.tls_key):
        if path is not None:
            _require_pem(path)
    origins = tuple(getattr(args, "allow_origin", None) or ())
    return Listen(args.host, args.port, token, args.tls_cert, args.tls_key, origins)


def _require_pem(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    if b"-----BEGIN " not in content:
        raise ConfigurationError(
            f"{path} is no PEM file, which has lines such as -----BEGIN CERTIFICATE-----; `openssl x509` makes one of "
            "another certificate, `openssl pkey` of a key."
        )
