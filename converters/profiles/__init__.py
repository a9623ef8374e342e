"""The graph profiles: what differs between graphs for Linux boards and for microcontrollers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from converters.profiles.micro import MicroProfile
from converters.profiles.pi import PiProfile
from converters.profiles.profile import GraphJob, Profile
from device_runtime.errors import ConfigurationError

__all__ = ["PROFILES", "GraphJob", "Profile", "WeightType", "profile_of"]

WeightType = Literal["int8", "int4"]

PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (PiProfile(), MicroProfile())}
_PI_INT4 = PiProfile(weight_bits=4)


def profile_of(name: Literal["pi", "micro"], weights: WeightType = "int8") -> Profile:
    """The profile of this name whose layers have such weights.

    Raises:
        ConfigurationError: it has none.
    """
    if weights == "int8":
        return PROFILES[name]
    if name != "pi":
        raise ConfigurationError(
            f"--weights {weights} is for the profile pi, and this bundle gets {name}; "
            "leave it out, or take --profile pi."
        )
    return _PI_INT4
