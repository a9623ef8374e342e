"""What `stonechat check BUNDLE --board ID` reports: lines for people, fields for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boards.fit import Figure, Fit

__all__ = ["fit_fields", "fit_lines"]


def fit_fields(result: Fit, grown: list[str]) -> dict[str, object]:
    """For `--json`.

    Args:
        grown: the costs that are above the baseline's.
    """
    return {
        "board": result.board.id,
        "bundle": result.subject.name,
        "profile": result.subject.profile,
        "context": result.subject.context,
        "fits": result.fits,
        "problems": list(result.problems),
        "warnings": list(result.warnings),
        "remedies": list(result.remedies),
        "largest_context": result.largest_context,
        "largest_parameters": result.largest_parameters,
        "grown": grown,
        "figures": {name: asdict(figure) for name, figure in result.figures.items()},
    }


def fit_lines(result: Fit) -> Iterator[str]:
    """Every figure with its unit and how it was found, and the verdict."""
    subject, board = result.subject, result.board
    yield f"{subject.name}, profile {subject.profile}, context {subject.context},"
    yield f"on {board.name} ({board.id})"
    for figure in result.figures.values():
        yield f"{figure.label:<42}{_value(figure):>18}  {figure.kind}"
    yield "it fits" if result.fits else "it does not fit"
    for warning in result.warnings:
        yield f"warning: {warning}"


def _value(figure: Figure) -> str:
    if figure.unit == "bytes":
        return f"{figure.value / 1024:,.0f} KiB"
    if figure.unit == "bytes/s":
        return f"{figure.value / 1e6:,.0f} MB/s"
    digits = 0 if figure.unit == "positions" or figure.value >= 100 else 1
    return f"{figure.value:,.{digits}f} {figure.unit}"
