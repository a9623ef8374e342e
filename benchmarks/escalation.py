"""Router and escalation on the four example tasks, mixed with 20 % of inputs that are for none of them.

    python benchmarks/escalation.py [--each 200] [--below 0.8]
        [--far URL --far-model NAME | --far-bundle log-triage=DIR --far-bundle home-commands=DIR]
        [--far-router FILE] [--third-bundle log-triage=DIR] [--show]

One real device (four bundles, a router, `escalate`) on a real mosquitto is asked by `RemoteModel`. Without --far, the
far side is a small OpenAI-compatible server that has the exact rules of the boiler, and no answer to all else: that
comes back as it was, marked. With --far-bundle it is another device on the same broker, which has these bundles and the
same router, or that of --far-router; of what it is unsure itself, it asks one that has those of --third-bundle. One
more device has the router and no `escalate`: what it has wrong is what the first is held against. Printed are the share
that left the device beside the share that is unfamiliar or that was wrong, the errors on what left before and after,
and what router and escalation add to an answer that stays here (medians of interleaved requests, on one machine).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixed_inputs import ROOT, TASKS, Mixed, boiler_truth, mixed

from device_runtime.brain.router import Router
from device_runtime.client.remote import RemoteModel
from device_runtime.device.extensions.escalation import Escalations
from device_runtime.device.service import Service
from device_runtime.engine.opening import open_model
from device_runtime.errors import StonechatError, UnfamiliarError
from device_runtime.fleet.file import load
from device_runtime.fleet.policies.escalation import Escalation, Target
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import Final
from device_runtime.tasks.purpose import Purpose
from tests.support.brokers import await_ready, mosquitto
from tests.support.far_server import far_server

WARM_UP, INTERLEAVED = 10, 100


def rules(body: Mapping[str, Any]) -> str | None:
    """The exact answer to a reading of the boiler; None to anything else."""
    asked = body["messages"][-1]["content"]
    with contextlib.suppress(ValueError, KeyError, TypeError):
        given = json.loads(asked)
        severity, cause = boiler_truth(given["temp_c"], given["bar"], given["flow_l_min"], given.get("window", []))
        return json.dumps({"severity": severity, "cause": cause, "advice": "See the manual."})
    return None


@contextlib.contextmanager
def device(
    name: str,
    port: int,
    folder: Path,
    policy: Escalation | None,
    *,
    routed: bool,
    bundles: Mapping[str, str] | None = None,
    router: str | None = None,
) -> Iterator[Service]:
    """A device with the four bundles and the example's router, or with others in their place."""
    fleet = load(ROOT / "examples" / "router" / "fleet.yaml")
    entries = {
        name: replace(entry, bundle=(bundles or {}).get(name, entry.bundle))
        for name, entry in fleet.models_of("house").items()
    }
    config = fleet.device("house", BrokerAddress("127.0.0.1", port), folder / name)
    routing = config.routing if routed else None
    if routing is not None and router is not None:
        routing = replace(routing, file=router)
    config = replace(config, device=name, escalate=policy, home_assistant=False, routing=routing)
    service = Service(config, lambda model: open_model(entries[model].bundle, threads=1))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        await_ready(port, name)
        yield service
    finally:
        service.stop()
        thread.join()


def ask(remote: RemoteModel, prompt: str, model: str | None = None) -> Any:
    """The final reply; an `UnfamiliarError` where no model is for it, and None at any other error."""
    answer = remote.generate(prompt, model=model, stream=False, timeout_s=600)
    try:
        for _ in answer:
            pass
    except UnfamiliarError as error:
        return error
    except StonechatError:
        return None
    return answer.final


def passed_on(service: Service) -> int:
    """How many questions a device has passed on, with or without an answer."""
    found = next(extension for extension in service._extensions if isinstance(extension, Escalations))
    return sum(found.health()["escalations"]["device"].values())


def wrong(case: Mixed, final: Any, purposes: Mapping[str, Purpose]) -> int:
    """Fields of the right answer that the reply has otherwise. Any task's words may say that nothing was asked, and so
    does a reply that no model is for it."""
    right = case.answer or {}
    nothing_asked = case.task is not None and purposes[case.task].asks_nothing(right)
    if isinstance(final, UnfamiliarError):
        return 0 if nothing_asked else len(right)
    try:
        said = json.loads(final.text) if final is not None else None
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    if nothing_asked:
        own = (purpose for purpose in purposes.values() if set(said) == set(purpose.answer["properties"]))
        if any(purpose.asks_nothing(said) for purpose in own):
            return 0
    return sum(said.get(name) != value for name, value in right.items())


def routed_right(case: Mixed, final: Any, router: Router) -> bool:
    """Whether the right model was asked, or for an input that is for none of them, none or one that passed it on."""
    route = final.route if isinstance(final, Final) else None
    if route is not None and route.where == "here" and route.failed is None:
        return route.model == case.task
    chosen = router.choose(case.prompt)
    return case.task is None if chosen.stray else case.task in (chosen.model, None if chosen.doubtful else chosen.model)


def overhead(plain: RemoteModel, brain: RemoteModel, cases: list[Mixed]) -> None:
    """What router and escalation add to an answer that stays, in wall time and in CPU time of all that is involved."""
    logs = (case for case in cases if case.task == "log-triage")
    sure = next(case for case in logs if ask(brain, case.prompt).route.why.startswith("the router"))
    took: dict[str, list[tuple[float, float]]] = {"plain": [], "brain": []}
    for number in range(WARM_UP + INTERLEAVED):
        for who, remote, model in (("plain", plain, "log-triage"), ("brain", brain, None)):
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            ask(remote, sure.prompt, model)
            if number >= WARM_UP:
                spent_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
                took[who].append((spent_s[0] * 1000, spent_s[1] * 1000))
    for place, what in enumerate(("wall time", "CPU time")):
        medians = {who: statistics.median(times[place] for times in found) for who, found in took.items()}
        print(
            f"an answer that stays, {what}: {medians['plain']:.1f} ms, routed and judged {medians['brain']:.1f} ms; "
            f"added, p50: {medians['brain'] - medians['plain']:.2f} ms (at most 3)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--below", type=float, default=0.8)
    parser.add_argument("--far", metavar="URL")
    parser.add_argument("--far-model", default="far")
    parser.add_argument("--far-bundle", metavar="MODEL=DIR", action="append", default=[])
    parser.add_argument("--far-router", metavar="FILE", help="of the device with those bundles")
    parser.add_argument("--third-bundle", metavar="MODEL=DIR", action="append", default=[])
    parser.add_argument("--far-timeout", metavar="S", type=float, default=30.0, help="that the far side may take")
    parser.add_argument("--show", action="store_true", help="print what left and was wrong, before or after")
    args = parser.parse_args()
    cases = mixed(args.each)
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name)) as port, far_server() as server:
        folder, broker = Path(name), BrokerAddress("127.0.0.1", port)
        server.say = rules
        bundles, third = (dict(pair.split("=", 1) for pair in given) for given in (args.far_bundle, args.third_bundle))
        target = Target(device="desk") if bundles else Target(url=args.far or server.url, model=args.far_model)
        policy = Escalation(target, below=args.below, timeout_s=args.far_timeout)
        further = replace(policy, to=Target(device="server"), when=("unsure",)) if third else None
        nobody = contextlib.nullcontext()
        with (
            device("server", port, folder, None, routed=True, bundles=third) if third else nobody,
            device("desk", port, folder, further, routed=True, bundles=bundles, router=args.far_router)
            if bundles
            else nobody,
            device("plain", port, folder, None, routed=False),
            device("alone", port, folder, None, routed=True),
            device("brain", port, folder, policy, routed=True) as house,
            RemoteModel(broker, "plain") as plain,
            RemoteModel(broker, "alone") as alone,
            RemoteModel(broker, "brain") as brain,
        ):
            counts: Counter[str] = Counter()
            passed = 0
            router = house._device.router
            opened = {task: house._device.runner.purpose_of(task) for task in TASKS}
            purposes = {task: purpose for task, purpose in opened.items() if purpose is not None}
            assert router is not None and len(purposes) == len(TASKS)
            for case in cases:
                local = wrong(case, ask(alone, case.prompt), purposes) if case.task is not None else 0
                final = ask(brain, case.prompt)
                route = final.route if isinstance(final, Final) else None
                passed, before = passed_on(house), passed
                left = passed > before
                counts["routed right"] += routed_right(case, final, router)
                counts["unfamiliar or wrong"] += case.task is None or local > 0
                counts["left"] += left
                if case.task is not None:
                    counts["wrong fields"] += local
                    counts["wrong fields with escalation"] += wrong(case, final, purposes)
                    if left:
                        counts[f"left {case.task}"] += 1
                        counts["wrong fields of what left"] += local
                        counts["the same, with escalation"] += (after := wrong(case, final, purposes))
                        if args.show and (local or after):
                            said = getattr(final, "text", final)
                            print(f"wrong {local}, then {after}: {case.prompt[:90]!r} {case.answer}; said {said}")
                        counts["no answer from the far side"] += route is None or route.failed is not None
                else:
                    counts["unfamiliar that left"] += left
            for what in (
                "routed right", "unfamiliar or wrong", "left", "unfamiliar that left",
                *(f"left {task}" for task in TASKS),
                "wrong fields", "wrong fields with escalation", "wrong fields of what left",
                "the same, with escalation", "no answer from the far side",
            ):  # fmt: skip
                print(f"{what:30} {counts[what]:4} of {len(cases)} inputs")
            print(f"left / unfamiliar or wrong: {counts['left'] / counts['unfamiliar or wrong']:.2f} (at most 1.2)")
            overhead(plain, brain, cases)


if __name__ == "__main__":
    main()
