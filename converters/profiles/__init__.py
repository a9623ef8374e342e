"""The graph profiles: what differs between graphs for Linux boards and for microcontrollers."""

from __future__ import annotations

from collections.abc import Mapping

from converters.profiles.micro import MicroProfile
from converters.profiles.pi import PiProfile
from converters.profiles.profile import GraphJob, Profile

__all__ = ["PROFILES", "GraphJob", "Profile"]

PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (PiProfile(), MicroProfile())}
