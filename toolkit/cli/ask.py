"""`stonechat ask`: ask a device or a pool over MQTT and print its answer as it comes."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.broker_access import add_broker_access, broker_access
from toolkit.cli.output import print_json, say, say_unfamiliar

__all__ = ["HELP", "add_arguments", "run"]

HELP = "ask a device over MQTT and print its answer as it comes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat ask`."""
    parser.add_argument("prompt", help="what to ask")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--device", metavar="ID", help="which device to ask")
    whom.add_argument("--pool", metavar="GROUP", help="ask whichever device of this pool is free")
    parser.add_argument("--model", metavar="NAME", help="which of its models, as the fleet file calls it")
    parser.add_argument("--system", metavar="TEXT", help="a system message, in place of the device's")
    parser.add_argument("--schema", metavar="FILE", type=Path, help="hold the answer to this JSON schema")
    parser.add_argument(
        "--examples",
        metavar="FILE",
        type=Path,
        help='lines of {"prompt": …, "answer": …} that show the model what is right',
    )
    parser.add_argument("--to", metavar="LANGUAGE", help="of a translator that writes several languages")
    parser.add_argument("--prompt-name", metavar="NAME", help="of a sentence encoder: what the text is for (query)")
    parser.add_argument("--truncate", action="store_true", help="of these two: cut off what is too long")
    parser.add_argument("--max-new", metavar="N", type=int, help="at most N tokens")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--seed", metavar="N", type=int, help="the same seed draws the same answer")
    parser.add_argument("--timeout", metavar="S", type=float, default=60.0, help="give up after S seconds (default 60)")
    add_broker_access(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Ask, print, and return 0; 130 after Ctrl-C; 1 when the answer was cut by the timeout."""
    from device_runtime.client.remote import RemoteModel, why_unfamiliar
    from device_runtime.errors import StonechatError
    from toolkit.cli.options import read_schema, read_shown

    broker, name = broker_access(args)
    system = [{"role": "system", "content": args.system}] if args.system else []
    model = RemoteModel(broker, args.device, pool=args.pool, client=name)
    answer = model.generate(
        [*system, {"role": "user", "content": args.prompt}],
        model=args.model,
        temperature=args.temperature,
        max_new=args.max_new,
        seed=args.seed,
        schema=read_schema(args.schema) if args.schema else None,
        examples=read_shown(args.examples) if args.examples else (),
        prompt_name=args.prompt_name,
        to=args.to,
        truncate=args.truncate,
        stream=not args.json,
        timeout_s=args.timeout,
        on_wait=say,
    )
    printed = False
    with model:
        try:
            for piece in answer:
                if not args.json:
                    print(piece, end="", flush=True)
                    printed = True
        except KeyboardInterrupt:
            answer.cancel()
            if args.json:
                raise
            print()
            return 130
        except StonechatError:
            if printed and not args.json:
                print(flush=True)  # the message begins a line of its own
            raise
    final = answer.final
    if args.json:
        print_json({"device": answer.device, **final.to_fields()})
    else:
        print("" if final.embedding is None else list(final.embedding), flush=True)
        say_unfamiliar(why_unfamiliar(final))
        if final.finish == "deadline":
            say(f"cut after --timeout {args.timeout:g} s; a longer one gets more.")
    return 1 if final.finish == "deadline" else 0
