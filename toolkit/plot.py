"""Pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle.work_place import whole_file
from device_runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from converters.measure.quality import LayerError

__all__ = ["plot_layer_errors", "require_writable"]


def require_writable(path: Path) -> None:
    """Raise now what `plot_layer_errors` would raise after the work is done."""
    from matplotlib.figure import Figure

    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ConfigurationError(f"{path} cannot be written: the suffix must be one of {', '.join(sorted(formats))}.")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path} cannot be written: there is no folder {path.parent}.")


def plot_layer_errors(path: Path, title: str, errors: Sequence[LayerError]) -> None:
    """Draw the signal-to-noise ratio after each block; a step down is where error enters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    places = [i / 2 for i in range(1, len(errors) + 1)]
    axes.plot(places, [e.snr_db for e in errors], color="0.6", linewidth=1)
    for part, marker in (("attention_out", "o"), ("out", "s")):
        chosen = [(x, e.snr_db) for x, e in zip(places, errors, strict=True) if e.name.endswith(f".{part}")]
        label = "after attention" if part == "attention_out" else "after feed-forward"
        axes.plot(*zip(*chosen, strict=True), marker, markersize=4, label=label)
    axes.set_xlabel("layer")
    axes.set_ylabel("signal to noise, dB")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format=path.suffix[1:].lower())
    with whole_file(path) as write:
        write(drawn.getvalue())
