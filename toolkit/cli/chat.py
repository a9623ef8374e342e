"""`stonechat chat`: talk with a bundle on this machine, a microcontroller, a device or a pool."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from toolkit.cli.broker_access import add_broker_access, broker_access
from toolkit.cli.options import add_runtime, add_sampling, require_extra, sampling, seconds, whole_number
from toolkit.cli.output import say, say_unfamiliar

__all__ = ["HELP", "add_arguments", "run"]

HELP = "talk with a bundle, a microcontroller, a device or a pool"
_HELP_LINE = "/new begins a new conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat chat`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="on this machine; or else:")
    parser.add_argument(
        "--port",
        metavar="PORT",
        help="a microcontroller: its serial port, or socket://host:port; with BUNDLE in tokens",
    )
    parser.add_argument("--baud", metavar="N", type=whole_number(300, 12_000_000), default=115_200, help="of --port")
    parser.add_argument("--device", metavar="ID", help="a device, over MQTT")
    parser.add_argument("--pool", metavar="GROUP", help="whichever device of this pool is free")
    parser.add_argument("--model", metavar="NAME", help="which of the device's models")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--conversation", metavar="NAME", help="of a bundle: go on where this one ended, and keep it under the name"
    )
    parser.add_argument("--timeout", metavar="S", type=seconds, default=60.0, help="for each answer (default 60)")
    add_sampling(parser)
    add_runtime(parser)
    add_broker_access(parser)


class _Answer(Protocol):
    """An answer as it comes."""

    def __iter__(self) -> Iterator[str]: ...

    def cancel(self) -> None: ...


_Ask = Callable[[list[dict[str, str]]], _Answer]


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    import sys

    from device_runtime.errors import ConfigurationError

    local = args.bundle if args.port is None else args.port  # a board's bundle is for its port
    if sum(whom is not None for whom in (local, args.device, args.pool)) != 1:
        raise ConfigurationError("chat needs one of BUNDLE, --port PORT, --device ID and --pool GROUP.")
    if args.conversation is not None and (args.bundle is None or args.port is not None):
        raise ConfigurationError("--conversation is kept on this machine, with a BUNDLE; leave it out for a device.")
    if sys.stdin.isatty():
        say(_HELP_LINE)
    if args.bundle is not None and args.port is None:
        _talk_here(args)
    else:
        with _serial(args) if args.port is not None else _remote(args) as ask:
            _talk(ask, args.system)
    return 0


def _talk(ask: _Ask, system: str | None, before: Sequence[Mapping[str, str]] = ()) -> list[dict[str, str]]:
    """Talk, after what was said before; returns all that was said."""
    from device_runtime.errors import ContextOverflowError, StonechatError

    first = [{"role": "system", "content": system}] if system else []
    said = [dict(message) for message in before] or list(first)
    while (line := _read()) is not None:
        if line in ("/quit", "/exit"):
            return said
        if line == "/new":
            said = list(first)
        elif line.strip():
            asked = [*said, {"role": "user", "content": line}]
            try:
                answer = _show(ask(asked))
            except StonechatError as error:
                overflow = isinstance(error, ContextOverflowError)
                say(f"stonechat: {error}" + (" Begin a new conversation with /new." if overflow else ""))
            else:
                said = [*asked, {"role": "assistant", "content": answer}]
    return said


def _read() -> str | None:
    """A line of the person; None at the end of the input."""
    import sys

    try:
        if sys.stdin.isatty():
            with _line_editing():
                return input("> ")
        line = sys.stdin.readline()
    except EOFError:
        print()
        return None
    return line.rstrip("\r\n") if line else None


@contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys and earlier lines, where Python has readline."""
    import importlib
    from contextlib import suppress

    with suppress(ImportError):
        importlib.import_module("readline")
    yield


def _show(answer: _Answer) -> str:
    """Print an answer as it comes; Ctrl-C stops it, and what has come counts."""
    pieces: list[str] = []
    stopped = False
    pending = iter(answer)
    while True:
        try:
            for piece in pending:
                pieces.append(piece)
                print(piece, end="", flush=True)
            break
        except KeyboardInterrupt:
            if stopped:
                break
            stopped = True
            answer.cancel()
    print(flush=True)
    final, result = getattr(answer, "final", None), getattr(answer, "result", None)  # of a device, or of a model here
    if final is None:
        say_unfamiliar(getattr(result, "unfamiliar", ()))
    else:
        from device_runtime.client.remote import why_unfamiliar

        say_unfamiliar(why_unfamiliar(final))
    return "".join(pieces)


def _talk_here(args: argparse.Namespace) -> None:
    """Talk with a bundle on this machine."""
    from device_runtime.engine.opening import open_language_model
    from device_runtime.errors import ConfigurationError

    options: dict[str, Any] = {"max_new": args.max_new, "sampling": sampling(args), "stop": args.stop}
    with open_language_model(args.bundle, backend=args.backend, threads=args.threads) as model:
        if model.manifest.chat_template is None:
            raise ConfigurationError(
                f"{args.bundle} has no chat template, so it cannot mark who said what; use `stonechat run`."
            )
        name: str | None = args.conversation
        before = model.load_conversation(name) if name is not None and model.has_conversation(name) else []
        said = _talk(lambda messages: model.generate(messages, **options), args.system, before)
        if name is not None and said != before:
            say(f"stonechat: kept as {name}: {model.save_conversation(name, said)}")


@contextmanager
def _serial(args: argparse.Namespace) -> Iterator[_Ask]:
    try:
        from device_runtime.bridge.link import Link
        from device_runtime.bridge.model import SerialModel
    except ImportError as error:
        raise require_extra("bridge", error) from None
    from device_runtime.update.active import open_bundle

    bundle = open_bundle(args.bundle) if args.bundle is not None else None
    options: dict[str, Any] = {"max_new": args.max_new, "sampling": sampling(args), "stop": args.stop}
    link = Link(args.port, args.baud)
    model = SerialModel(link, bundle).open(args.timeout)
    schemas = len(link.session.hello.schemas) if link.session.hello is not None else 0
    if bundle is None and schemas:
        say(
            f"stonechat: the model was made for answers to a JSON schema (its image has {schemas}), and nothing holds "
            "them to it here: it may repeat itself. Name its bundle, which does where it has a task "
            f"(`stonechat chat BUNDLE --port {args.port}`), or use `/schema 1` on the board's own console."
        )
    try:
        yield lambda messages: model.generate(messages, **options)
    finally:
        model.close()


@contextmanager
def _remote(args: argparse.Namespace) -> Iterator[_Ask]:
    from device_runtime.client.remote import RemoteModel

    broker, name = broker_access(args)
    options: dict[str, Any] = {
        "model": args.model, "max_new": args.max_new, "temperature": args.temperature, "top_k": args.top_k,
        "top_p": args.top_p, "seed": args.seed, "stop": args.stop, "timeout_s": args.timeout,
        "on_wait": say,
    }  # fmt: skip
    with RemoteModel(broker, args.device, pool=args.pool, client=name) as model:
        yield lambda messages: model.generate(messages, **options)
