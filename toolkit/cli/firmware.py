"""`stonechat firmware`: build it for a board and a bundle, see what it takes, run it in QEMU."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json, read_schemas, security_counter, whole_number
from toolkit.cli.output import rows, say, show, table

if TYPE_CHECKING:
    from boards import Board
    from device_runtime.bundle.folder import Bundle
    from toolkit.firmware.build import Build
    from toolkit.signing.keys import SigningKey

__all__ = ["HELP", "add_arguments", "run"]

HELP = "build firmware for a microcontroller, see its size, run it in QEMU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `build`, `size`, `run` and `export`."""
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text, action in (
        ("build", "compile firmware for a board, sized for a bundle", _build),
        ("size", "flash and RAM by part", _size),
        ("run", "build it and talk to it in QEMU", _run),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        sub.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle of profile micro")
        sub.add_argument("--board", metavar="ID", required=True, help="a board's id, or the path of a board file")
        sub.add_argument(
            "-o", "--output", metavar="DIR", type=Path, default=Path("build/firmware"), help="where to build"
        )
        sub.add_argument(
            "--schema",
            metavar="FILE",
            type=Path,
            action="append",
            default=[],
            help="a JSON schema that the board holds answers to, beside those of the bundle",
        )
        sub.add_argument("--task", metavar="TASK", type=Path, help="the same, of a task.yaml's answer")
        sub.add_argument(
            "--key", metavar="FILE", type=Path, help="a key of `stonechat key new`: updates need its signature"
        )
        sub.add_argument("--passphrase-file", metavar="FILE", type=Path, help="of the key")
        network = sub.add_argument_group("on MQTT by itself, for boards with a network card")
        network.add_argument("--mqtt", metavar="URL", help="mqtt://[user@]ADDRESS:PORT of the broker, without TLS")
        network.add_argument("--device", metavar="ID", help="its id in the fleet")
        network.add_argument("--password-file", metavar="FILE", type=Path, help="the password at the broker")
        network.add_argument(
            "--lwip", metavar="DIR", type=Path, help="lwIP's sources (default: build/lwip, see scripts/setup_lwip.sh)"
        )
        sub.add_argument("--firmware-version", metavar="V", help="that the firmware says of itself, such as 1.2.0")
        sub.add_argument(
            "--security-counter",
            metavar="N",
            type=security_counter,
            default=0,
            help="of the firmware; a board refuses a lower one than it has kept (default 0)",
        )
        if name == "run":
            sub.add_argument("--prompt", metavar="TEXT", help="ask this and end; without it, lines from stdin")
            sub.add_argument(
                "--serve",
                metavar="PORT",
                type=whole_number(0, 65535),
                help="give its serial line to other programs on this TCP port of this machine (0: any free one)",
            )
            sub.add_argument(
                "--flash", metavar="FILE", type=Path, help="keep the board's flash in this file from run to run"
            )
        else:
            add_json(sub)
        if name == "build":
            sub.add_argument(
                "--add",
                action="store_true",
                help="put the image into the bundle too, so that `deploy` brings both; sign the bundle after it",
            )
        sub.set_defaults(action=action)
    _add_export(commands)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "write the firmware's sources as a component of another toolchain"
    sub = commands.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    sub.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle of profile micro")
    sub.add_argument(
        "--for", dest="toolchain", required=True, choices=["zephyr", "esp-idf", "pico-sdk", "arduino", "stm32cube"],
        help="whose component it is to be",
    )  # fmt: skip
    sub.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="a new folder")
    sub.add_argument("--schema", metavar="FILE", type=Path, action="append", default=[], help="as for build")
    sub.add_argument("--task", metavar="TASK", type=Path, help="as for build")
    add_json(sub)
    sub.set_defaults(action=_export)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    code: int = args.action(args)
    return code


def _built(args: argparse.Namespace) -> tuple[Board, Build, Bundle, SigningKey | None]:
    from boards import load_board
    from device_runtime import __version__
    from device_runtime.errors import ConfigurationError
    from device_runtime.mqtt.address import read_password
    from device_runtime.mqtt.topics import is_id
    from device_runtime.update.active import open_bundle
    from toolkit.firmware.build import build_firmware
    from toolkit.firmware.images import image_for
    from toolkit.firmware.lwip import network_of
    from toolkit.signing.keys import read_passphrase, read_signing_key

    board, bundle = load_board(args.board), open_bundle(args.bundle)
    key = read_signing_key(args.key, read_passphrase(args.passphrase_file)) if args.key is not None else None
    folder = args.output / board.id
    image = image_for(bundle, folder, read_schemas(args.schema, args.task), current=True)
    public = key.public if key is not None else None
    version = args.firmware_version or __version__
    network = None
    if args.mqtt is not None:
        if args.device is None:
            raise ConfigurationError("--mqtt needs --device ID, which the board is in the fleet.")
        network = network_of(args.mqtt, args.device, args.lwip, read_password(args.password_file, args.device))
    name = bundle.manifest.name if is_id(bundle.manifest.name) else "default"
    build = build_firmware(image, board, folder, key=public, version=version, network=network, model=name)
    return board, build, bundle, key


def _build(args: argparse.Namespace) -> int:
    from device_runtime import __version__
    from device_runtime.bundle.work_place import whole_file
    from device_runtime.errors import ConfigurationError
    from toolkit.firmware.bundled import add_firmware
    from toolkit.firmware.slots import firmware_image, model_image

    board, build, bundle, key = _built(args)
    if args.add and build.boot is None:
        raise ConfigurationError(f"{board.id} has no firmware slots, so no firmware for it travels in a bundle.")
    facts = {
        "board": board.id,
        "firmware": str(build.elf),
        "image": str(build.image),
        "image_address": f"{build.image_address:#010x}",
    }
    if build.boot is not None:
        folder = build.elf.parent
        version = args.firmware_version or __version__
        data = firmware_image(build, board, key, version=version, security_counter=args.security_counter)
        with whole_file(folder / "firmware.image") as write:
            write(data)
        model = model_image(build.image.read_bytes(), bundle.manifest, board, key)
        with whole_file(folder / "model.slot") as write:
            write(model)
        facts |= {
            "boot_loader": str(build.boot),
            "firmware_slot": str(folder / "firmware.image"),
            "model_slot": str(folder / "model.slot"),
            "signed_by": str(key.public) if key is not None else "nobody: the board takes any image",
        }
        if args.add:
            facts["in_bundle"] = str(add_firmware(bundle, board.id, data))
    return show(args, facts, rows(facts.items()))


def _size(args: argparse.Namespace) -> int:
    from toolkit.firmware.size import read_sizes

    board, build, _, _ = _built(args)
    sizes = read_sizes(build.map)
    assert board.firmware is not None
    flash, ram = sum(s.flash_bytes for s in sizes), sum(s.ram_bytes for s in sizes)
    result = {
        "board": board.id,
        "parts": [{"part": s.part, "flash_bytes": s.flash_bytes, "ram_bytes": s.ram_bytes} for s in sizes],
        "flash_bytes": flash,
        "ram_bytes": ram,
        "arena_bytes": build.arena_bytes,
        "kv_cache_bytes": build.kv_cache_bytes,
        "image_bytes": build.image.stat().st_size,
        "code_kib": board.firmware.code_kib,
        "ram_kib": board.firmware.ram_kib,
    }

    lines = [(size.part, f"{size.flash_bytes:,}", f"{size.ram_bytes:,}") for size in sizes]
    lines += [("together", f"{flash:,}", f"{ram:,}")]
    lines += [("the board has", f"{board.firmware.code_kib * 1024:,}", f"{board.firmware.ram_kib * 1024:,}")]
    lines += [("the model's image", f"{build.image.stat().st_size:,}", "")]
    return show(args, result, table(lines, ("part", "flash, bytes", "RAM, bytes"), right=(1, 2)))


def _run(args: argparse.Namespace) -> int:
    from device_runtime import __version__
    from device_runtime.errors import ConfigurationError
    from toolkit.firmware.qemu import Emulator
    from toolkit.firmware.slots import firmware_image, model_image, require_flash, write_flash

    if args.serve is not None and args.prompt is not None:
        raise ConfigurationError("--serve gives the board's line to another program, which asks; leave out --prompt.")
    board, build, bundle, key = _built(args)
    flash = None
    if build.program is not None:
        flash = args.flash or build.elf.parent / "flash.bin"
        if args.flash is None or not flash.exists():
            version = args.firmware_version or __version__
            write_flash(
                flash,
                board,
                firmware_image(build, board, key, version=version, security_counter=args.security_counter),
                model_image(build.image.read_bytes(), bundle.manifest, board, key),
            )
        else:
            require_flash(flash, board)
    elif args.flash is not None:
        raise ConfigurationError(f"{board.id} has no slots whose flash --flash could keep.")
    if args.serve is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the context manager, which ends QEMU
    with Emulator(build, board, flash, port=args.serve or 0, networked=args.mqtt is not None) as emulator:
        if args.serve is not None:
            say(f"{board.name} starts when its line is opened, with --port; Ctrl-C ends it:")
            print(emulator.url, flush=True)
            emulator.wait_until_ended()
            return 0
        print(f"{emulator.wait_until_ready()} ({board.id})", file=sys.stderr)
        for line in [args.prompt] if args.prompt is not None else sys.stdin:
            if not line.strip():
                continue
            for piece in emulator.ask(line.strip()):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            print(flush=True)
    return 0


def _export(args: argparse.Namespace) -> int:
    from device_runtime.update.active import open_bundle
    from toolkit.firmware.export import export

    written = export(open_bundle(args.bundle), args.toolchain, args.output, read_schemas(args.schema, args.task))
    facts = {"folder": str(args.output), "for": args.toolchain, "files": str(len(written)), "read": str(written[0])}
    return show(args, facts, rows(facts.items()))
