"""Board files: what stonechat knows of a board, read from YAML and checked.

The files beside this one describe the boards that come with stonechat; a file of the same form anywhere else
describes yours. Every figure says in `source` where it is from.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from device_runtime import yaml_schema
from device_runtime.errors import ConfigurationError
from device_runtime.yaml_schema import Choice, Field, Integer, ListOf, Number, Record, Report, Text

__all__ = ["Board", "Detect", "Flash", "Graph", "Measurement", "Memory", "Soc", "Storage", "board_ids", "load_board"]

_FOLDER = Path(__file__).parent
_RUNS_PI = ("aarch64", "x86_64")  # LiteRT 2 has packages for these


@dataclass(frozen=True)
class Soc:
    """The processor."""

    arch: str  # as `uname -m` says it, or the instruction set of a microcontroller
    core: str  # cortex-a53
    cores: int
    mhz: int
    features: tuple[str, ...] = ()  # neon, dotprod, dsp …: what kernels may use


@dataclass(frozen=True)
class Memory:
    """RAM."""

    ram_kib: int
    psram_kib: int  # external, slower than `ram_kib`
    model_budget_kib: int  # what a model may take: arena or resident memory, its weights included if they are in RAM
    bandwidth_mb_s: int  # 10^6 bytes a second that the interface of the memory with the model can move at most


@dataclass(frozen=True)
class Storage:
    """Where bundles lie."""

    model_kib: int  # for one bundle
    slots: int  # how many of that size: 2 let an update be undone


@dataclass(frozen=True)
class Graph:
    """What the converter makes for this board."""

    profile: Literal["pi", "micro"]
    max_context: int  # positions


@dataclass(frozen=True)
class Flash:
    """How software gets onto the board."""

    method: Literal["ssh", "esptool", "uf2", "smp"]


@dataclass(frozen=True)
class Detect:
    """How a board that is plugged in, or the board that we run on, is recognized."""

    device_tree: str | None = None  # one of the strings in /proc/device-tree/compatible
    usb: tuple[str, ...] = ()  # vendor:product, in hexadecimal


@dataclass(frozen=True)
class Measurement:
    """What was measured on the board itself."""

    model: str
    tokens_per_s: float  # decode
    ttft_ms: float  # time to first token
    date: str  # 2026-11-22


@dataclass(frozen=True)
class Board:
    """A board file."""

    id: str  # equals the file's name
    name: str
    kind: Literal["linux", "mcu"]  # `class` in the file
    soc: Soc
    memory: Memory
    storage: Storage
    graph: Graph
    flash: Flash
    detect: Detect
    source: str  # where each figure is from
    measured: tuple[Measurement, ...] = ()
    schema: int = 1

    @property
    def profile(self) -> Literal["pi", "micro"]:
        """The graph profile."""
        return self.graph.profile

    @property
    def max_context(self) -> int:
        """The longest context, in positions, that makes sense here."""
        return self.graph.max_context

    @property
    def arch(self) -> str:
        """The instruction set."""
        return self.soc.arch

    @property
    def ram_kib(self) -> int:
        """RAM inside the chip, or on a Linux board all of it."""
        return self.memory.ram_kib

    @property
    def model_budget_kib(self) -> int:
        """What a model may take of it."""
        return self.memory.model_budget_kib


def board_ids() -> list[str]:
    """The boards that come with stonechat."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load_board(id_or_path: str) -> Board:
    """Read a board file.

    Args:
        id_or_path: the id of a board that comes with stonechat, or the path of a .yaml file.

    Raises:
        ConfigurationError: there is no such board; or the file is faulty, with every fault and its place.
    """
    if id_or_path.endswith((".yaml", ".yml")):
        path = Path(id_or_path)
    elif id_or_path in (known := board_ids()):
        path = _FOLDER / f"{id_or_path}.yaml"
    else:
        near = get_close_matches(id_or_path, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "expected an id, or the path of a .yaml file."
        raise ConfigurationError(f"There is no board {id_or_path!r}; {hint} The boards are {', '.join(known)}.")
    return yaml_schema.load(path, _BOARD, lambda board, report: _check(board, report, path))


def _check(board: Board, report: Report, path: Path) -> None:
    """What concerns several fields."""
    if board.id != path.stem:
        report.add_at(("id",), f"found {board.id!r}; expected the file's name, {path.stem!r}")
    memory = board.memory
    if memory.model_budget_kib > memory.ram_kib + memory.psram_kib:
        found = f"found {memory.model_budget_kib} KiB; expected at most ram_kib + psram_kib"
        report.add_at(("memory", "model_budget_kib"), f"{found}, {memory.ram_kib + memory.psram_kib} KiB")
    if board.profile == "pi" and (board.kind != "linux" or board.arch not in _RUNS_PI):
        report.add_at(
            ("graph", "profile"), f"found 'pi', which needs Linux on {' or '.join(_RUNS_PI)}; expected 'micro'"
        )
    if board.flash.method == "ssh" and board.kind != "linux":
        report.add_at(("flash", "method"), "found 'ssh', which needs Linux; expected esptool, uf2 or smp")


_KIB = Integer(0, 2**40, "KiB")
_POSITIVE_KIB = Integer(1, 2**40, "KiB")
_SOC = Record(
    Soc,
    {
        "arch": Field(Choice(("aarch64", "x86_64", "armv7l", "armv6-m", "armv7e-m", "armv8-m", "riscv32", "xtensa"))),
        "core": Field(Text("the core's name, such as cortex-a53")),
        "cores": Field(Integer(1, 1024)),
        "mhz": Field(Integer(1, 100_000, "MHz")),
        "features": Field(ListOf(Text("a feature, such as neon")), ()),
    },
)
_MEMORY = Record(
    Memory,
    {
        "ram_kib": Field(_POSITIVE_KIB),
        "psram_kib": Field(_KIB, 0),
        "model_budget_kib": Field(_POSITIVE_KIB),
        "bandwidth_mb_s": Field(Integer(1, 10**7, "MB/s")),
    },
)
_MEASUREMENT = Record(
    Measurement,
    {
        "model": Field(Text("a model's name")),
        "tokens_per_s": Field(Number(0, 1e6, "tok/s")),
        "ttft_ms": Field(Number(0, 1e9, "ms")),
        "date": Field(Text("a date such as 2026-11-22", r"\d{4}-\d\d-\d\d")),
    },
)
_DETECT = Record(
    Detect,
    {
        "device_tree": Field(Text("a compatible string, such as raspberrypi,4-model-b", r"[^,\s]+,\S+"), None),
        "usb": Field(ListOf(Text("vendor:product in hexadecimal, such as 303a:1001", r"[0-9a-f]{4}:[0-9a-f]{4}")), ()),
    },
)
_BOARD: Record[Board] = Record(
    Board,
    {
        "schema": Field(Integer(1, 1)),
        "id": Field(Text("an id of a-z, 0-9 and -, at most 64 characters", r"[a-z0-9][a-z0-9-]{0,63}")),
        "name": Field(Text("the board's name")),
        "class": Field(Choice(("linux", "mcu")), to="kind"),
        "soc": Field(_SOC),
        "memory": Field(_MEMORY),
        "storage": Field(Record(Storage, {"model_kib": Field(_POSITIVE_KIB), "slots": Field(Integer(1, 16))})),
        "graph": Field(
            Record(
                Graph,
                {"profile": Field(Choice(("pi", "micro"))), "max_context": Field(Integer(16, 2**20, "positions"))},
            )
        ),
        "flash": Field(Record(Flash, {"method": Field(Choice(("ssh", "esptool", "uf2", "smp")))})),
        "detect": Field(_DETECT, Detect()),
        "source": Field(Text("where each figure is from")),
        "measured": Field(ListOf(_MEASUREMENT), ()),
    },
)
