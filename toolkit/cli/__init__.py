"""The `stonechat` command. Each subcommand is a file here with HELP, `add_arguments` and `run`.

Nothing is imported before `main`: Ctrl-C may come while Python reads what a command needs, which takes a board seconds.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported yet, either
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS = (
    "get", "families", "convert", "task", "train", "run", "chat", "embed", "classify", "translate", "inspect", "eval",
    "audit", "try", "bench", "trace", "check", "boards", "flash", "firmware", "native", "serve", "bridge", "ask",
    "fleet", "router", "records", "correct", "explain", "compare", "gateway", "dashboard", "broker", "key", "bundle",
    "slots", "device", "deploy", "rollout", "doctor",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: of an error that of device_runtime/errors.py, after Ctrl-C 130."""
    try:
        import sys

        from toolkit.cli.owed import expect_json

        _open_what_is_closed()
        words = list(sys.argv[1:] if argv is None else argv)
        expect_json(words)
        from toolkit.cli.command import run_command

        return run_command(words)
    except KeyboardInterrupt:
        import sys

        from toolkit.cli.owed import json_is_owed

        print("\nstonechat: interrupted", file=sys.stderr)
        if json_is_owed():
            _print_interrupted()
        return 130


def _open_what_is_closed() -> None:
    """The null device for a stream that our caller has closed (`>&-`) and Python has as None: what is printed
    goes nowhere then, and no file that a command opens gets the stream's number.
    """
    import os
    import sys

    for name in ("stdin", "stdout", "stderr"):  # in this order: the lowest free number is the stream's own
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115 (it stays open)


def _print_interrupted() -> None:
    import os

    try:
        print('{"error": {"code": "interrupted", "message": "interrupted"}}', flush=True)
    except OSError:  # Ctrl-C has ended the reader of our output, too; Python would fail once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
