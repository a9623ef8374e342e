"""`stonechat native`: the C engine for this machine, compiled ahead; a model image as a C array for one binary."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from toolkit.cli.options import add_json
from toolkit.cli.output import rows, show

__all__ = ["HELP", "add_arguments", "run"]

HELP = "compile the C engine for this machine; write a model image as a C array"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `build` and `array`."""
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    build = commands.add_parser(
        "build", help="compile the engine now, so that the first start of a model does not wait for it",
        description="Compile the C engine for this machine, as --backend native does at its first use.",
        allow_abbrev=False,
    )  # fmt: skip
    add_json(build)
    build.set_defaults(action=_build)
    array = commands.add_parser(
        "array", help="model_image.c and .h, for firmware that carries its model in one binary",
        description="Write a bundle's model image as a C array that the linker places at a multiple of 16.",
        allow_abbrev=False,
    )  # fmt: skip
    array.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle of profile micro")
    array.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="where the two files go")
    add_json(array)
    array.set_defaults(action=_array)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    code: int = args.action(args)
    return code


def _build(args: argparse.Namespace) -> int:
    from device_runtime.micro.library import compile_library, compiler, library_path

    known = library_path().exists()
    path = compile_library()
    facts = {"library": str(path), "compiler": compiler(), "compiled": not known}
    said = "kept from an earlier time" if known else f"compiled with {compiler()}"
    return show(args, facts, rows([("library", str(path)), ("engine", said)]))


def _array(args: argparse.Namespace) -> int:
    from device_runtime.update.active import open_bundle
    from toolkit.firmware.array import write_array
    from toolkit.firmware.images import image_for

    with tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
        image = image_for(open_bundle(args.bundle), Path(folder))
        source, header = write_array(image, args.output)
        facts = {"source": str(source), "header": str(header), "image_bytes": image.stat().st_size}
    return show(args, facts, rows((name.replace("_", " "), str(value)) for name, value in facts.items()))
