"""Does a bundle fit this machine? What a device asks before it takes one: `Policy(fits=require_room)`.

`stonechat check --board ID` asks the same of a board file; this asks the machine itself, which needs none.
"""

from __future__ import annotations

from pathlib import Path

from device_runtime.bundle.manifest import MODEL, TABLE, Manifest
from device_runtime.errors import DoesNotFitError
from device_runtime.machine.instruction_sets import missing_instructions
from device_runtime.machine.machine import cpu_features, program_arch
from device_runtime.machine.memory import memory

__all__ = ["memory_bytes", "require_room"]

_RUNS_PI = ("x86_64", "aarch64")


def require_room(
    manifest: Manifest,
    *,
    arch: str | None = None,
    features: frozenset[str] | None = None,
    memory_limit_bytes: int | None = None,
) -> None:
    """Raise unless this machine can hold and run the bundle.

    Args:
        arch, features, memory_limit_bytes: of the machine; None asks it. The limit is on resident memory.

    Raises:
        DoesNotFitError: of another architecture, an instruction is missing, or it needs more memory than there is.
    """
    arch = arch or program_arch()
    limit = memory_bytes() if memory_limit_bytes is None else memory_limit_bytes
    features = cpu_features() if features is None else features
    what = f"{manifest.name} {manifest.version}"
    if manifest.profile == "pi" and arch not in _RUNS_PI:
        raise DoesNotFitError(
            f"{what} has the profile pi, which needs {' or '.join(_RUNS_PI)}; this device has {arch}. "
            "Convert the checkpoint with --profile micro."
        )
    if features and (lacking := missing_instructions(arch, manifest.profile, features, "this processor")):
        raise DoesNotFitError(f"{what} cannot run here: {lacking}. Take another board.")
    if limit is None:
        return
    tokenizer_bytes = manifest.files[manifest.tokenizer.file].size_bytes
    needed = memory(
        manifest.graph,
        manifest.counts[manifest.profile],
        manifest.profile,
        manifest.context,
        tokenizer_bytes,
        manifest.files[MODEL].size_bytes,
        TABLE in manifest.files,
    ).total
    if needed > limit:
        raise DoesNotFitError(
            f"{what} needs {needed / 1e6:,.0f} MB of memory with its context full, and this device has "
            f"{limit / 1e6:,.0f} MB for it. Convert the checkpoint with a shorter --context, or take a smaller model.",
            needed_bytes=needed,
            available_bytes=limit,
        )


def memory_bytes() -> int | None:
    """All RAM of this machine; None where it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemTotal:")).split()[1]) << 10
    except (OSError, StopIteration, ValueError, IndexError):
        return None
