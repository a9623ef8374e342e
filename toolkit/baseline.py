"""A file that remembers what a model cost on a board, so that CI notices when a change makes it cost more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from device_runtime.bundle.work_place import whole_file
from device_runtime.errors import ConfigurationError

__all__ = ["growth", "read_baseline", "write_baseline"]

_SCHEMA = 1


def read_baseline(path: Path, board: str) -> dict[str, float]:
    """The figures in a baseline file, by name.

    Raises:
        ConfigurationError: it cannot be read, is no baseline, or was made for another board.
    """
    again = "Write it again with --update-baseline."
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not JSON ({error}). {again}") from None
    figures = data.get("figures") if isinstance(data, dict) else None
    if data.get("schema") != _SCHEMA if isinstance(data, dict) else True:
        raise ConfigurationError(f"{path} is not a baseline of schema {_SCHEMA}. {again}")
    if data.get("board") != board:
        raise ConfigurationError(f"{path} was made for the board {data.get('board')!r}, and this is {board}. {again}")
    if not isinstance(figures, dict) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 2**63 for v in figures.values()
    ):
        raise ConfigurationError(f"{path}: figures is not a mapping from names to numbers. {again}")
    return figures


def write_baseline(path: Path, board: str, model: str, figures: Mapping[str, float]) -> None:
    """Write the file, as `whole_file` does."""
    data = {"schema": _SCHEMA, "board": board, "model": model, "figures": dict(figures)}
    with whole_file(path) as write:
        write(json.dumps(data, indent=1) + "\n")


def growth(baseline: Mapping[str, float], figures: Mapping[str, float], allowed_percent: float) -> list[str]:
    """Each figure that costs more than it did, by more than what is allowed, with its change."""
    grown = []
    for name, value in figures.items():
        before = baseline.get(name)
        if before is None:
            continue
        if value > before * (1 + allowed_percent / 100):
            change = f"{value / before - 1:+.1%}" if before else "from nothing"
            grown.append(f"{name}: {before:,.0f} -> {value:,.0f} ({change})")
    return grown
