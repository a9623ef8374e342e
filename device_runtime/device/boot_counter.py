"""How often a device has started: by this number, others distinguish its messages from those of an earlier life."""

from __future__ import annotations

import logging
from pathlib import Path

from device_runtime.errors import ConfigurationError
from device_runtime.update import durable

__all__ = ["next_boot"]

log = logging.getLogger("stonechat.serve")


def next_boot(state_dir: Path) -> int:
    """Count this start in `state_dir` and return its number, from 1.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    path = state_dir / "boot"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        try:
            boot = int(path.read_text(encoding="ascii")) + 1
        except FileNotFoundError:
            boot = 1
        except ValueError:
            log.warning("%s does not hold a number; the boot counter starts again from 1", path)
            boot = 1
        durable.replace_file(path, str(boot).encode())  # a number that a power cut takes back would be used twice
    except OSError as e:
        raise ConfigurationError(
            f"cannot keep the boot counter in {path}: {e.strerror}. Name a folder that can be written with --state-dir."
        ) from None
    return boot
