"""A board without a board: a bundle that speaks the serial protocol, on a pseudo-terminal or a TCP
port of this machine.

    python -m toolkit.emulate.model_board BUNDLE --pty
    python -m toolkit.emulate.model_board BUNDLE --listen 127.0.0.1:7333

It prints what to give to `stonechat bridge --port`, and then does what a firmware would do, with the engine of a Pi.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import struct
import sys
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from device_runtime import __version__
from device_runtime.bridge.messages import TOKEN_BYTES, VERSION, Capability, FaultCode, Finish, Hello, Start
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MODEL
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.sampler import Sampler, Sampling
from device_runtime.errors import ConfigurationError, EmulatedFaultError, StonechatError
from device_runtime.update.active import open_bundle
from toolkit.emulate.pty_board import Board, Engine

if TYPE_CHECKING:
    from device_runtime.engine.language_model import AnyGeneration

__all__ = ["TextEngine", "TokenEngine", "Wire", "hello_of", "listen", "main", "pseudo_terminal", "serve"]

PREFILL = 16  # tokens that one step takes in
_ROLES = {b"s": "system", b"u": "user", b"a": "assistant", b"t": "tool"}
PART = 7  # bytes of text in a step's answer: characters are cut on purpose


class TokenEngine:
    """Token ids in, token ids out: what every firmware does."""

    def __init__(self, model: LanguageModel) -> None:
        self._context, self._prefix = model.backend.context, list(model.manifest.prefix_tokens)
        self._vocabulary = model.manifest.graph.vocabulary
        self._cache = KvCache(model.backend, self._prefix)
        self._steps: Iterator[tuple[bytes, Finish | None]] = iter(())
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0

    def start(self, prompt: bytes, start: Start) -> None:
        """Begin an answer."""
        if len(prompt) % TOKEN_BYTES:
            raise EmulatedFaultError(FaultCode.MALFORMED, f"a prompt has whole tokens of {TOKEN_BYTES} bytes")
        tokens = list(struct.unpack(f"<{len(prompt) // TOKEN_BYTES}I", prompt))
        if len(tokens) >= self._context:
            raise EmulatedFaultError(FaultCode.TOO_LONG, f"the context has {self._context} positions")
        if len(tokens) <= len(self._prefix) or tokens[: len(self._prefix)] != self._prefix:
            raise EmulatedFaultError(FaultCode.MALFORMED, "the prompt is not the model's prefix and more")
        if max(tokens) >= self._vocabulary:
            raise EmulatedFaultError(FaultCode.MALFORMED, f"the prompt has token {max(tokens)} of {self._vocabulary}")
        self._steps = self._run(tokens, start)

    def step(self) -> tuple[bytes, Finish | None]:
        """Take in some of the prompt, or give the next token."""
        return next(self._steps)

    def _run(self, tokens: list[int], start: Start) -> Iterator[tuple[bytes, Finish | None]]:
        common = self._cache.rewind_to(tokens)
        self.prompt_tokens, self.cached_tokens, self.completion_tokens = len(tokens), common, 0
        left = len(tokens) - common
        for following in self._cache.prefill(tokens[common:], PREFILL):
            logits = following
            left -= PREFILL
            if left > 0:
                yield b"", None
        sampler = Sampler(Sampling(start.temperature, start.top_k, start.top_p, start.seed))
        sampler.skip(start.drawn)
        while True:
            token = sampler.choose(logits)
            self.completion_tokens += 1
            if token in start.stop_tokens:
                yield b"", Finish.STOP
            if not self._cache.room or self.completion_tokens == start.max_new:
                yield struct.pack("<I", token), Finish.LENGTH
            yield struct.pack("<I", token), None
            logits = self._cache.decode(token)


class TextEngine:
    """Messages in, UTF-8 out: a firmware with a tokenizer and a chat template of its own."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._answer: AnyGeneration | None = None
        self._left = b""
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0

    def start(self, prompt: bytes, start: Start) -> None:
        """Begin an answer."""
        parts = [(part[:1], part[1:].decode(errors="replace")) for part in prompt.split(b"\0")[:-1]]
        plain = parts[:1] and parts[0][0] == b"p"
        sampling = Sampling(start.temperature, start.top_k, start.top_p, start.seed)
        try:
            messages = [{"role": _ROLES.get(role, "user"), "content": text} for role, text in parts]
            asked = parts[0][1] if plain else messages
            self._answer = self._model.generate(asked, max_new=start.max_new or None, sampling=sampling)
        except StonechatError as error:
            code = FaultCode.TOO_LONG if error.code == "context_overflow" else FaultCode.MALFORMED
            raise EmulatedFaultError(code, str(error)) from None
        self._left = b""

    def step(self) -> tuple[bytes, Finish | None]:
        """The next bytes of the answer."""
        assert self._answer is not None
        if not self._left:
            try:
                self._left = next(self._answer).encode()
            except StopIteration:
                r = self._answer.result
                self.prompt_tokens, self.cached_tokens = r.prompt_tokens, r.cached_tokens
                self.completion_tokens = r.completion_tokens
                return b"", Finish.STOP if r.finish == "stop" else Finish.LENGTH
        data, self._left = self._left[:PART], self._left[PART:]
        return data, None


def hello_of(bundle: Bundle, *, text: bool = False, largest_body: int = 256) -> Hello:
    """What a board with this bundle says of itself."""
    manifest = bundle.manifest
    kind = Capability.TEXT if text else Capability.TOKENS
    return Hello(
        1, kind | Capability.SAMPLING, largest_body, 2 * largest_body, manifest.context,
        manifest.graph.vocabulary, len(manifest.prefix_tokens), deaf_ms=50,
        arena_bytes=manifest.arena.total_bytes if manifest.arena else 0,
        model=bytes.fromhex(manifest.files[MODEL].sha256)[:8],
        board="stonechat peer", firmware=__version__, name=manifest.name, newest=VERSION,
    )  # fmt: skip


class Wire(Protocol):
    """The board's end of a serial line."""

    def fileno(self) -> int: ...

    def accept(self) -> bool:
        """Wait for the other end; False when there will be none."""

    def read(self) -> bytes:
        """What has come; empty when the other end is gone."""

    def write(self, data: bytes) -> None: ...


class _Terminal:
    """The controlling side of a pseudo-terminal; it stays when the other side closes."""

    def __init__(self) -> None:
        self._own, self._others = os.openpty()
        tty.setraw(self._others)  # `_others` stays open, so that a bridge that leaves is no hang-up
        self.name = os.ttyname(self._others)

    def fileno(self) -> int:
        return self._own

    def accept(self) -> bool:
        return True

    def read(self) -> bytes:
        return os.read(self._own, 4096)

    def write(self, data: bytes) -> None:
        while data:
            if not select.select([], [self._own], [], 1.0)[1]:
                return  # nobody reads: a UART would not wait either
            data = data[os.write(self._own, data[:1024]) :]


class _Listener:
    """A TCP port; one bridge at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._server = socket.create_server((host, port))
        self._peer: socket.socket | None = None
        self.name = "socket://{}:{}".format(*self._server.getsockname()[:2])

    def fileno(self) -> int:
        return (self._peer or self._server).fileno()

    def accept(self) -> bool:
        if self._peer is None:
            self._peer = self._server.accept()[0]
            self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return True

    def read(self) -> bytes:
        if self._peer is None:
            self.accept()
            return b""
        try:
            data = self._peer.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._peer.close()
            self._peer = None
        return data

    def write(self, data: bytes) -> None:
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.sendall(data)


def pseudo_terminal() -> _Terminal:
    """A pseudo-terminal; `name` is what a bridge opens."""
    return _Terminal()


def listen(address: str) -> _Listener:
    """A TCP port at `host:port`; port 0 lets the system choose.

    Raises:
        ConfigurationError: it is no such address, or it is taken.
    """
    host, _, port = address.rpartition(":")
    try:
        return _Listener(host or "127.0.0.1", int(port))
    except ValueError:
        raise ConfigurationError(f"{address!r} is no address to listen at; expected HOST:PORT.") from None
    except (OverflowError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot listen at {address!r}: {reason}; name another HOST:PORT.") from None


def serve(board: Board, wire: _Terminal | _Listener) -> None:
    """Be a board until the process ends."""
    wire.write(board.boot())
    while True:
        if select.select([wire], [], [], 0 if board.working else None)[0]:
            wire.write(board.receive(wire.read()))
        wire.write(board.step())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.emulate.model_board", description="A board without a board."
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--pty", action="store_true", help="on a pseudo-terminal, whose name is printed")
    where.add_argument("--listen", metavar="HOST:PORT", help="on a TCP port; port 0 takes a free one")
    parser.add_argument("--text", action="store_true", help="be a firmware that has a tokenizer of its own")
    args = parser.parse_args(argv)
    try:
        bundle = open_bundle(args.bundle)
        wire = pseudo_terminal() if args.pty else listen(args.listen)
        with LanguageModel.open(args.bundle) as model:
            engine: Engine = TextEngine(model) if args.text else TokenEngine(model)
            print(wire.name, flush=True)
            serve(Board(engine, hello_of(bundle, text=args.text)), wire)
    except StonechatError as error:
        print(f"peer: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
