"""The graph profiles: what differs between graphs for Linux boards and for microcontrollers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from converters.profiles.micro import MicroProfile
from converters.profiles.pi import PiProfile
from converters.profiles.profile import GraphJob, Profile

__all__ = ["PROFILES", "GraphJob", "Profile", "WeightType", "profile_of"]

WeightType = Literal["int8", "int4"]

PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (PiProfile(), MicroProfile())}
_INT4: Mapping[str, Profile] = {profile.name: profile for profile in (PiProfile(4), MicroProfile(4))}


def profile_of(name: Literal["pi", "micro"], weights: WeightType = "int8") -> Profile:
    """The profile of this name whose layers have such weights."""
    return PROFILES[name] if weights == "int8" else _INT4[name]
