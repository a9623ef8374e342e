"""A 64-bit and a 32-bit board, emulated: their own Python, pip, runtimes and libraries, as on the real ones.

`tests/system/emulated_board.sh` makes the systems. The boards are set up, brought online and asked with the very
commands that a user types; sshd, its shell and the broker are this machine's, every Python process is the board's.
Downloads are kept in build/emulated.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.brokers import mosquitto
from tests.support.signed_bundles import Workshop
from tests.support.ssh_boards import FLEET, Board
from tests.support.ssh_servers import ssh_server
from toolkit.signing.bundles import sign_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="boards are emulated on x86_64 machines only"),
]

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "emulated"
PROFILE = {"arm64": "pi", "armhf": "micro"}
# What a 32-bit board has from Debian, by the names that they are imported by.
FROM_DEBIAN = {"arm64": [], "armhf": ["cryptography", "numpy", "sentencepiece", "yaml"]}
PROMPT, MAX_NEW = "hello", 12
LIBRARIES = """
import importlib, json, platform, sys
names = sys.argv[1].split(",")
print(json.dumps({"machine": platform.machine(), "files": {n: importlib.import_module(n).__file__ for n in names}}))
"""

# What a 32-bit system under a 64-bit kernel is called by the kernel, with `setarch linux32` in front: armv8l.
PIP_THERE = """
import json, os, platform
release = os.uname()
os.uname = lambda: os.uname_result((*release[:4], "armv8l"))
platform.machine = lambda: "armv8l"
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.tags import sys_tags
needed = [Requirement(line) for line in requires("stonechat")]
wanted = [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
print(json.dumps({"tags": [str(tag) for tag in sys_tags()], "wanted": wanted}))
"""

# Answers with labels, drafted and by single steps: the largest difference of a label's probability, and runs.
DRAFTED = """
import json, sys
from device_runtime.engine.language_model import LanguageModel
form = {"type": "object", "properties": {n: {"enum": ["over", "overheat", "warn", "ok"]} for n in "abc"}}
form |= {"required": ["a", "b", "c"], "additionalProperties": False}
found = []
for single in (True, False):
    with LanguageModel.open(sys.argv[1], threads=1) as model:
        if single:
            model.backend.chunk = model.backend.several = 1
        for number in 0, 0, 1, 1, 2, 2, 0:
            answer = model.generate([{"role": "user", "content": f"Boiler {number} reads 99."}], schema=form, head="")
            json.loads("".join(answer))
            found.append(([c.shares().tolist() for c, in answer.choices.values()], answer.result.passes))
steps, drafts = found[:7], found[7:]
apart = [abs(x - y) for s, d in zip(steps, drafts) for a, b in zip(s[0][:1], d[0][:1]) for x, y in zip(a, b)]
print(json.dumps({"apart": max(apart), "steps": sum(p for _, p in steps), "drafts": sum(p for _, p in drafts)}))
"""


@dataclass
class Emulated:
    """A board and what it takes to try it."""

    arch: str
    system: Path  # its root folder
    board: Board
    workshop: Workshop  # keys that it trusts, and others
    bundle: Path  # of the profile that it runs, signed, with a golden prompt
    init: subprocess.CompletedProcess[str]

    def there(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A command of the environment that `device init` has made."""
        program, *rest = map(str, arguments)
        command = [str(self.board.prefix / "venv/bin" / program), *rest]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=self.env)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "STONECHAT_ROOT": str(self.board.root)}

    def copy(self, folder: Path, *, signed: bool) -> Path:
        """The bundle again, to change it."""
        shutil.copytree(self.bundle, folder)
        if not signed:
            (folder / "manifest.sig").unlink()
        return folder


def system(arch: str) -> Path | str:
    """The board's python3, or why there is none here."""
    made = subprocess.run([HERE / "emulated_board.sh", arch, CACHE / arch], capture_output=True, text=True, timeout=900)
    if made.returncode == 3:
        return made.stderr.strip()
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


@pytest.fixture(scope="module")
def systems() -> dict[str, Path | str]:
    """Both at once: it takes a minute or two where nothing is kept from before."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(PROFILE, pool.map(system, PROFILE), strict=True))


@pytest.fixture(scope="module")
def boards(
    systems: dict[str, Path | str], converted: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Emulated]]:
    """Those that can be emulated, after `device init`, which is most of the work: both at once."""
    usable = {arch: python for arch, python in systems.items() if isinstance(python, Path)}
    bundles = {arch: converted("gqa-tied", PROFILE[arch]) for arch in usable}
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        broker = tmp_path_factory.mktemp("broker")
        port = stack.enter_context(mosquitto(broker)) if usable else 0

        def make(arch: str) -> Emulated:
            folder = tmp_path_factory.mktemp(arch)
            return new_emulated(stack, arch, usable[arch], bundles[arch], port, folder)

        made = dict(zip(usable, pool.map(make, usable), strict=True))
        for emulated in made.values():
            stack.callback(emulated.board.stop)
        yield made


def new_emulated(stack: ExitStack, arch: str, python: Path, bundle: Path, port: int, folder: Path) -> Emulated:
    tools = folder / "bin"
    tools.mkdir()
    (tools / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n')
    (tools / "python3").chmod(0o755)
    (folder / "fleet.yaml").write_text(FLEET.format(port=port).replace("test-pi", f"test-{arch}"))
    env = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "STONECHAT_CACHE": str(folder / "cache"),
        "PIP_NO_COMPILE": "1",  # half of an emulated installation
    }
    env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    server = stack.enter_context(ssh_server(folder / "sshd", env=env))
    board = Board(
        server, folder / "data", folder / "prefix", folder / "fleet.yaml", port, f"test-{arch}", timeout_s=1500
    )
    workshop = Workshop(folder / "workshop")
    shutil.copytree(bundle, folder / "bundle")
    signed = board.stonechat(
        "bundle", "sign", folder / "bundle", "--key", workshop.folder / "secret/plant-2026.key",
        "--trial-prompt", PROMPT, "--trial-max-new", MAX_NEW,
    )  # fmt: skip
    assert signed.returncode == 0, signed.stderr
    init = board.init("--keys", workshop.keys, *board.restart_flag())
    return Emulated(arch, python.parents[2], board, workshop, folder / "bundle", init)


@pytest.fixture(scope="module", params=PROFILE)
def emulated(request: pytest.FixtureRequest, systems: dict[str, Path | str], boards: dict[str, Emulated]) -> Emulated:
    if isinstance(reason := systems[request.param], str):
        pytest.skip(f"no emulated {request.param} board: {reason}")
    return boards[request.param]


@pytest.fixture(scope="module")
def ready(emulated: Emulated) -> Emulated:
    assert emulated.init.returncode == 0, emulated.init.stderr
    return emulated


@pytest.fixture(scope="module")
def on_air(ready: Emulated) -> Emulated:
    done = ready.board.deploy(ready.bundle)
    assert done.returncode == 0, done.stderr
    return ready


def here(*arguments: object) -> str:
    """What stonechat prints on this machine."""
    command = [sys.executable, "-m", "toolkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_program_installs_from_wheels_alone(emulated: Emulated) -> None:
    """pip there may not build anything: a dependency that has no wheel for a board fails here, by its name."""
    assert emulated.init.returncode == 0, emulated.init.stderr


def test_libraries_are_the_boards_own(ready: Emulated) -> None:
    runtime = "ai_edge_litert" if ready.arch == "arm64" else "tflite_runtime"
    names = [runtime, "cryptography", "jinja2", "numpy", "paho.mqtt", "sentencepiece", "tokenizers", "yaml"]
    done = ready.there("python", "-c", LIBRARIES, ",".join(names))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"] == {"arm64": "aarch64", "armhf": "armv7l"}[ready.arch]
    debian = str(ready.system / "usr/lib/python3/dist-packages")
    assert [name for name, file in found["files"].items() if file.startswith(debian)] == FROM_DEBIAN[ready.arch]


def test_run_gives_the_text_of_this_machine(ready: Emulated) -> None:
    """The same greedy text. `micro` graphs compute in int8, whose kernels may differ by a step of a grid here and
    there, and `pi` graphs in float32, whose sums may be added in another order; this text has no choice so close
    that either decides it. A wrong kernel, or one that reads another CPU's features, gives other text at once."""
    arguments = ["run", ready.bundle, PROMPT, "--max-new", MAX_NEW, "--json"]
    done = ready.there("stonechat", *arguments)
    assert done.returncode == 0, done.stderr
    there, ours = json.loads(done.stdout), json.loads(here(*arguments))
    print(ready.arch, {name: there[name] for name in ("tokens_per_s", "ttft_ms", "load_ms", "peak_rss_mb")})
    assert there["completion_tokens"] == MAX_NEW
    assert {k: there[k] for k in ("text", "finish", "prompt_tokens")} == {
        k: ours[k] for k in ("text", "finish", "prompt_tokens")
    }


def test_a_64_bit_board_runs_micro_bundles_too(ready: Emulated, converted: Callable[..., Path]) -> None:
    if ready.arch != "arm64":
        pytest.skip("a 32-bit board's own profile is micro")
    arguments = ["run", converted("gqa-tied", "micro"), PROMPT, "--max-new", MAX_NEW, "--json"]
    done = ready.there("stonechat", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == json.loads(here(*arguments))["text"]


def test_inspect_prints_the_same(ready: Emulated) -> None:
    done = ready.there("stonechat", "inspect", ready.bundle)
    assert (done.returncode, done.stdout) == (0, here("inspect", ready.bundle)), done.stderr


def test_what_a_32_bit_board_cannot_do_is_said(ready: Emulated, converted: Callable[..., Path], tmp_path: Path) -> None:
    if ready.arch != "armhf":
        pytest.skip("a 64-bit board can")
    done = ready.there("stonechat", "run", converted("gqa-tied", "pi"), PROMPT)
    assert done.returncode == 1
    assert "for 64-bit systems only, and this is a 32-bit one; convert the checkpoint again with --profile micro" in (
        done.stderr
    )
    (tmp_path / "schema.json").write_text('{"type": "boolean"}')
    done = ready.there("stonechat", "run", ready.bundle, PROMPT, "--schema", tmp_path / "schema.json")
    assert done.returncode != 0
    assert "llguidance, which is not installed (there are packages for 64-bit machines only)" in done.stderr


def test_under_a_64_bit_kernel_pip_is_told_that_the_system_is_a_32_bit_one(ready: Emulated) -> None:
    """As `device init` tells it. QEMU has no such kernel: here Python only hears the name that one would give."""
    if ready.arch != "armhf":
        pytest.skip("about 32-bit systems")
    python = str(ready.board.prefix / "venv/bin/python")
    env = ready.env | {"_PYTHON_HOST_PLATFORM": "linux-armv7l"}
    done = subprocess.run([python, "-c", PIP_THERE], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "cp311-cp311-manylinux_2_34_armv7l" in found["tags"]  # of the wheel of tflite-runtime
    assert "tflite-runtime" in found["wanted"]
    assert not {"ai-edge-litert", "llguidance"} & set(found["wanted"])


def test_a_schema_is_held_to_on_a_64_bit_board(ready: Emulated, tmp_path: Path) -> None:
    if ready.arch != "arm64":
        pytest.skip("llguidance has packages for 64-bit machines only")
    (tmp_path / "schema.json").write_text('{"type": "boolean"}')
    done = ready.there("stonechat", "run", ready.bundle, PROMPT, "--schema", tmp_path / "schema.json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) in (True, False)
    done = ready.there("python", "-c", DRAFTED, ready.bundle)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["apart"] < 0.05 and found["drafts"] < found["steps"] / 4


def test_signatures_are_checked(ready: Emulated, tmp_path: Path) -> None:
    unsigned = ready.copy(tmp_path / "unsigned", signed=False)
    altered = ready.copy(tmp_path / "altered", signed=True)
    manifest = (altered / "manifest.json").read_text()
    (altered / "manifest.json").write_text(manifest.replace('"version": "1"', '"version": "9"'))
    assert (altered / "manifest.json").read_text() != manifest
    stranger = ready.copy(tmp_path / "stranger", signed=False)
    sign_bundle(stranger, {}, [ready.workshop.stranger])
    for bundle, reason in ((unsigned, "is not signed"), (altered, "was altered"), (stranger, "does not know")):
        done = ready.there("stonechat", "slots", "install", bundle, tmp_path / "slots")
        assert (done.returncode, reason in done.stderr) == (4, True), done.stderr
    assert not (tmp_path / "slots").exists() or not list((tmp_path / "slots").glob("[ab]"))


def test_a_bundle_goes_there_passes_its_trial_and_answers_over_the_air(on_air: Emulated) -> None:
    """Its golden prompt expects what this machine answers, so the trial has compared the two as well."""
    port, device = on_air.board.port, f"test-{on_air.arch}"
    answer = here("ask", "--broker", f"mqtt://127.0.0.1:{port}", "--device", device, "--max-new", "8", PROMPT)
    assert answer == here("run", on_air.bundle, PROMPT, "--max-new", "8")
    shown = on_air.there("stonechat", "slots", "show", on_air.board.root / "models/tiny", "--json")
    assert shown.returncode == 0, shown.stderr
    state = json.loads(shown.stdout)
    assert (state["last"]["outcome"], state["active"]) == ("confirmed", "a")
    assert state["last"]["tokens_per_s"] > 0


def test_a_bundle_with_another_golden_answer_is_taken_back(on_air: Emulated, tmp_path: Path) -> None:
    wrong = on_air.copy(tmp_path / "wrong", signed=False)
    signed = on_air.board.stonechat(
        "bundle", "sign", wrong, "--key", on_air.workshop.folder / "secret/plant-2026.key",
        "--trial-prompt", PROMPT, "--trial-expect", "something else",
    )  # fmt: skip
    assert signed.returncode == 0, signed.stderr
    done = on_air.board.deploy(wrong)
    assert done.returncode == 6, done.stderr
    assert "expected an answer with 'something else'" in done.stderr
