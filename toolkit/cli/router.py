"""`stonechat router`: train what finds the right model for a text, and see which one it finds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json, whole_number

if TYPE_CHECKING:
    from device_runtime.fleet.file import Fleet, ModelEntry

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train what finds the right model of a device for a text, and try it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat router`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="train a router on the examples of each task", allow_abbrev=False)
    train.add_argument("fleet", metavar="FLEET.yaml", type=Path)
    train.add_argument("--device", metavar="ID", help="whose models it is to choose from (default: the whole fleet's)")
    train.add_argument(
        "--task", metavar="MODEL=TASK", action="append", default=[],
        help="the task file of a model (default: task.yaml beside its bundle); may be repeated",
    )  # fmt: skip
    train.add_argument(
        "--other", metavar="FILE", type=Path, action="append", default=[], help="lines that are for no model"
    )
    train.add_argument("--cases", metavar="N", type=whole_number(20), default=8000, help="of each task (default: 8000)")
    train.add_argument("-o", "--output", metavar="FILE.json", type=Path, required=True)
    add_json(train)
    ask = actions.add_parser("ask", help="say which model a text or a reading would go to, and why", allow_abbrev=False)
    ask.add_argument("fleet", metavar="FLEET.yaml", type=Path)
    ask.add_argument("--device", metavar="ID", help="whose models (default: the whole fleet's)")
    ask.add_argument("asked", metavar="TEXT", help="a text, or a reading as a JSON object")
    add_json(ask)


def run(args: argparse.Namespace) -> int:
    """Train or ask."""
    return {"train": _train, "ask": _ask}[args.action](args)


def _train(args: argparse.Namespace) -> int:
    from device_runtime.bundle.work_place import whole_file
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet.file import load
    from device_runtime.tasks.file import load as load_task
    from device_runtime.tasks.purpose import Purpose
    from device_runtime.update.active import open_bundle
    from toolkit.brain.router_training import background_texts, lines_of, require_scikit_learn, train_router
    from toolkit.cli.output import say, show
    from toolkit.examples.sources import all_examples

    require_scikit_learn()
    fleet = load(args.fleet)
    entries = _models_of(fleet, args.device)
    whose = args.device or "the fleet"
    named = dict(pair.partition("=")[::2] for pair in args.task)
    if unknown := sorted(set(named) - set(entries)):
        raise ConfigurationError(f"--task names {unknown[0]!r}; {whose} has {', '.join(entries)}.")
    texts: dict[str, list[str]] = {}
    for name, entry in entries.items():
        purpose = Purpose.of_manifest(open_bundle(entry.bundle).manifest)
        if purpose is None or purpose.inputs.text is None:  # found by its fields, or for what is for none
            continue
        path = Path(named.get(name) or Path(entries[name].bundle).parent / "task.yaml")
        if not path.exists():
            raise ConfigurationError(f"{path} is not there; name the task file with --task {name}=TASK.yaml.")
        say(f"{name}: examples of {path}")
        task = load_task(path)
        if task.inputs.text is None:
            raise ConfigurationError(f"{path} reads fields, and {name} reads texts; name its task with --task {name}=…")
        texts[name] = [str(case.input["text"]) for case in all_examples(task, args.cases, 1)]
    if not texts:
        raise ConfigurationError(f"No model of {whose} was trained to read texts; readings are found by their fields.")
    others = [line for path in args.other for line in lines_of(path)]
    trained = train_router(texts, [*others, *background_texts()])
    with whole_file(args.output) as write:
        write(trained.classifier.to_json())
    named_in = f"router: {{file: {args.output.name}}}"
    named_in = named_in if args.device is None else f"devices: {{{args.device}: {{{named_in}}}}}"
    fields = {"file": str(args.output), "models": list(texts), "right": trained.right, "count": trained.count}
    return show(args, fields, [
        f"{args.output}: {', '.join(texts)}; {trained.right} right of {counted(trained.count, 'text')} held back",
        f"name it in the fleet file: {named_in}",
    ])  # fmt: skip


def _ask(args: argparse.Namespace) -> int:
    from device_runtime.brain.router import FOR_NONE, Router
    from device_runtime.fleet.file import load
    from device_runtime.fleet.policies.routing import Routing
    from toolkit.cli.output import say, show

    fleet = load(args.fleet)
    entries = _models_of(fleet, args.device)
    routing = fleet.routing_of_all() if args.device is None else fleet.routing(args.device)
    router = Router.of_bundles(routing or Routing(), {name: entry.bundle for name, entry in entries.items()})
    chosen = router.choose(args.asked)
    having = [name for name, entry in fleet.devices.items() if chosen.model in entry.models]
    why = _no_model(fleet, args.device) if chosen.why == FOR_NONE else chosen.why
    if args.device is None and routing is None:
        missing = f"{args.fleet} has no `router` for the whole fleet, at its top; --device ID asks that of one device"
        if chosen.stray and chosen.why != FOR_NONE:
            why = f"{why}: {missing}"
        else:
            say(missing)
    fields: dict[str, Any] = {"model": None if chosen.stray else chosen.model, "why": why}
    fields |= {} if args.device is not None or chosen.stray else {"devices": having}
    where = f" (on {', '.join(having)})" if "devices" in fields else ""
    return show(args, fields, [why if chosen.stray else f"{chosen.model}{where}: {why}"])


def _no_model(fleet: Fleet, device: str | None) -> str:
    """What becomes of a question that no model is for."""
    from toolkit.gateway.fleet_router import passing_on

    passing = passing_on(fleet)
    if device is not None:
        whose, goes = "this device", [passing[device]] if device in passing else []
    else:
        whose, goes = "the fleet", [f"{to}, by way of {name}" for name, to in passing.items()]
    return f"no model of {whose} is for it" + (f"; it goes on to {' or '.join(goes)}" if goes else "")


def _models_of(fleet: Fleet, device: str | None) -> Mapping[str, ModelEntry]:
    """Those of one device, or of all."""
    return fleet.served_models() if device is None else fleet.models_of(device)
