"""What the runtime needs to know of the machine it runs on."""

from __future__ import annotations

import os
import resource

__all__ = ["peak_rss_mb", "usable_cores"]


def usable_cores() -> int:
    """Cores that this process may use, at most 4: small models do not gain from more."""
    return min(4, len(os.sched_getaffinity(0)))


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
